use std::time::Duration;

use idempotent_runtime::idempotent;

const ZERO: Duration = Duration::ZERO;
const MINUTE: Duration = Duration::from_secs(60);
const EMPTY: &str = "";

#[idempotent(ttl = ZERO)]
async fn ttl_of_zero() {}

#[idempotent(ttl = Duration::MAX)]
async fn ttl_without_end() {}

#[idempotent(lease = ZERO)]
async fn lease_of_zero() {}

#[idempotent(in_flight = wait(ZERO))]
async fn wait_of_zero() {}

#[idempotent(ttl = "5s", lease = MINUTE)]
async fn lease_over_literal_ttl() {}

#[idempotent(ttl = Duration::from_secs(5), lease = "60s")]
async fn lease_over_constant_ttl() {}

#[idempotent(scope = EMPTY)]
async fn scope_that_is_empty() {}

#[idempotent(store = EMPTY)]
async fn store_that_is_empty() {}

fn main() {}
