use axum::http::StatusCode;
use idempotent_runtime::idempotent;

#[idempotent]
async fn create_charge() -> StatusCode {
    "charged"
}

#[idempotent]
async fn refund(amount: String) -> Result<String, StatusCode> {
    if amount.is_empty() {
        return Err("nothing to refund");
    }
    let cents: u64 = amount.parse()?;
    Ok(cents.to_string())
}

fn main() {}
