//! Requests that a handler or a middleware makes anew, without what the guards have put into the one that it got: one of the
//! same key runs under the claim of the guard that sends it.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::post;
use idempotent_runtime::store::{MemoryStore, StoreAdmin};
use idempotent_runtime::{Idempotency, IdempotencyLayer, Policy, RecordKey, Registry, idempotent};
use idempotent_tests::{Logs, Runs, Server};
use tower::ServiceExt;

/// Axum copies `Parts` for an argument before the last one: before the guard has seen the request.
fn copy(parts: &Parts) -> Request {
    Request::from_parts(parts.clone(), Body::empty())
}

/// The handler beneath, called as the application's code may call it.
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

/// As a middleware that talks to another version of the crate `http` makes it.
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

/// A handler that polls what other clients have sent, as a batch may, must not take a duplicate for a part of itself.
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

/// Nothing tells it from another client's duplicate.
#[tokio::test]
async fn request_made_anew_in_another_task_is_a_duplicate() {
    let runs = Runs::free();
    let app = Router::new().route("/", post(sends_copy_in_a_task)).with_state(runs.clone());
    let server = Server::start(app.layer(Registry::new(MemoryStore::new()).layer())).await;
    assert_eq!((server.post_with_key("/", "k").await.text(), runs.started()), ("409 Conflict", 0));
}
