use idempotent_runtime::idempotent;

#[idempotent(in_flight = block)]
async fn create_charge() {}

fn main() {}
