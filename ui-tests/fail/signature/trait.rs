use idempotent_runtime::idempotent;

#[idempotent]
trait Charges {}

fn main() {}
