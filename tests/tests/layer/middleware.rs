//! `Idempotency` in a middleware around a guarded handler.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::post;
use idempotent_runtime::store::{MemoryStore, SqliteStore, StoreAdmin};
use idempotent_runtime::{Idempotency, IdempotencyLayer, Policy, RecordKey, Registry, Tx, idempotent};
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::{Runs, Server, lock};
use sqlx::Sqlite;

fn layer(scope: &str, registry: &Registry) -> IdempotencyLayer {
    IdempotencyLayer::new(Policy::builder(scope).build().expect("a valid policy")).with_registry(registry.clone())
}

#[idempotent(scope = "middleware-audited")]
async fn audited(_: Bytes) -> &'static str {
    "done"
}

#[idempotent(scope = "middleware-audited-tx")]
async fn audited_tx(_tx: Tx<Sqlite>, _: Bytes) -> &'static str {
    "done"
}

#[tokio::test]
async fn middleware_has_the_downstream_key_of_its_handler() {
    for is_beneath_a_layer in [false, true] {
        let registry = Registry::new(MemoryStore::new());
        let seen: Arc<Mutex<Vec<_>>> = Arc::default();
        let kept = Arc::clone(&seen);
        let audit = move |idempotency: Idempotency, request: Request, next: Next| {
            let kept = Arc::clone(&kept);
            async move {
                let response = next.run(request).await;
                let key = (idempotency.key().map(str::to_owned), idempotency.downstream_key("audit"));
                lock(&kept).push(key);
                response
            }
        };
        let mut app = Router::new().route("/", post(audited)).layer(registry.layer()).layer(from_fn(audit));
        if is_beneath_a_layer {
            app = app.layer(layer("middleware-keys", &registry));
        }
        let server = Server::start(app).await;
        for is_replay in [false, true] {
            assert_eq!(server.post_with_key("/", "k").await.is_replay(), is_replay);
        }
        let seen = lock(&seen).clone();
        assert_eq!((seen.len(), seen[0].0.as_deref()), (2, Some("k")));
        assert_eq!(seen[0], seen[1], "{is_beneath_a_layer}");
    }
}

/// Takes a step after its handler has answered.
async fn audit(
    State(runs): State<Runs>,
    idempotency: Idempotency,
    request: Request,
    next: Next,
) -> Result<Response, Response> {
    let response = next.run(request).await;
    idempotency.step("audit", async || Ok::<_, Response>(runs.run().await)).await?;
    Ok(response)
}

#[tokio::test]
async fn step_of_a_middleware_is_recorded_under_its_layers_claim() {
    let (file, runs) = (SqliteFile::new(), Runs::free());
    let store = SqliteStore::open(file.path()).await.expect("the file opens");
    let registry = Registry::new(store.clone());
    for (number, route) in [post(audited), post(audited_tx)].into_iter().enumerate() {
        let key = number.to_string();
        let app = Router::new()
            .route("/", route)
            .layer(registry.layer())
            .layer(from_fn_with_state(runs.clone(), audit))
            .layer(layer("middleware-steps", &registry));
        let server = Server::start(app).await;
        for is_replay in [false, true] {
            let answer = server.post_with_key("/", &key).await;
            assert_eq!((answer.text(), answer.is_replay(), runs.started()), ("done", is_replay, number + 1));
        }
        let step = RecordKey::new("middleware-steps", None, &key).step("audit");
        assert!(store.get(&step).await.expect("the store answers").is_some());
    }
}

#[tokio::test]
async fn step_of_a_middleware_without_a_claim_is_an_error() {
    let (runs, registry) = (Runs::free(), Registry::new(MemoryStore::new()));
    let app =
        Router::new().route("/", post(audited)).layer(registry.layer()).layer(from_fn_with_state(runs.clone(), audit));
    let server = Server::start(app).await;
    for _ in 0..2 {
        assert_eq!(server.post_with_key("/", "k").await.rejection(), "step_failed");
    }
    assert_eq!(runs.started(), 0);
    let unkeyed = idempotent_tests::answer(server.post("/")).await;
    assert_eq!((unkeyed.status, runs.started()), (StatusCode::OK, 1));
}
