use idempotent_runtime::idempotent;

#[idempotent]
mod charges {}

fn main() {}
