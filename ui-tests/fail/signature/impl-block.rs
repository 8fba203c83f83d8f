use idempotent_runtime::idempotent;

struct Api;

#[idempotent]
impl Api {
    async fn create() {}
}

fn main() {}
