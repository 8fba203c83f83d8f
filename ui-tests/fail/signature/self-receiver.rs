use idempotent_runtime::idempotent;

struct Api;

impl Api {
    #[idempotent]
    async fn create(&self) {}

    #[idempotent]
    async fn update(self: Box<Self>) {}
}

fn main() {}
