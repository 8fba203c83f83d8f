use idempotent_runtime::idempotent;

#[idempotent]
thread_local! {}

fn main() {}
