//! What the extractor `Idempotency` tells a handler about its key.

use axum::Router;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::post;
use idempotent_runtime::store::{AfterCrash, Claim, ClaimRequest, MemoryStore, RedisStore, Store, StoreAdmin, Token};
use idempotent_runtime::testing::decoders::fingerprint_of_nothing;
use idempotent_runtime::{Idempotency, RecordKey, Registry, idempotent};
use idempotent_tests::redis::RedisServer;
use idempotent_tests::{Runs, Server, answer, stores};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tower::ServiceExt;

fn describe(idempotency: &Idempotency) -> axum::Json<Value> {
    axum::Json(json!({
        "key": idempotency.key(),
        "attempt": idempotency.attempt(),
        "stripe": idempotency.downstream_key("stripe"),
        "mail": idempotency.downstream_key("mail"),
    }))
}

#[idempotent(scope = "first", fingerprint = none, cache = [201])]
async fn as_first_argument(idempotency: Idempotency, State(runs): State<Runs>, _body: String) -> axum::Json<Value> {
    runs.run().await;
    describe(&idempotency)
}

#[idempotent(scope = "last", caller = "alice", fingerprint = none, cache = [201])]
async fn as_last_argument(idempotency: Idempotency) -> axum::Json<Value> {
    describe(&idempotency)
}

/// Forwards the request, like a gateway in front of other handlers.
#[idempotent(scope = "forwards")]
async fn forwards(request: Request) -> Response {
    let inner = Router::new().route("/forwards", post(as_last_argument));
    inner.oneshot(request).await.expect("a router answers")
}

async fn not_annotated(idempotency: Idempotency) -> axum::Json<Value> {
    describe(&idempotency)
}

async fn serve(store: impl StoreAdmin) -> Server {
    let app = Router::new()
        .route("/first", post(as_first_argument))
        .route("/last", post(as_last_argument))
        .route("/plain", post(not_annotated))
        .route("/forwards", post(forwards))
        .with_state(Runs::free())
        .layer(Registry::new(store).layer());
    Server::start(app).await
}

#[tokio::test]
async fn downstream_key_differs_by_all_but_the_attempt() {
    let server = serve(MemoryStore::new()).await;
    let first = server.post_with_key("/first", "k").await.json();
    assert_eq!((&first["key"], &first["attempt"]), (&json!("k"), &json!(1)));
    // 200 is not recorded here, so the handler runs again.
    assert_eq!(server.post_with_key("/first", "\"k\"").await.json(), first);
    assert_ne!(first["stripe"], first["mail"]);
    let others =
        [server.post_with_key("/first", "other").await.json(), server.post_with_key("/last", "k").await.json()];
    for other in others {
        assert_ne!(other["stripe"], first["stripe"]);
    }
    let text = first["stripe"].as_str().expect("text");
    assert!(text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit()), "{text}");
}

async fn downstream_key_survives_a_crash_that_the_attempt_counts<S: StoreAdmin>(store: S) -> Value {
    let store = Arc::new(store);
    let server = serve(Arc::clone(&store)).await;
    let first = server.post_with_key("/first", "k").await.json();
    let key = RecordKey::new("first", None, "k");
    let request = ClaimRequest::new(Token::unique(), fingerprint_of_nothing(&key))
        .with_lease(Duration::ZERO)
        .with_ttl(Duration::from_hours(1))
        .with_after_crash(AfterCrash::Rerun);
    let claim = store.claim(&key, request).await.expect("the store answers");
    assert_eq!(claim, Claim::Acquired { attempt: 1 });
    let second = server.post_with_key("/first", "k").await.json();
    assert_eq!(second["attempt"], 2);
    assert_eq!(second["stripe"], first["stripe"]);
    second["stripe"].clone()
}

#[tokio::test]
async fn downstream_key_survives_a_crash_on_every_store() {
    let (sqlite, _folder) = stores::sqlite().await;
    let postgres = stores::postgres(4).await;
    let redis = RedisStore::connect(&RedisServer::shared().await.url()).await.expect("the store opens");
    let keys = [
        downstream_key_survives_a_crash_that_the_attempt_counts(MemoryStore::new()).await,
        downstream_key_survives_a_crash_that_the_attempt_counts(sqlite).await,
        downstream_key_survives_a_crash_that_the_attempt_counts(postgres).await,
        downstream_key_survives_a_crash_that_the_attempt_counts(redis).await,
    ];
    assert!(keys.iter().all(|key| *key == keys[0]), "also after a change of the store: {keys:?}");
}

#[tokio::test]
async fn handler_forwarded_to_sees_its_own_key() {
    let server = serve(MemoryStore::new()).await;
    let inner = server.post_with_key("/last", "k").await.json();
    assert_eq!(server.post_with_key("/forwards", "k").await.json(), inner);
}

#[tokio::test]
async fn without_a_key_each_request_is_an_execution_of_its_own() {
    let server = serve(MemoryStore::new()).await;
    for path in ["/first", "/last", "/plain"] {
        let first = answer(server.post(path)).await.json();
        let second = answer(server.post(path)).await.json();
        assert_eq!((&first["key"], &first["attempt"]), (&Value::Null, &json!(1)), "{path}");
        assert_ne!(first["stripe"], second["stripe"], "{path}");
        assert_ne!(first["stripe"], first["mail"], "{path}");
    }
}
