use idempotent_runtime::idempotent;

#[idempotent(ttl = "101years")]
async fn create_charge() {}

fn main() {}
