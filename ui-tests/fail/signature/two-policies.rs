use idempotent_runtime::idempotent;

#[idempotent(scope = "charges")]
#[idempotent(scope = "refunds")]
async fn create_charge(body: String) -> String {
    body
}

#[idempotent(scope = "charges")]
#[axum::debug_handler]
#[idempotent_runtime::idempotent]
async fn refund(body: String) -> String {
    body
}

fn main() {}
