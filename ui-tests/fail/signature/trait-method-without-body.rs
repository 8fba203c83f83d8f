use idempotent_runtime::idempotent;

trait Api {
    #[idempotent]
    async fn create();
}

fn main() {}
