use std::time::Duration;

use idempotent_runtime::idempotent;

fn configured() -> Duration {
    Duration::from_secs(60)
}

#[idempotent(ttl = configured())]
async fn function_at_run_time() {}

#[idempotent(lease = LEASE)]
async fn not_there() {}

#[idempotent(max_body = self::most())]
async fn not_there_either() {}

fn main() {}
