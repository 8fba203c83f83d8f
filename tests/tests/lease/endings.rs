//! A handler's task is aborted, its runtime goes, its server stops: each ends as documented.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use axum::routing::post;
use idempotent_runtime::store::{EntryState, MemoryStore, StoreAdmin};
use idempotent_runtime::{Idempotency, RecordKey, Registry, idempotent};
use idempotent_tests::{Logs, PATIENCE, Runs, Server, eventually};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;

#[idempotent(scope = "charges", lease = "500ms", in_flight = wait("20s"))]
async fn create_charge(State(runs): State<Runs>, idempotency: Idempotency) -> (StatusCode, String) {
    runs.run().await;
    (StatusCode::CREATED, format!("attempt {}", idempotency.attempt()))
}

#[idempotent(scope = "ending-panics")]
async fn panics(State(runs): State<Runs>) -> String {
    let run = runs.run().await;
    assert!(run > 1, "run {run} panics");
    format!("run {run}")
}

/// An extractor with a mistake in it.
struct Panics;

impl<S: Sync> FromRequestParts<S> for Panics {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, StatusCode> {
        assert!(!parts.headers.contains_key("x-panic"), "the extractor panics");
        Ok(Self)
    }
}

#[idempotent(scope = "extracts")]
async fn extracts(State(runs): State<Runs>, _: Panics) -> String {
    format!("run {}", runs.run().await)
}

