use idempotent_runtime::idempotent;

#[idempotent(header = "")]
async fn create_charge() {}

fn main() {}
