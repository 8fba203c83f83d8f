use idempotent_runtime::idempotent;

#[idempotent(cache = [StatusCode::CREATED])]
async fn create_charge() {}

fn main() {}
