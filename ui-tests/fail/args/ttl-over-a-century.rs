use idempotent_runtime::idempotent;

#[idempotent(ttl = "101years", lease = "1000years", in_flight = wait("9999999years"))]
async fn create_charge() {}

fn main() {}
