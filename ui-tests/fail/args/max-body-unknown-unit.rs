use idempotent_runtime::idempotent;

#[idempotent(max_body = "4 blocks")]
async fn create_charge() {}

fn main() {}
