use idempotent_runtime::idempotent;

#[idempotent(scope("charges"))]
async fn handler_a() {}

#[idempotent(cache[201])]
async fn handler_b() {}

fn main() {}
