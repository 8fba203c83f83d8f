//! Recipe 1 of docs/cookbook.md, which recipes 2 to 8 and 11 send requests to.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use idempotent_runtime::store::SqliteStore;
use idempotent_runtime::{Idempotency, idempotent};

/// Each time that a handler really ran, since the program was started.
#[derive(Clone, Default)]
struct Executions(Arc<Mutex<Vec<String>>>);

#[idempotent(scope = "charges", ttl = "24h", cache = [201], lease = "3s")]
async fn create_charge(
    State(executions): State<Executions>,
    idempotency: Idempotency,
    order: String,
) -> (StatusCode, String) {
    let times = executions.add(&order);
    if order.starts_with("slow") {
        tokio::time::sleep(Duration::from_secs(4)).await;
    }
    if order.starts_with("unlucky") && times == 1 {
        return (StatusCode::INTERNAL_SERVER_ERROR, "the card network is down\n".to_owned());
    }
    (StatusCode::CREATED, format!("charged for {order}, attempt {}\n", idempotency.attempt()))
}

#[idempotent(scope = "refunds", required, caller = user_of(&headers))]
async fn create_refund(State(executions): State<Executions>, headers: HeaderMap, what: String) -> String {
    executions.add(&format!("refund for {what}"));
    format!("refunded {what} to {}\n", user_of(&headers))
}

/// Who asks; a real service would verify a token.
fn user_of(headers: &HeaderMap) -> &str {
    headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or("anonymous")
}

impl Executions {
    /// How often the handler has run for this, this time included.
    fn add(&self, what: &str) -> usize {
        let mut executions = self.0.lock().expect("no execution panics here");
        executions.push(what.to_owned());
        executions.iter().filter(|earlier| *earlier == what).count()
    }
}

async fn show_executions(State(executions): State<Executions>) -> Json<Vec<String>> {
    Json(executions.0.lock().expect("no execution panics here").clone())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    idempotent_runtime::install(SqliteStore::open("idempotency.db").await?)?;
    let app = Router::new()
        .route("/charges", post(create_charge))
        .route("/refunds", post(create_refund))
        .route("/executions", get(show_executions))
        .with_state(Executions::default());
    let address = std::env::var("ADDRESS").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    Ok(axum::serve(tokio::net::TcpListener::bind(address).await?, app).await?)
}
