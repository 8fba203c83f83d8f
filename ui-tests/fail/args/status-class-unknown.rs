use idempotent_runtime::idempotent;

#[idempotent(cache = ["ok"])]
async fn create_charge() {}

fn main() {}
