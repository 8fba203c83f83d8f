use idempotent_runtime::idempotent;

#[idempotent(cache = [500..=600])]
async fn create_charge() {}

fn main() {}
