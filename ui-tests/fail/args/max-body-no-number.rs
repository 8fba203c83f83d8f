use idempotent_runtime::idempotent;

#[idempotent(max_body = "MiB")]
async fn create_charge() {}

fn main() {}