/// As `extracts`, with the extractor as the argument that the attribute wraps.
#[idempotent(scope = "extracts-first")]
async fn extracts_first(_: Panics, State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

fn app(runs: &Runs, registry: &Registry) -> Router {
    Router::new()
        .route("/charges", post(create_charge))
        .route("/panics", post(panics))
        .route("/extracts", post(extracts))
        .route("/extracts-first", post(extracts_first))
        .with_state(runs.clone())
        .layer(registry.layer())
}

async fn call(app: Router) -> Response {
    // With the host of those that come over the network.
    let request = Request::post("/charges").header("host", "127.0.0.1").header("idempotency-key", "k");
    let request = request.body(Body::empty());
    app.oneshot(request.expect("a well-formed request")).await.expect("infallible")
}

async fn text(response: Response) -> String {
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.expect("the body arrives");
    String::from_utf8(body.to_vec()).expect("the body is text")
}

#[tokio::test]
async fn a_task_that_is_aborted_leaves_its_handler_to_its_end() {
    let (runs, registry) = (Runs::held(), Registry::new(MemoryStore::new()));
    let task = tokio::spawn(call(app(&runs, &registry)));
    runs.until_started(1).await;
    task.abort();
    assert!(task.await.expect_err("it is aborted").is_cancelled());
    assert_eq!(registry.drain(Duration::ZERO).await, 1, "it goes on");
    runs.let_finish(1);
    assert_eq!(registry.drain(PATIENCE).await, 0);
    let retry = call(app(&runs, &registry)).await;
    assert!(retry.headers().contains_key("idempotent-replayed"));
    assert_eq!((text(retry).await.as_str(), runs.started()), ("attempt 1", 1));
}

#[tokio::test]
async fn uncaught_panic_breaks_its_connection_and_frees_the_key() {
    let (runs, store) = (Runs::free(), MemoryStore::new());
    let server = Server::start(app(&runs, &Registry::new(store.clone()))).await;
    let broken = server.post("/panics").header("idempotency-key", "k").send().await;
    assert!(broken.is_err(), "{broken:?}");
    eventually(async || store.len(), |&entries| entries == 0).await;
    assert_eq!(server.post_with_key("/panics", "k").await.text(), "run 2");
    assert!(server.post_with_key("/panics", "k").await.is_replay());
}

#[tokio::test]
async fn a_panic_in_an_extractor_claims_nothing() {
    for path in ["/extracts", "/extracts-first"] {
        let (runs, store) = (Runs::free(), MemoryStore::new());
        let registry = Registry::new(store.clone());
        let server = Server::start(app(&runs, &registry).layer(CatchPanicLayer::new())).await;
        let request = server.post(path).header("idempotency-key", "k").header("x-panic", "yes");
        let panicked = idempotent_tests::answer(request).await;
        assert_eq!(panicked.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!((runs.started(), store.len(), registry.drain(Duration::ZERO).await), (0, 0, 0), "{path}");
        assert_eq!(server.post_with_key(path, "k").await.text(), "run 1");
        assert!(server.post_with_key(path, "k").await.is_replay());
    }
}

#[test]
fn a_runtime_that_ends_after_a_drain_has_recorded_everything() {
    let (runs, store) = (Runs::held(), MemoryStore::new());
    let first = Runtime::new().expect("a runtime");
    first.block_on(async {
        let registry = Registry::new(store.clone());
        let task = tokio::spawn(call(app(&runs, &registry)));
        runs.until_started(1).await;
        task.abort();
        assert_eq!(registry.drain(Duration::from_millis(50)).await, 1, "what is left at the end of its patience");
        runs.let_finish(1);
        assert_eq!(registry.drain(PATIENCE).await, 0);
    });
    drop(first);
    Runtime::new().expect("a runtime").block_on(async {
        let retry = call(app(&runs, &Registry::new(store))).await;
        assert!(retry.headers().contains_key("idempotent-replayed"));
        assert_eq!((text(retry).await.as_str(), runs.started()), ("attempt 1", 1));
    });
}

#[test]
fn runtime_ended_without_drain_leaves_a_claim_until_its_lease() {
    let (runs, store) = (Runs::held(), MemoryStore::new());
    let first = Runtime::new().expect("a runtime");
    first.block_on(async {
        tokio::spawn(call(app(&runs, &Registry::new(store.clone()))));
        runs.until_started(1).await;
    });
    drop(first);
    assert_eq!((runs.started(), runs.finished()), (1, 0), "it died in the handler");
    Runtime::new().expect("a runtime").block_on(async {
        let key = RecordKey::new("charges", None, "k");
        let entry = store.get(&key).await.expect("the store answers").expect("the key has an entry");
        assert!(matches!(entry.state, EntryState::Claimed { attempt: 1, .. }), "{entry:?}");
        runs.let_finish(1);
        // A waiter of a dead process is told when the lease has expired, and executes nothing.
        let waiter = call(app(&runs, &Registry::new(store.clone()))).await;
        assert_eq!((waiter.status(), runs.started()), (StatusCode::CONFLICT, 1));
        assert!(text(waiter).await.contains("\"not_recorded\""));
        let retry = call(app(&runs, &Registry::new(store))).await;
        assert!(!retry.headers().contains_key("idempotent-replayed"));
        assert_eq!((text(retry).await.as_str(), runs.started()), ("attempt 2", 2));
    });
}

#[tokio::test]
async fn drain_waits_for_clientless_handlers_and_a_stop_does_not() {
    let (runs, registry, logs) = (Runs::held(), Registry::new(MemoryStore::new()), Logs::collect());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
    let address = listener.local_addr().expect("a bound listener has an address");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = axum::serve(listener, app(&runs, &registry));
    let serving = tokio::spawn(async move { serving.with_graceful_shutdown(async { drop(stopped.await) }).await });
    let url = format!("http://{address}/charges");
    let client = tokio::spawn(reqwest::Client::new().post(url).header("idempotency-key", "k").send());
    runs.until_started(1).await;
    client.abort();
    eventually(async || logs.text(), |text| text.contains("the handler continues")).await;
    drop(stop);
    let served = tokio::time::timeout(PATIENCE, serving).await.expect("the server stops");
    served.expect("the task runs").expect("the server runs");
    assert_eq!((runs.finished(), registry.drain(Duration::ZERO).await), (0, 1), "the handler still runs");
    runs.let_finish(1);
    assert_eq!(registry.drain(PATIENCE).await, 0);
    let retry = call(app(&runs, &registry)).await;
    assert!(retry.headers().contains_key("idempotent-replayed"));
    assert_eq!(runs.started(), 1);
}
