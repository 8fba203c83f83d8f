use idempotent_runtime::idempotent;

#[idempotent(min_key_length = 0)]
async fn create_charge() {}

fn main() {}
