use idempotent_runtime::idempotent;

#[idempotent(store = "")]
async fn create_charge() {}

fn main() {}
