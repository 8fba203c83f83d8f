use idempotent_runtime::idempotent;

#[idempotent(scope = format!("charges-{body}"))]
async fn argument(body: String) -> String {
    body
}

#[idempotent(max_body = body.len())]
async fn length(body: String) -> String {
    body
}

struct Api;

impl Api {
    const TTL: std::time::Duration = std::time::Duration::from_secs(60);

    #[idempotent(ttl = Self::TTL)]
    async fn of_self() {}
}

#[idempotent(scope = charges)]
async fn word() {}

fn main() {}
