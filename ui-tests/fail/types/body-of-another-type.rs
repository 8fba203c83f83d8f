use std::num::ParseIntError;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use idempotent_runtime::idempotent;

#[idempotent]
async fn create_charge() -> StatusCode {
    "charged"
}

struct ApiError;

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        StatusCode::BAD_REQUEST.into_response()
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
