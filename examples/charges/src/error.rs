//! What a client of the API is told when something is wrong.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

/// The body of an error.
#[derive(Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    /// For programs.
    error: &'static str,
    /// For people.
    message: String,
}

/// What is wrong.
#[derive(Debug)]
pub enum ApiError {
    /// The request names no user.
    Unauthenticated,
    /// The signature of an event is missing, wrong or old.
    BadSignature,
    /// It is not over 0.
    InvalidAmount,
    /// It is not three capital letters.
    InvalidCurrency,
    /// By the card network.
    Declined,
    /// The card network has moved other money under this reference.
    OtherCharge,
    /// Or it is another user's.
    NoSuchCharge(i64),
    /// More than there is left.
    RefundTooLarge {
        /// Of the charge.
        left: i64,
    },
    /// Ours, or the network's.
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
