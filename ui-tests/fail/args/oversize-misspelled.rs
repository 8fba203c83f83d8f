use idempotent_runtime::idempotent;

#[idempotent(oversize = "re-run")]
async fn create_charge() {}

fn main() {}
