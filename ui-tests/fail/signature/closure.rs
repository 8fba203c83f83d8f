use idempotent_runtime::idempotent;

#[idempotent]
static CHARGE: fn() = || ();

fn main() {}
