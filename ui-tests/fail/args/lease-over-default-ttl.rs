use idempotent_runtime::idempotent;

#[idempotent(lease = "25h")]
async fn create_charge() {}

fn main() {}
