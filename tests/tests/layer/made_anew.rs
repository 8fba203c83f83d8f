//! Requests that a handler or a middleware builds anew, without the extensions of the guards. A new request with the
//! same key runs under the claim of the guard that sends it.

use std::convert::Infallible;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use idempotent_runtime::store::{MemoryStore, StoreAdmin};
use idempotent_runtime::{Idempotency, IdempotencyLayer, Policy, RecordKey, Registry, idempotent};
use idempotent_tests::{Logs, Runs, Server};
use tower::ServiceExt;

/// axum copies `Parts` for an argument before the last one, before the guard has seen the request.
fn copy(parts: &Parts) -> Request {
    Request::from_parts(parts.clone(), Body::empty())
}

/// Calls the inner handler, as the application's code may do.
async fn send(runs: &Runs, request: Request) -> Response {
    let router: Router =
        Router::new().route("/waits", post(beneath_waiting)).fallback(beneath).with_state(runs.clone());
    router.oneshot(request).await.expect("a router answers")
}

#[idempotent(scope = "anew", shared_scope)]
async fn sends_copy(State(runs): State<Runs>, parts: Parts, _: Bytes) -> Response {
    runs.run().await;
    send(&runs, copy(&parts)).await
}

#[idempotent(scope = "anew", shared_scope)]
async fn beneath(State(runs): State<Runs>, idempotency: Idempotency) -> Result<String, Response> {
    let run = idempotency.step("run", async || Ok::<_, Response>(runs.run().await)).await?;
    Ok(format!("{:?} run {run}", idempotency.key()))
}

#[idempotent(scope = "anew-waits", shared_scope, in_flight = wait("20s"))]
async fn sends_copy_waiting(State(runs): State<Runs>, parts: Parts, _: Bytes) -> Response {
    runs.run().await;
    send(&runs, copy(&parts)).await
}

#[idempotent(scope = "anew-waits", shared_scope, in_flight = wait("20s"))]
async fn beneath_waiting(State(runs): State<Runs>, idempotency: Idempotency) -> String {
    format!("{:?} run {}", idempotency.key(), runs.run().await)
}

