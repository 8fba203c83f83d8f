use idempotent_runtime::idempotent;

#[idempotent(lease = "10ms")]
async fn create_charge() {}

fn main() {}
