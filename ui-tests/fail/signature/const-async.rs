use idempotent_runtime::idempotent;

#[idempotent]
const async fn create_charge() {}

fn main() {}
