//! The errors that clients of the API get.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

/// The body of an error.
#[derive(Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    /// The code for programs.
    error: &'static str,
    /// The text for people.
    message: String,
}

/// Why a request failed.
#[derive(Debug)]
pub enum ApiError {
    /// The request names no user.
    Unauthenticated,
    /// The signature of an event is missing, wrong or old.
    BadSignature,
    /// The amount is not greater than 0.
    InvalidAmount,
    /// The currency is not three capital letters.
    InvalidCurrency,
    /// The card network declined the charge.
    Declined,
    /// The card network has moved other money under this reference.
    OtherCharge,
    /// There is no such charge, or it belongs to another user.
    NoSuchCharge(i64),
    /// The refund is larger than the rest of the charge.
    RefundTooLarge {
        /// What is left of the charge.
        left: i64,
    },
    /// The database of the ledger or of the card network failed.
    Ledger(sqlx::Error),
}

impl From<sqlx::Error> for ApiError {
    fn from(error: sqlx::Error) -> Self {
        Self::Ledger(error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, error, message) = match self {
            Self::Unauthenticated => {
                (StatusCode::UNAUTHORIZED, "unauthenticated", "send `Authorization: Bearer <name>`".to_owned())
            }
            Self::BadSignature => (
                StatusCode::UNAUTHORIZED,
                "bad_signature",
                "sign the body, and send the signature within five minutes in `Network-Signature`".to_owned(),
            ),
            Self::InvalidAmount => {
                (StatusCode::UNPROCESSABLE_ENTITY, "invalid_amount", "the amount must be over 0".to_owned())
            }
            Self::InvalidCurrency => {
                let message = "the currency must be three capital letters, such as EUR".to_owned();
                (StatusCode::UNPROCESSABLE_ENTITY, "invalid_currency", message)
            }
            Self::OtherCharge => {
                tracing::error!(
                    "the card network has another charge under the reference of this one: nothing is entered"
                );
                let message = "the card network answered for another charge, so nothing was entered".to_owned();
                (StatusCode::BAD_GATEWAY, "other_charge", message)
            }
            Self::Declined => {
                (StatusCode::PAYMENT_REQUIRED, "card_declined", "the card network declined the charge".to_owned())
            }
            Self::NoSuchCharge(id) => (StatusCode::NOT_FOUND, "no_such_charge", format!("there is no charge {id}")),
            Self::RefundTooLarge { left } => {
                (StatusCode::CONFLICT, "refund_too_large", format!("only {left} of the charge are left"))
            }
            Self::Ledger(error) => {
                tracing::error!(%error, "the ledger failed");
                (StatusCode::INTERNAL_SERVER_ERROR, "internal", "the ledger failed; retry with the same key".to_owned())
            }
        };
        (status, Json(ErrorBody { error, message })).into_response()
    }
}
