use idempotent_runtime::idempotent;

#[idempotent(cache = [99])]
async fn create_charge() {}

fn main() {}
