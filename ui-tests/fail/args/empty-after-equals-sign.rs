use idempotent_runtime::idempotent;

#[idempotent(scope = )]
async fn handler_a() {}

#[idempotent(ttl = , scope = "charges")]
async fn handler_b() {}

fn main() {}
