//! Two handlers that would share a default scope are refused at start-up: one could replay the other's responses.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{InstallError, Registry, idempotent, install};
use idempotent_tests::{Logs, Server, answer};

struct Charges;
struct Refunds;

impl Charges {
    #[idempotent]
    async fn create() {}
}

impl Refunds {
    #[idempotent]
    async fn create() {}
}

#[tokio::test]
async fn install_names_both_handlers() {
    Charges::create(().into()).await;
    Refunds::create(().into()).await;
    let error = install(MemoryStore::new()).expect_err("one scope for two handlers");
    assert!(matches!(error, InstallError::SharedDefaultScope { .. }), "{error}");
    let message = error.to_string();
    assert_eq!(message.matches("shared_default_scope.rs:").count(), 2, "{message}");
    assert!(message.contains("scope = "), "{message}");
}

#[tokio::test]
async fn a_layer_cannot_refuse_at_start_up_and_so_refuses_their_requests() {
    let logs = Logs::collect();
    let app = Router::new()
        .route("/charges", post(Charges::create))
        .route("/refunds", post(Refunds::create))
        .layer(Registry::new(MemoryStore::new()).layer());
    let server = Server::start(app).await;
    for path in ["/charges", "/refunds"] {
        let refused = server.post_with_key(path, "k").await;
        assert_eq!(
            (refused.status, refused.refusal().as_str()),
            (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable")
        );
        assert_eq!(answer(server.post(path)).await.status, StatusCode::OK, "a request without a key has none to share");
    }
    let errors = logs.of_level("ERROR");
    assert!(errors.iter().all(|line| line.contains("scope = ") && line.contains("shared_default_scope")), "{errors:?}");
    assert_eq!(errors.len(), 2, "{errors:?}");
}
