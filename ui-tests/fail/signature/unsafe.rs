use idempotent_runtime::idempotent;

#[idempotent]
async unsafe fn create_charge() {}

fn main() {}
