use idempotent_runtime::idempotent;

#[idempotent(ttl = "1m", lease = "2m")]
async fn create_charge() {}

fn main() {}
