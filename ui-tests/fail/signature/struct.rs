use idempotent_runtime::idempotent;

#[idempotent]
struct Charge;

fn main() {}
