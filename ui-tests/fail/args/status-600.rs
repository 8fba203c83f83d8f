use idempotent_runtime::idempotent;

#[idempotent(cache = [600])]
async fn create_charge() {}

fn main() {}
