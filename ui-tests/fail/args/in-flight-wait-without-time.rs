use idempotent_runtime::idempotent;

#[idempotent(in_flight = wait())]
async fn create_charge() {}

fn main() {}
