use idempotent_runtime::idempotent;

#[idempotent(cache = everything)]
async fn create_charge() {}

fn main() {}
