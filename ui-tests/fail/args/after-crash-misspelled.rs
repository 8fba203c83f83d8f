use idempotent_runtime::idempotent;

#[idempotent(after_crash = "refuze")]
async fn create_charge() {}

fn main() {}
