use idempotent_runtime::idempotent;

#[idempotent(keep_headers = ["transfer-encoding"])]
async fn create_charge() {}

#[idempotent(keep_headers = ["X-Auth-Token", "Authentication-Info"])]
async fn create_refund() {}

fn main() {}
