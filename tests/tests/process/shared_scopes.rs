//! Handlers with the same explicit scope: one could replay the other's responses, so both must declare `shared_scope`.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{InstallError, Registry, idempotent, install};
use idempotent_tests::{Logs, Runs, Server};

#[idempotent(scope = "orders", shared_scope, fingerprint = none)]
async fn create_order(State(runs): State<Runs>) -> String {
    format!("order {}", runs.run().await)
}

#[idempotent(scope = "orders", shared_scope, fingerprint = none)]
async fn create_order_v2(State(runs): State<Runs>) -> String {
    format!("order {} of v2", runs.run().await)
}

#[idempotent(scope = "payments", shared_scope, fingerprint = none)]
async fn charge(State(runs): State<Runs>) -> String {
    format!("charge {}", runs.run().await)
}

/// Its author does not know about the other handler.
#[idempotent(scope = "payments", store = "elsewhere")]
async fn refund(State(runs): State<Runs>) -> String {
    format!("refund {}", runs.run().await)
}

fn registry() -> Registry {
    Registry::builder(MemoryStore::new()).store("elsewhere", MemoryStore::new()).build()
}

async fn serve(runs: &Runs) -> Server {
    let app = Router::new()
        .route("/orders", post(create_order))
        .route("/v2/orders", post(create_order_v2))
        .route("/charges", post(charge))
        .route("/refunds", post(refund))
        .with_state(runs.clone())
        .layer(registry().layer());
    Server::start(app).await
}

#[tokio::test]
async fn install_rejects_equal_scopes_without_shared_scope() {
    let error = registry().install().expect_err("one of them does not say that the scope is shared");
    assert!(matches!(error, InstallError::SharedScope { .. }), "{error}");
    let message = error.to_string();
    for part in ["::charge at ", "::refund at ", "\"payments\"", "`scope = \"payments\", shared_scope` on both"] {
        assert!(message.contains(part), "{part} in {message}");
    }
    assert!(!message.contains("order"), "{message}");
    // The stores are checked before the scopes are compared.
    let error = install(MemoryStore::new()).expect_err("there is no such store");
    assert!(matches!(error, InstallError::UnknownStore { .. }), "{error}");
}

#[tokio::test]
async fn layer_logs_equal_scopes_once_and_serves_them() {
    let (logs, runs) = (Logs::collect(), Runs::free());
    let registry = registry();
    let app = Router::new()
        .route("/charges", post(charge).layer(registry.layer()))
        .route("/refunds", post(refund).layer(registry.layer()))
        .with_state(runs.clone());
    let server = Server::start(app).await;
    assert_eq!(server.post_with_key("/charges", "a").await.text(), "charge 1");
    assert_eq!(server.post_with_key("/refunds", "b").await.text(), "refund 2");
    let errors = logs.of_level("ERROR");
    assert_eq!(errors.len(), 1, "{errors:?}");
    for part in ["payments", "::charge at ", "::refund at ", "shared_scope"] {
        assert!(errors[0].contains(part), "{part} in {errors:?}");
    }
}

/// The second route of an operation replays what the first one has recorded.
#[tokio::test]
async fn handlers_that_share_a_scope_share_their_records() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    for (path, is_replay) in [("/orders", false), ("/v2/orders", true)] {
        let answer = server.post_with_key(path, "k").await;
        assert_eq!((answer.status, answer.text(), answer.is_replay()), (StatusCode::OK, "order 1", is_replay));
    }
    assert_eq!(runs.started(), 1);
}
