use idempotent_runtime::idempotent;

#[idempotent(scope = "charges", min_key_length = 256)]
async fn create_charge() {}

#[idempotent(scope = "refunds", min_key_length = 99999999999999999999999)]
async fn create_refund() {}

fn main() {}
