use idempotent_runtime::idempotent;

#[idempotent(min_key_length = 37, key_format = "uuid")]
async fn create_charge() {}

fn main() {}
