use idempotent_runtime::idempotent;

#[idempotent(crate = "idempotent-runtime")]
async fn create_charge() {}

fn main() {}
