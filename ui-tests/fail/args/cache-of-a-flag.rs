use idempotent_runtime::idempotent;

#[idempotent(cache = true)]
async fn create_charge() {}

fn main() {}
