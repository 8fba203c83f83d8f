use idempotent_runtime::idempotent;

#[idempotent(ttl = "999ms")]
async fn create_charge() {}

fn main() {}
