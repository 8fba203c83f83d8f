use idempotent_runtime::idempotent;

#[idempotent(cache = [400..])]
async fn create_charge() {}

fn main() {}
