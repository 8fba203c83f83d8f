use idempotent_runtime::idempotent;

#[idempotent(ttl = "-1h")]
async fn create_charge() {}

fn main() {}
