use idempotent_runtime::idempotent;

#[idempotent]
async extern "C" fn create_charge() {}

fn main() {}
