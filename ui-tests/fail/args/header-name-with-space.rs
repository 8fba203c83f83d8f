use idempotent_runtime::idempotent;

#[idempotent(header = "x request id")]
async fn create_charge() {}

fn main() {}
