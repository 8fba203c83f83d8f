use axum::http::StatusCode;
use idempotent_runtime::idempotent;

fn is_final(status: StatusCode) -> bool {
    status.is_success()
}

#[idempotent(cache_if = is_final)]
async fn create_charge(body: String) -> String {
    body
}

fn main() {}
