use idempotent_runtime::idempotent;

#[idempotent]
type Charge = u64;

fn main() {}
