use idempotent_runtime::idempotent;

// The lease is no mistake: what it must not exceed is unknown.
#[idempotent(ttl = "7 dayz", lease = "2days")]
async fn create_charge() {}

fn main() {}
