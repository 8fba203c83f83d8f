use idempotent_runtime::idempotent;

#[idempotent(keep_headers = ["set-cookie"], drop_headers = ["Set-Cookie"])]
async fn create_charge() {}

fn main() {}
