use idempotent_runtime::idempotent;

#[idempotent(header = "Content-Type")]
async fn create_charge() {}

fn main() {}
