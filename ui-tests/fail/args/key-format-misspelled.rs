use idempotent_runtime::idempotent;

#[idempotent(key_format = "uid")]
async fn create_charge() {}

fn main() {}
