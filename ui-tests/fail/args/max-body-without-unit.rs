use idempotent_runtime::idempotent;

#[idempotent(max_body = "4096")]
async fn create_charge() {}

fn main() {}
