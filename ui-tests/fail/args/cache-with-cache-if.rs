use idempotent_runtime::idempotent;

#[idempotent(cache = [201], cache_if = is_final)]
async fn create_charge() {}

fn main() {}
