//! Two handlers that would share a default scope are rejected at start-up: one could replay the other's responses.

use axum::Router;
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{InstallError, Registry, idempotent, install, policies};
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

struct Card;
struct Bank;

macro_rules! pays_with {
    ($($method:ident)*) => {
        $(
            impl $method {
                #[idempotent]
                async fn pay() -> &'static str {
                    stringify!($method)
                }
            }
        )*
    };
}

pays_with!(Card Bank);

/// An attribute that emits its function twice, above and below `#[idempotent]`: this does not make a second handler.
#[axum::debug_handler]
#[idempotent]
async fn debugged_above(_body: String) -> &'static str {
    "once"
}

#[idempotent]
#[axum::debug_handler]
async fn debugged_below(_body: String) -> &'static str {
    "once"
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
async fn layer_rejects_the_requests_as_it_cannot_reject_start_up() {
    let logs = Logs::collect();
    let app = Router::new()
        .route("/charges", post(Charges::create))
        .route("/refunds", post(Refunds::create))
        .layer(Registry::new(MemoryStore::new()).layer());
    let server = Server::start(app).await;
    for path in ["/charges", "/refunds"] {
        let rejected = server.post_with_key(path, "k").await;
        assert_eq!(
            (rejected.status, rejected.rejection().as_str()),
            (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable")
        );
        assert_eq!(answer(server.post(path)).await.status, StatusCode::OK, "a request without a key has none to share");
    }
    let errors = logs.of_level("ERROR");
    assert!(errors.iter().all(|line| line.contains("scope = ") && line.contains("shared_default_scope")), "{errors:?}");
    assert_eq!(errors.len(), 2, "{errors:?}");
}

/// Module, function, file, line and column are the same for both handlers.
#[tokio::test]
async fn handlers_of_one_macro_call_with_one_default_scope_get_503() {
    let app = Router::new()
        .route("/cards", post(Card::pay))
        .route("/banks", post(Bank::pay))
        .layer(Registry::new(MemoryStore::new()).layer());
    let server = Server::start(app).await;
    for path in ["/cards", "/banks"] {
        let rejected = server.post_with_key(path, "k").await;
        assert_eq!((rejected.status, rejected.is_replay()), (StatusCode::SERVICE_UNAVAILABLE, false), "{path}");
    }
    let paths: Vec<String> = policies().map(ToString::to_string).filter(|name| name.contains("::pay ")).collect();
    assert_eq!(paths.len(), 2, "{paths:?}");
    assert!(paths[0].contains("Bank") && paths[1].contains("Card"), "the type tells them apart: {paths:?}");
}

#[tokio::test]
async fn the_copy_of_debug_handler_shares_no_scope() {
    let app = Router::new()
        .route("/above", post(debugged_above))
        .route("/below", post(debugged_below))
        .layer(Registry::new(MemoryStore::new()).layer());
    let server = Server::start(app).await;
    for path in ["/above", "/below"] {
        for is_replay in [false, true] {
            let answer = server.post_with_key(path, "k").await;
            assert_eq!((answer.text(), answer.is_replay()), ("once", is_replay), "{path}");
        }
    }
}
