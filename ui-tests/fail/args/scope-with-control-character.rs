use idempotent_runtime::idempotent;

#[idempotent(scope = "a\nb")]
async fn create_charge() {}

fn main() {}
