use idempotent_runtime::idempotent;

#[idempotent]
const CHARGE: u32 = 1;

fn main() {}
