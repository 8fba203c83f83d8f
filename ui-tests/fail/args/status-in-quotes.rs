use idempotent_runtime::idempotent;

#[idempotent(cache = "201")]
async fn create_charge() {}

fn main() {}
