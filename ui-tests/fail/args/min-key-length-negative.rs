use idempotent_runtime::idempotent;

#[idempotent(min_key_length = -1)]
async fn create_charge() {}

fn main() {}
