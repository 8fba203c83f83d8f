use idempotent_runtime::idempotent;

#[idempotent("charges")]
async fn handler_a() {}

#[idempotent(201, scope = "charges")]
async fn handler_b() {}

fn main() {}
