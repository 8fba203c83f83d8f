use idempotent_runtime::idempotent;

#[idempotent(keep_headers = ["transfer-encoding"])]
async fn create_charge() {}

fn main() {}
