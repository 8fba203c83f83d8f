use idempotent_runtime::idempotent;

#[idempotent(ttl = "24")]
async fn create_charge() {}

fn main() {}
