use idempotent_runtime::idempotent;

#[idempotent]
const fn create_charge() {}

fn main() {}
