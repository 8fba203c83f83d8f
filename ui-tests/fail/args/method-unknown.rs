use idempotent_runtime::idempotent;

#[idempotent(methods = [POST, PSOT])]
async fn create_charge() {}

fn main() {}
