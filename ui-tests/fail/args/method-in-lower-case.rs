use idempotent_runtime::idempotent;

#[idempotent(methods = [post])]
async fn create_charge() {}

fn main() {}
