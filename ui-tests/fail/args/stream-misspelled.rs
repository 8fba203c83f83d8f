use idempotent_runtime::idempotent;

#[idempotent(stream = "passes")]
async fn create_charge() {}

fn main() {}
