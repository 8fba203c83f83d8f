//! Recipe 13 of docs/cookbook.md.

use axum::{Router, http::StatusCode, routing::post};
use idempotent_runtime::{Idempotency, idempotent, store::RedisStore};

#[idempotent(scope = "charges", cache = [201])]
async fn create_charge(idempotency: Idempotency, order: String) -> (StatusCode, String) {
    (
        StatusCode::CREATED,
        format!("charged for {order} by process {}, attempt {}\n", std::process::id(), idempotency.attempt()),
    )
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379".to_owned());
    idempotent_runtime::install(RedisStore::connect(&url).await?)?;
    let app: Router = Router::new().route("/charges", post(create_charge));
    let address = std::env::var("ADDRESS").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    Ok(axum::serve(tokio::net::TcpListener::bind(address).await?, app).await?)
}
