use idempotent_runtime::idempotent;

#[idempotent(methods = ["SEARCH ALL", 7, "get"])]
async fn create_charge() {}

fn main() {}
