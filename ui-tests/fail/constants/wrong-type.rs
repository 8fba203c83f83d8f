use idempotent_runtime::idempotent;

const HOURS: u64 = 24;
const SIZE: &str = "4MiB";
const SCOPE: u8 = 1;

#[idempotent(ttl = HOURS)]
async fn ttl() {}

#[idempotent(lease = HOURS)]
async fn lease() {}

#[idempotent(in_flight = wait(HOURS))]
async fn wait() {}

#[idempotent(max_body = SIZE)]
async fn max_body() {}

#[idempotent(scope = SCOPE)]
async fn scope() {}

#[idempotent(store = SCOPE)]
async fn store() {}

fn main() {}
