use idempotent_runtime::idempotent;

#[idempotent(max_body = "99999999999GiB")]
async fn create_charge() {}

fn main() {}
