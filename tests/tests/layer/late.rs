//! `Idempotency` that a running handler extracts from the request that it has received.

use std::convert::Infallible;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::response::Response;
use axum::routing::{MethodRouter, post};
use axum::{RequestExt, Router};
use idempotent_runtime::store::{MemoryStore, StoreAdmin};
use idempotent_runtime::{Idempotency, RecordKey, Registry, idempotent};
use idempotent_tests::{Logs, Runs, Server, answer};
use tower::ServiceExt;

/// Returns the key, the downstream key and the result of a step.
async fn describe(runs: &Runs, idempotency: &Idempotency) -> Result<String, Response> {
    let step = idempotency.step("call", async || Ok::<_, Response>(runs.run().await)).await?;
    Ok(format!("{:?} {} {step}", idempotency.key(), idempotency.downstream_key("bank")))
}

#[idempotent(scope = "late-request", cache = [402])]
async fn of_request(State(runs): State<Runs>, mut request: Request) -> Result<String, Response> {
    let Ok(idempotency) = request.extract_parts::<Idempotency>().await;
    describe(&runs, &idempotency).await
}

#[idempotent(scope = "late-parts", cache = [402])]
async fn of_parts(State(runs): State<Runs>, mut parts: Parts, _: Bytes) -> Result<String, Response> {
    let Ok(idempotency) = Idempotency::from_request_parts(&mut parts, &()).await;
    describe(&runs, &idempotency).await
}

#[idempotent(scope = "late-caller", cache = [402], caller = "alice")]
async fn of_request_with_a_caller(State(runs): State<Runs>, mut request: Request) -> Result<String, Response> {
    let Ok(idempotency) = request.extract_parts::<Idempotency>().await;
    describe(&runs, &idempotency).await
}

#[idempotent(scope = "late-parts-caller", cache = [402], caller = "alice")]
async fn of_parts_with_a_caller(State(runs): State<Runs>, mut parts: Parts, _: Bytes) -> Result<String, Response> {
    let Ok(idempotency) = Idempotency::from_request_parts(&mut parts, &()).await;
    describe(&runs, &idempotency).await
}

async fn attempts(route: MethodRouter<Runs>, has_caller: bool) -> ([String; 2], usize, MemoryStore) {
    let (runs, store) = (Runs::free(), MemoryStore::new());
    let mut registry = Registry::builder(store.clone());
    if has_caller {
        registry = registry.caller(|parts| Some(parts.headers.get("x-user")?.to_str().ok()?.to_owned()));
    }
    let app = Router::new().route("/", route).with_state(runs.clone()).layer(registry.build().layer());
    let server = Server::start(app).await;
    let send = async || {
        let answer = answer(server.post("/").header("idempotency-key", "k").header("x-user", "alice")).await;
        if answer.status == 200 { answer.text().to_owned() } else { answer.rejection() }
    };
    ([send().await, send().await], runs.started(), store)
}

