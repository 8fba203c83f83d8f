use idempotent_runtime::idempotent;

#[idempotent(ttl = "24", cach = [201])]
async fn create_charge() -> &'static str { "charged" }

fn main() {}
