use idempotent_runtime::idempotent;

#[idempotent]
fn create_charge() {}

fn main() {}
