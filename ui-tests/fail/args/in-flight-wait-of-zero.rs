use idempotent_runtime::idempotent;

#[idempotent(in_flight = wait("0s"))]
async fn create_charge() {}

fn main() {}
