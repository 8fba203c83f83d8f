use idempotent_runtime::idempotent;

#[idempotent(ttl = "99999999999999999999d")]
async fn create_charge() {}

fn main() {}
