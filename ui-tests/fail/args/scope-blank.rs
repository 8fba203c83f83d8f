use idempotent_runtime::idempotent;

#[idempotent(scope = "  ")]
async fn create_charge() {}

fn main() {}
