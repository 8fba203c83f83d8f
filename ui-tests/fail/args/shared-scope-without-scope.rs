use idempotent_runtime::idempotent;

#[idempotent(shared_scope)]
async fn create_charge() {}

#[idempotent(scope = "charges", shared_scope = "refunds")]
async fn create_refund() {}

fn main() {}
