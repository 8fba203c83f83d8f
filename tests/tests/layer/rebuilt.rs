//! Requests that a middleware between two guards has built anew: each guard finds the nearest outer guard, whatever
//! their keys are.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::{MethodRouter, post};
use futures_util::future::BoxFuture;
use idempotent_runtime::store::{MemoryStore, SqliteStore, StoreAdmin};
use idempotent_runtime::{Idempotency, IdempotencyLayer, Policy, PolicyBuilder, RecordKey, Registry, Tx, idempotent};
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::{FaultyStore, Runs, Server, answer};
use sqlx::Sqlite;
use tokio::sync::{Mutex, mpsc, oneshot};
use tower::ServiceExt;

fn layer(policy: PolicyBuilder, registry: &Registry) -> IdempotencyLayer {
    IdempotencyLayer::new(policy.build().expect("a valid policy")).with_registry(registry.clone())
}

/// The same request, without the extensions of the guards.
fn anew(parts: &Parts, body: Body) -> Request {
    let mut request = Request::new(body);
    (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) =
        (parts.method.clone(), parts.uri.clone(), parts.headers.clone());
    request
}

async fn rebuild(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    next.run(anew(&parts, body)).await
}

/// The handler inside of a middleware that rebuilds its request, inside of a layer.
fn beneath(route: MethodRouter<Runs>, runs: &Runs, policy: PolicyBuilder, registry: &Registry) -> Router {
    let app = Router::new().route("/", route).with_state(runs.clone()).layer(registry.layer());
    app.layer(from_fn(rebuild)).layer(layer(policy, registry))
}

