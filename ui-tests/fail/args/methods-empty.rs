use idempotent_runtime::idempotent;

#[idempotent(methods = [])]
async fn create_charge() {}

fn main() {}