#[tokio::test]
async fn late_idempotency_is_that_of_the_running_handler() {
    for (scope, caller, route, has_caller) in [
        ("late-request", None, post(of_request), false),
        ("late-request", Some("alice"), post(of_request), true),
        ("late-parts", None, post(of_parts), false),
        ("late-parts", Some("alice"), post(of_parts), true),
        ("late-caller", Some("alice"), post(of_request_with_a_caller), false),
        ("late-parts-caller", Some("alice"), post(of_parts_with_a_caller), true),
    ] {
        let ([first, second], started, store) = attempts(route, has_caller).await;
        assert!(first.starts_with(r#"Some("k") "#), "{scope} {has_caller}: {first}");
        assert_eq!((&first, started), (&second, 1), "{scope} {has_caller}");
        let step = RecordKey::new(scope, caller, "k").step("call");
        assert!(store.get(&step).await.expect("the store answers").is_some(), "{scope} {has_caller}");
    }
}

/// Only the handler's arguments show to which caller a request belongs, and a copy of `Parts` has no link to its guard.
#[tokio::test]
async fn late_idempotency_of_an_unknown_caller_takes_no_step() {
    let (said, started, _) = attempts(post(of_parts_with_a_caller), false).await;
    assert_eq!((said, started), (["step_failed".to_owned(), "step_failed".to_owned()], 0));
}

/// An `Idempotency` that an extractor before the last argument gets from a copy of the head.
struct OfCopy(Idempotency);

impl<S: Sync> FromRequestParts<S> for OfCopy {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        Idempotency::from_request_parts(&mut parts.clone(), state).await.map(Self)
    }
}

#[idempotent(scope = "late-early-copy", cache = [402])]
async fn of_early_copy(State(runs): State<Runs>, OfCopy(idempotency): OfCopy, _: Bytes) -> Result<String, Response> {
    describe(&runs, &idempotency).await
}

#[idempotent(scope = "late-default", cache = [402])]
async fn of_default(State(runs): State<Runs>, _: Bytes) -> Result<String, Response> {
    describe(&runs, &Idempotency::default()).await
}

#[tokio::test]
async fn idempotency_of_a_copy_before_the_guard_takes_no_step() {
    let logs = Logs::collect();
    let (said, started, _) = attempts(post(of_early_copy), false).await;
    assert_eq!((said, started), (["step_failed".to_owned(), "step_failed".to_owned()], 0));
    assert!(logs.text().contains("that a handler has copied or made"), "{}", logs.text());
    let ([first, _], started, _) = attempts(post(of_default), false).await;
    assert!(first.starts_with("None "), "one that belongs to no request has no guard: {first}");
    assert_eq!(started, 2);
}

#[idempotent(scope = "late-early-key", cache = [402])]
async fn key_of_early_copy(OfCopy(idempotency): OfCopy, _: Bytes) -> String {
    format!("{:?}", idempotency.key())
}

#[idempotent(scope = "late-early-reference", cache = [402])]
async fn reference_of_early_copy(OfCopy(idempotency): OfCopy, _: Bytes) -> String {
    idempotency.downstream_key("bank")
}

/// The library cannot know whose request it is: it has no key, its downstream key is a new one each time, and each call
/// is logged.
#[tokio::test]
async fn key_of_a_copy_before_the_guard_is_none_and_logged() {
    let errors = async |route: MethodRouter<Runs>| {
        let logs = Logs::collect();
        let (said, ..) = attempts(route, false).await;
        (said, logs.of_level("ERROR").iter().filter(|error| error.contains("a handler has copied or made")).count())
    };
    let (keys, logged) = errors(post(key_of_early_copy)).await;
    assert_eq!((keys, logged), (["None".to_owned(), "None".to_owned()], 2));
    let ([first, second], logged) = errors(post(reference_of_early_copy)).await;
    assert_ne!(first, second);
    assert_eq!(logged, 2);
}

#[idempotent(scope = "late-part")]
async fn part(idempotency: Idempotency) -> String {
    format!("{:?}", idempotency.key())
}

#[idempotent(scope = "late-batch", caller = "alice")]
async fn batch(State(registry): State<Registry>, _: Bytes) -> String {
    let request = Request::post("/").header("idempotency-key", "part").body(Body::empty()).expect("a request");
    let parts: Router = Router::new().fallback(part).layer(registry.layer());
    let said = to_bytes(parts.oneshot(request).await.expect("a router answers").into_body(), usize::MAX).await;
    String::from_utf8(said.expect("the body arrives").to_vec()).expect("it is text")
}

/// It is unknown to which caller the request belongs, but the request has its own guard.
#[tokio::test]
async fn part_with_a_key_of_its_own_logs_no_error() {
    let (logs, registry) = (Logs::collect(), Registry::new(MemoryStore::new()));
    let app = Router::new().route("/", post(batch)).with_state(registry.clone()).layer(registry.layer());
    let server = Server::start(app).await;
    assert_eq!(server.post_with_key("/", "k").await.text(), r#"Some("part")"#);
    assert!(!logs.text().contains("that a handler has copied or made"), "{}", logs.text());
}
