use idempotent_runtime::idempotent;

#[idempotent(retries = 3)]
async fn handler_a() {}

fn main() {}
