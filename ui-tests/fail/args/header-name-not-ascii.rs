use idempotent_runtime::idempotent;

#[idempotent(header = "ключ")]
async fn create_charge() {}

fn main() {}
