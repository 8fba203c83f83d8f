use idempotent_runtime::idempotent;

#[idempotent(on_store_error = "rn")]
async fn create_charge() {}

fn main() {}