#[idempotent(scope = "rebuilt-busy")]
async fn busy(State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

#[tokio::test]
async fn rejection_of_a_rebuilt_request_is_not_recorded() {
    let (runs, store) = (Runs::free(), FaultyStore::new());
    let registry = Registry::new(store.clone());
    let key = RecordKey::new("rebuilt-busy", None, "k");
    let other = store.seed_in_flight(key.clone()).await;
    let policy = Policy::builder("rebuilt-busy-api").cache((200..=299).chain([409]));
    let server = Server::start(beneath(post(busy), &runs, policy, &registry)).await;
    assert_eq!(server.post_with_key("/", "k").await.rejection(), "in_flight");
    assert!(store.purge(&key).await.expect("the store answers"));
    drop(other);
    assert_eq!(server.post_with_key("/", "k").await.text(), "run 1");
}

#[idempotent(scope = "rebuilt-402", cache = [402])]
async fn records_402(State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

#[tokio::test]
async fn handler_of_a_rebuilt_request_keeps_its_policy() {
    let (runs, registry) = (Runs::free(), Registry::new(MemoryStore::new()));
    let app = beneath(post(records_402), &runs, Policy::builder("rebuilt-402-api"), &registry);
    let server = Server::start(app).await;
    for run in ["run 1", "run 2"] {
        assert_eq!(server.post_with_key("/", "k").await.text(), run);
    }
}

async fn tells_key(idempotency: Idempotency) -> String {
    format!("{:?} {}", idempotency.key(), idempotency.downstream_key("bank"))
}

#[idempotent(scope = "rebuilt-other-header", header = "x-other")]
async fn tells_key_of_layer(idempotency: Idempotency) -> String {
    tells_key(idempotency).await
}

#[idempotent(scope = "rebuilt-default-header")]
async fn tells_key_of_other_layer(idempotency: Idempotency) -> String {
    tells_key(idempotency).await
}

#[tokio::test]
async fn handler_of_a_rebuilt_request_sees_the_key_of_its_layer() {
    let (default, other) = ("idempotency-key", "x-other");
    let routes =
        [(post(tells_key), default), (post(tells_key_of_layer), default), (post(tells_key_of_other_layer), other)];
    for (route, header) in routes {
        let registry = Registry::new(MemoryStore::new());
        let policy = Policy::builder("rebuilt-key-api").cache([402]).header(header);
        let server = Server::start(beneath(route, &Runs::free(), policy, &registry)).await;
        let send = || answer(server.post("/").header(header, "k"));
        let first = send().await;
        assert!(first.text().starts_with(r#"Some("k") "#), "{header}: {first:?}");
        assert_eq!(first.text(), send().await.text());
    }
}

/// Has no key of its own, and sends a request that has nothing of the guards around this one.
#[idempotent(scope = "rebuilt-in-tx", header = "x-other")]
async fn sends_in_transaction(_tx: Tx<Sqlite>, parts: Parts, _: Bytes) -> Response {
    let beneath: Router = Router::new().fallback(tells_key);
    beneath.oneshot(anew(&parts, Body::empty())).await.expect("a router answers")
}

#[tokio::test]
async fn request_sent_by_a_tx_without_a_key_sees_the_key_of_the_layer() {
    let file = SqliteFile::new();
    let registry = Registry::new(SqliteStore::open(file.path()).await.expect("the store opens"));
    let policy = Policy::builder("rebuilt-in-tx-api").cache([402]);
    let app = Router::new().route("/", post(sends_in_transaction)).layer(registry.layer());
    let server = Server::start(app.layer(layer(policy, &registry))).await;
    let first = server.post_with_key("/", "k").await;
    assert!(first.text().starts_with(r#"Some("k") "#), "{first:?}");
    assert_eq!(first.text(), server.post_with_key("/", "k").await.text());
}

#[idempotent(scope = "rebuilt-twice", shared_scope, after_crash = "reject")]
async fn sends_twice(State((runs, registry)): State<(Runs, Registry)>, parts: Parts, _: Bytes) -> Response {
    let send = async || {
        let policy = Policy::builder("rebuilt-twice-api").cache((200..=299).chain([409]));
        let beneath: Router =
            Router::new().fallback(fails_first).with_state(runs.clone()).layer(layer(policy, &registry));
        beneath.oneshot(anew(&parts, Body::empty())).await.expect("a router answers")
    };
    assert_eq!(send().await.status(), StatusCode::SERVICE_UNAVAILABLE);
    send().await
}

#[idempotent(scope = "rebuilt-twice", shared_scope, after_crash = "reject")]
async fn fails_first(State(runs): State<Runs>) -> (StatusCode, String) {
    let run = runs.run().await;
    (if run == 1 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }, format!("run {run}"))
}

#[tokio::test]
async fn second_run_made_anew_through_a_layer_is_never_recorded() {
    let (runs, store) = (Runs::free(), MemoryStore::new());
    let registry = Registry::new(store.clone());
    let app = Router::new().route("/", post(sends_twice)).with_state((runs.clone(), registry.clone()));
    let server = Server::start(app.layer(registry.layer())).await;
    assert_eq!(server.post_with_key("/", "k").await.rejection(), "in_flight");
    let between = store.get(&RecordKey::new("rebuilt-twice-api", None, "k")).await.expect("the store answers");
    assert!(between.is_none(), "{between:?}");
    assert_eq!(server.post_with_key("/", "k").await.rejection(), "outcome_unknown");
    assert_eq!(runs.started(), 1);
}

#[idempotent(scope = "rebuilt-chain", shared_scope)]
async fn outermost(State((runs, registry)): State<(Runs, Registry)>, parts: Parts, _: Bytes) -> Response {
    let between = layer(Policy::builder("rebuilt-chain-between"), &registry);
    let beneath: Router = Router::new().fallback(forwards).with_state(runs).layer(registry.layer()).layer(between);
    beneath.oneshot(anew(&parts, Body::empty())).await.expect("a router answers")
}

#[idempotent(scope = "rebuilt-chain", shared_scope)]
async fn forwards(State(runs): State<Runs>, request: Request) -> Response {
    let beneath: Router = Router::new().fallback(innermost).with_state(runs);
    let sending = tokio::spawn(beneath.oneshot(request));
    sending.await.expect("it does not panic").expect("a router answers")
}

#[idempotent(scope = "rebuilt-chain-between", shared_scope)]
async fn innermost(State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

#[tokio::test]
async fn forwarded_request_knows_the_layer_around_its_sender() {
    let (runs, registry) = (Runs::free(), Registry::new(MemoryStore::new()));
    let app = Router::new().route("/", post(outermost)).with_state((runs.clone(), registry.clone()));
    let server = Server::start(app.layer(registry.layer())).await;
    for is_replay in [false, true] {
        let answer = server.post_with_key("/", "k").await;
        assert_eq!((answer.text(), answer.is_replay()), ("run 1", is_replay));
    }
    assert_eq!(runs.started(), 1);
}

type Job = (BoxFuture<'static, Response>, oneshot::Sender<Response>);

#[derive(Clone)]
struct Leading {
    jobs: Arc<Mutex<mpsc::Receiver<Job>>>,
    runs: Runs,
}

/// Polls the request of another client, and fails.
#[idempotent(scope = "rebuilt-leader", shared_scope)]
async fn leads(State(state): State<Leading>) -> StatusCode {
    let (job, done) = state.jobs.lock().await.recv().await.expect("a request comes");
    done.send(job.await).expect("its sender waits");
    StatusCode::BAD_GATEWAY
}

#[idempotent(scope = "rebuilt-leader", shared_scope, after_crash = "reject")]
async fn is_led(State(state): State<Leading>) -> String {
    format!("run {}", state.runs.run().await)
}

/// Runs the leader under `lead` as alice. The leader polls bob's request.
async fn poll_for_bob(caller_is_named: bool, bob_has_key: bool, path: &str) -> (String, usize) {
    let (sender, jobs) = mpsc::channel::<Job>(1);
    let state = Leading { jobs: Arc::new(Mutex::new(jobs)), runs: Runs::free() };
    let hand_over = move |request: Request, next: Next| {
        let sender = sender.clone();
        async move {
            let (done, answered) = oneshot::channel();
            let job: Job = (Box::pin(next.run(request)), done);
            sender.send(job).await.expect("the leader still runs");
            answered.await.expect("the leader answers")
        }
    };
    let mut registry = Registry::builder(MemoryStore::new());
    if caller_is_named {
        registry = registry.caller(|parts| Some(parts.headers.get("x-user")?.to_str().ok()?.to_owned()));
    }
    let app = Router::new()
        .route("/led", post(is_led))
        .route("/plain", post(tells_key))
        .layer(from_fn(hand_over))
        .route("/lead", post(leads))
        .with_state(state.clone())
        .layer(registry.build().layer());
    let server = Server::start(app).await;
    let of = |path: &str, user: &str| {
        let request = server.post(path).header("x-user", user);
        if caller_is_named { request } else { request.header("authorization", user) }
    };
    let leader = tokio::spawn(answer(of("/lead", "alice").header("idempotency-key", "k")));
    let bob = of(path, "bob");
    let bob = answer(if bob_has_key { bob.header("idempotency-key", "k") } else { bob }).await;
    assert_eq!(leader.await.expect("it answers").status, StatusCode::BAD_GATEWAY);
    let said = if bob.status.is_success() { bob.text().to_owned() } else { bob.rejection() };
    (said, state.runs.started())
}

#[tokio::test]
async fn request_of_another_client_is_no_part_of_its_poller() {
    assert_eq!(poll_for_bob(false, true, "/led").await, ("other_credentials".to_owned(), 0));
    assert_eq!(poll_for_bob(true, true, "/led").await, ("run 1".to_owned(), 1));
    for caller_is_named in [false, true] {
        let (said, _) = poll_for_bob(caller_is_named, false, "/plain").await;
        assert!(said.starts_with("None "), "{said}");
    }
}
