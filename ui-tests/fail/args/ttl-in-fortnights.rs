use idempotent_runtime::idempotent;

#[idempotent(ttl = "1 fortnight")]
async fn create_charge() {}

fn main() {}
