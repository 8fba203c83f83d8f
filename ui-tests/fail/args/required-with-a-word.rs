use idempotent_runtime::idempotent;

#[idempotent(required = yes)]
async fn create_charge() {}

fn main() {}
