use idempotent_runtime::idempotent;

#[idempotent]
enum Charge {}

fn main() {}
