use idempotent_runtime::idempotent;

#[idempotent(cache = [300..200])]
async fn create_charge() {}

fn main() {}
