use idempotent_runtime::idempotent;

#[idempotent(cache = ["1xx"])]
async fn create_charge() {}

fn main() {}
