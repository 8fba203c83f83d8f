use idempotent_runtime::idempotent;

#[idempotent(cache = [70000])]
async fn create_charge() {}

fn main() {}
