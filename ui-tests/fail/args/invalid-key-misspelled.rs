use idempotent_runtime::idempotent;

#[idempotent(invalid_key = "ignor")]
async fn create_charge() {}

fn main() {}
