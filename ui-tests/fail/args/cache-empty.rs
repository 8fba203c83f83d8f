use idempotent_runtime::idempotent;

#[idempotent(cache = [])]
async fn create_charge() {}

fn main() {}
