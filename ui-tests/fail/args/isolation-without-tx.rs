use idempotent_runtime::idempotent;

#[idempotent(isolation = "serializable")]
async fn create_charge() {}

fn main() {}
