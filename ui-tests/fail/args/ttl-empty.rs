use idempotent_runtime::idempotent;

#[idempotent(ttl = "")]
async fn create_charge() {}

fn main() {}
