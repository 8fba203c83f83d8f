use idempotent_runtime::idempotent;

#[idempotent(scope = "charges", caller = none)]
async fn create_charge() {}

#[idempotent(scope = "refunds", caller = None)]
async fn create_refund() {}

fn main() {}
