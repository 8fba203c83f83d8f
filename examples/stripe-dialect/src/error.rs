//! The errors that clients of the API get, in the format from which Stripe's SDKs make their exceptions.

use axum::Json;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::payment_intents::PaymentIntent;

#[derive(Debug)]
pub(crate) enum ApiError {
    NoSecretKey,
    UnknownSecretKey,
    UnreadableBody { status: StatusCode, reason: String },
    NotAForm,
    MalformedForm(String),
    MissingParameter(&'static str),
    UnknownParameter(String),
    InvalidParameter { name: &'static str, code: Option<&'static str>, message: String },
    NoSuchPaymentMethod(String),
    NoSuchPaymentIntent(String),
    Declined(Box<PaymentIntent>),
    UnknownUrl { method: Method, path: String },
    OtherCharge,
    Books(sqlx::Error),
}

impl ApiError {
    pub(crate) fn invalid(name: &'static str, rule: &str) -> Self {
        Self::InvalidParameter { name, code: None, message: format!("`{name}` {rule}") }
    }
}

impl From<sqlx::Error> for ApiError {
    fn from(error: sqlx::Error) -> Self {
        Self::Books(error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, error) = match self {
            Self::NoSecretKey => {
                (StatusCode::UNAUTHORIZED, invalid_request(None, None, "Send `Authorization: Bearer sk_test_…`"))
            }
            Self::UnknownSecretKey => {
                let message = "This secret key is not known; the server prints those that are when it starts";
                (StatusCode::UNAUTHORIZED, invalid_request(None, None, message))
            }
            Self::UnreadableBody { status, reason } => (status, invalid_request(None, None, &reason)),
            Self::NotAForm => {
                let message = "Send the parameters as `application/x-www-form-urlencoded`";
                (StatusCode::BAD_REQUEST, invalid_request(None, None, message))
            }
            Self::MalformedForm(reason) => {
                let message = format!("The form cannot be read: {reason}");
                (StatusCode::BAD_REQUEST, invalid_request(None, None, &message))
            }
            Self::MissingParameter(name) => {
                let message = format!("`{name}` is required");
                (StatusCode::BAD_REQUEST, invalid_request(Some("parameter_missing"), Some(name), &message))
            }
            Self::UnknownParameter(name) => {
                let message = format!("There is no parameter `{name}`");
                (StatusCode::BAD_REQUEST, invalid_request(Some("parameter_unknown"), Some(&name), &message))
            }
            Self::InvalidParameter { name, code, message } => {
                (StatusCode::BAD_REQUEST, invalid_request(code, Some(name), &message))
            }
            Self::NoSuchPaymentMethod(id) => {
                let message = format!("There is no payment method '{id}'");
                let error = invalid_request(Some("resource_missing"), Some("payment_method"), &message);
                (StatusCode::BAD_REQUEST, error)
            }
            Self::NoSuchPaymentIntent(id) => {
                let message = format!("There is no payment intent '{id}'");
                (StatusCode::NOT_FOUND, invalid_request(Some("resource_missing"), Some("intent"), &message))
            }
            Self::Declined(intent) => {
                let mut error = json!(intent.last_payment_error);
                error["payment_intent"] = json!(intent);
                (StatusCode::PAYMENT_REQUIRED, error)
            }
            Self::UnknownUrl { method, path } => {
                (StatusCode::NOT_FOUND, invalid_request(None, None, &format!("There is nothing at {method} {path}")))
            }
            Self::OtherCharge => {
                tracing::error!(
                    "the card network has another charge under the reference of this one: nothing is booked"
                );
                let message = "The card network answered for another charge, so nothing was booked";
                (StatusCode::BAD_GATEWAY, json!({ "type": "api_error", "message": message }))
            }
            Self::Books(error) => {
                tracing::error!(%error, "the books failed");
                let message = "The books failed; retry with the same key";
                (StatusCode::INTERNAL_SERVER_ERROR, json!({ "type": "api_error", "message": message }))
            }
        };
        (status, Json(json!({ "error": error }))).into_response()
    }
}

fn invalid_request(code: Option<&str>, parameter: Option<&str>, message: &str) -> serde_json::Value {
    json!({ "type": "invalid_request_error", "code": code, "param": parameter, "message": message })
}
