use idempotent_runtime::idempotent;

#[idempotent]
async fn create_charge(arguments: ...) {}

fn main() {}
