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
    Ok(amount)
}

#[idempotent]
async fn cancel(amount: String) -> Result<String, Declined> {
    let cents: u64 = amount.parse()?;
    Ok(cents.to_string())
}

fn main() {}
