use idempotent_runtime::idempotent;

#[idempotent(drop_headers = ["x-trace", "Idempotent-Replayed"])]
async fn create_charge() {}

fn main() {}
