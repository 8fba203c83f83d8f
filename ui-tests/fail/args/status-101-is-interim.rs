use idempotent_runtime::idempotent;

#[idempotent(cache = [101])]
async fn create_charge() {}

fn main() {}