#[tokio::test]
async fn request_made_anew_runs_under_the_claim_of_its_sender() {
    for (path, has_step) in [("/", true), ("/waits", false)] {
        let (runs, store) = (Runs::free(), MemoryStore::new());
        let app = Router::new().route("/", post(sends_copy)).route("/waits", post(sends_copy_waiting));
        let server = Server::start(app.with_state(runs.clone()).layer(Registry::new(store.clone()).layer())).await;
        for is_replay in [false, true] {
            let answer = server.post_with_key(path, "k").await;
            assert_eq!((answer.text(), answer.is_replay()), (r#"Some("k") run 2"#, is_replay), "{path}");
        }
        assert_eq!(runs.started(), 2);
        let step = RecordKey::new("anew", None, "k").step("run");
        assert_eq!(store.get(&step).await.expect("the store answers").is_some(), has_step);
    }
}

/// Like a middleware that uses another version of the crate `http`.
async fn rebuild(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let mut rebuilt = Request::new(body);
    (*rebuilt.method_mut(), *rebuilt.uri_mut(), *rebuilt.headers_mut()) = (parts.method, parts.uri, parts.headers);
    next.run(rebuilt).await
}

#[tokio::test]
async fn request_rebuilt_beneath_a_layer_of_its_scope_runs() {
    let (runs, registry) = (Runs::free(), Registry::new(MemoryStore::new()));
    let policy = Policy::builder("anew").cache_all().build().expect("a valid policy");
    let app = Router::new().route("/", post(beneath)).with_state(runs.clone()).layer(registry.layer());
    let guarded = app.layer(from_fn(rebuild)).layer(IdempotencyLayer::new(policy).with_registry(registry));
    let server = Server::start(guarded).await;
    for is_replay in [false, true] {
        let answer = server.post_with_key("/", "k").await;
        assert_eq!((answer.text(), answer.is_replay()), (r#"Some("k") run 1"#, is_replay));
    }
    assert_eq!(runs.started(), 1);
}

#[idempotent(scope = "anew", shared_scope)]
async fn sends_two_copies(State(runs): State<Runs>, parts: Parts, _: Bytes) -> Response {
    let (first, second) = (send(&runs, copy(&parts)).await, send(&runs, copy(&parts)).await);
    assert_eq!((first.status(), second.status()), (StatusCode::OK, StatusCode::CONFLICT));
    first
}

#[tokio::test]
async fn request_made_anew_twice_under_one_claim_runs_once() {
    let (logs, runs) = (Logs::collect(), Runs::free());
    let app = Router::new().route("/", post(sends_two_copies)).with_state(runs.clone());
    let server = Server::start(app.layer(Registry::new(MemoryStore::new()).layer())).await;
    for is_replay in [false, true] {
        let answer = server.post_with_key("/", "k").await;
        assert_eq!((answer.text(), answer.is_replay()), (r#"Some("k") run 1"#, is_replay));
    }
    assert_eq!(runs.started(), 1);
    assert!(logs.text().contains("something sent a request twice under one claim"), "{}", logs.text());
}

#[idempotent(scope = "anew-itself")]
async fn sends_copy_to_itself(State(runs): State<Runs>, parts: Parts, _: Bytes) -> String {
    if runs.run().await > 1 {
        return "a second run".to_owned();
    }
    let router: Router = Router::new().fallback(sends_copy_to_itself).with_state(runs);
    router.oneshot(copy(&parts)).await.expect("a router answers").status().to_string()
}

/// If a handler polls requests of other clients, as a batch may, a duplicate must not count as a part of the handler's
/// own request.
#[tokio::test]
async fn request_made_anew_for_its_own_handler_is_a_duplicate() {
    let runs = Runs::free();
    let app = Router::new().route("/", post(sends_copy_to_itself)).with_state(runs.clone());
    let server = Server::start(app.layer(Registry::new(MemoryStore::new()).layer())).await;
    assert_eq!((server.post_with_key("/", "k").await.text(), runs.started()), ("409 Conflict", 1));
}

#[idempotent(scope = "anew", shared_scope)]
async fn sends_copy_in_a_task(State(runs): State<Runs>, parts: Parts, _: Bytes) -> String {
    let sending = tokio::spawn(async move { send(&runs, copy(&parts)).await.status() });
    sending.await.expect("it answers").to_string()
}

/// Nothing distinguishes it from a duplicate of another client.
#[tokio::test]
async fn request_made_anew_in_another_task_is_a_duplicate() {
    let runs = Runs::free();
    let app = Router::new().route("/", post(sends_copy_in_a_task)).with_state(runs.clone());
    let server = Server::start(app.layer(Registry::new(MemoryStore::new()).layer())).await;
    assert_eq!((server.post_with_key("/", "k").await.text(), runs.started()), ("409 Conflict", 0));
}

/// A response whose body sends the request to the inner handler, in its first poll or in a later one.
fn body_that_sends(runs: Runs, request: Request, yields: bool) -> Response {
    let sending = async move {
        if yields {
            tokio::task::yield_now().await;
        }
        let response = send(&runs, request).await;
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), usize::MAX).await.expect("the body arrives");
        Ok::<_, Infallible>(Bytes::from(format!("{status} {}", String::from_utf8_lossy(&body))))
    };
    Body::from_stream(sending.into_stream()).into_response()
}

#[idempotent(scope = "anew-waits", shared_scope, in_flight = wait("20s"))]
async fn sends_from_its_body(State(runs): State<Runs>, uri: Uri, parts: Parts, _: Bytes) -> Response {
    runs.run().await;
    let mut request = copy(&parts);
    *request.uri_mut() = Uri::from_static("/waits");
    body_that_sends(runs, request, uri.path() == "/yields")
}

/// The inner handler whose body sends the request runs under the outer handler's claim.
#[idempotent(scope = "anew-waits", shared_scope, in_flight = wait("20s"))]
async fn sends_from_a_covered_body(State(runs): State<Runs>, parts: Parts, _: Bytes) -> Response {
    let request = copy(&parts);
    let router: Router = Router::new().fallback(sends_from_its_body).with_state(runs);
    router.oneshot(request).await.expect("a router answers")
}

#[tokio::test]
async fn request_made_anew_by_the_body_runs_under_the_claim() {
    let runs = Runs::free();
    let app = Router::new()
        .route("/at-once", post(sends_from_its_body))
        .route("/yields", post(sends_from_its_body))
        .route("/covered", post(sends_from_a_covered_body))
        .with_state(runs.clone());
    let server = Server::start(app.layer(Registry::new(MemoryStore::new()).layer())).await;
    for path in ["/at-once", "/yields", "/covered"] {
        let before = runs.started();
        for is_replay in [false, true] {
            let answer = server.post_with_key(path, path).await;
            let expected = format!("200 {:?} run {}", Some(path), before + 2);
            assert_eq!((answer.text(), answer.is_replay()), (expected.as_str(), is_replay), "{path}");
        }
        assert_eq!(runs.started(), before + 2, "{path}");
    }
}

struct Outer;
struct Inner;

trait Relay: Send + Sync + 'static {
    fn relay(runs: Runs, request: Request) -> BoxFuture<'static, Response>;
}

impl Relay for Outer {
    fn relay(runs: Runs, request: Request) -> BoxFuture<'static, Response> {
        let beneath: Router = Router::new().fallback(relay::<Inner>).with_state(runs);
        Box::pin(async move { beneath.oneshot(request).await.expect("a router answers") })
    }
}

impl Relay for Inner {
    fn relay(runs: Runs, _: Request) -> BoxFuture<'static, Response> {
        Box::pin(async move { format!("run {}", runs.run().await).into_response() })
    }
}

#[idempotent(scope = "anew-generic")]
async fn relay<R: Relay>(State(runs): State<Runs>, parts: Parts, _: Bytes) -> Response {
    R::relay(runs, copy(&parts)).await
}

#[idempotent(scope = "anew-routes", methods = [POST, PUT])]
async fn relays_once(State(runs): State<Runs>, method: Method, parts: Parts, _: Bytes) -> Response {
    let run = runs.run().await;
    if run > 1 {
        return format!("run {run}").into_response();
    }
    let mut request = copy(&parts);
    if parts.uri.path() == "/to-another-path" {
        *request.uri_mut() = Uri::from_static("/inner");
    }
    if parts.uri.path() == "/to-another-method" {
        assert_eq!(method, Method::POST);
        *request.method_mut() = Method::PUT;
    }
    let router: Router = Router::new().fallback(relays_once).with_state(runs);
    router.oneshot(request).await.expect("a router answers")
}

/// Several handlers may have one policy.
#[tokio::test]
async fn request_made_anew_for_another_handler_of_its_policy_runs() {
    for (path, expected) in
        [("/generic", "run 1"), ("/layer", "run 1"), ("/to-another-path", "run 2"), ("/to-another-method", "run 2")]
    {
        let (runs, registry) = (Runs::free(), Registry::new(MemoryStore::new()));
        let policy = Policy::builder("anew-layer").build().expect("a valid policy");
        let layer = IdempotencyLayer::new(policy).with_registry(registry.clone());
        let inner = post(async |State(runs): State<Runs>| format!("run {}", runs.run().await));
        let inner = Router::new().route("/inner", inner).with_state(runs.clone()).layer(layer.clone());
        let outer = async move |parts: Parts, _: Bytes| {
            inner.clone().oneshot(without_guards(&parts, "/inner")).await.expect("a router answers")
        };
        let app = Router::new()
            .route("/generic", post(relay::<Outer>))
            .route("/layer", post(outer).layer(layer))
            .fallback(relays_once)
            .with_state(runs.clone());
        let server = Server::start(app.layer(registry.layer())).await;
        for is_replay in [false, true] {
            let answer = server.post_with_key(path, "k").await;
            assert_eq!((answer.text(), answer.is_replay()), (expected, is_replay), "{path}");
        }
    }
}

/// A request for this path, without the extensions of the layer.
fn without_guards(parts: &Parts, path: &'static str) -> Request {
    let mut request = Request::new(Body::empty());
    (*request.method_mut(), *request.headers_mut()) = (parts.method.clone(), parts.headers.clone());
    *request.uri_mut() = Uri::from_static(path);
    request
}

/// The same handler on the same route: it may be polling a duplicate of another client.
#[tokio::test]
async fn request_made_anew_for_its_own_layer_is_a_duplicate() {
    let (runs, registry) = (Runs::free(), Registry::new(MemoryStore::new()));
    let policy = Policy::builder("anew-own-layer").build().expect("a valid policy");
    let layer = IdempotencyLayer::new(policy).with_registry(registry);
    let inner = post(async |State(runs): State<Runs>| format!("run {}", runs.run().await)).with_state(runs.clone());
    let inner = Router::new().route("/", inner).layer(layer.clone());
    let outer = async move |parts: Parts, _: Bytes| {
        inner.clone().oneshot(without_guards(&parts, "/")).await.expect("a router answers").status().to_string()
    };
    let server = Server::start(Router::new().route("/", post(outer)).layer(layer)).await;
    assert_eq!((server.post_with_key("/", "k").await.text(), runs.started()), ("409 Conflict", 0));
}
