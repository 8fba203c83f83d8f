use idempotent_runtime::idempotent;

#[idempotent(in_flight = wait("5"))]
async fn create_charge() {}

fn main() {}
