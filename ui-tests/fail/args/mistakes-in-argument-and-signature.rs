use idempotent_runtime::idempotent;

#[idempotent(ttl = "0s")]
fn create_charge() {}

fn main() {}
