use idempotent_runtime::idempotent;

#[idempotent(scope = "charges", key = "X-Request-Id")]
async fn create_charge() {}

fn main() {}
