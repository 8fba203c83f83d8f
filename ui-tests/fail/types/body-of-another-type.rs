use std::num::ParseIntError;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use idempotent_runtime::idempotent;

struct Declined;

impl IntoResponse for Declined {
    fn into_response(self) -> Response {
        StatusCode::PAYMENT_REQUIRED.into_response()
    }
}

#[idempotent]
async fn create_charge() -> StatusCode {
    "charged"
}

#[idempotent]
async fn refund(amount: String) -> Result<String, Declined> {
    if amount.is_empty() {
        return "nothing to refund";
    }
}

fn cents(amount: &str) -> Result<u64, ParseIntError> {
    amount.parse()
}

#[idempotent]
async fn refund(amount: String) -> Result<String, ApiError> {
    if amount.is_empty() {
        return "nothing to refund";
    }
    let cents = cents(&amount)?;
    Ok(cents.to_string())
}

fn main() {}
