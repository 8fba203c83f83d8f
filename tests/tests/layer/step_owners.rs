//! To which handler a step belongs, under one claim, in one attempt and in several: no handler gets the result of
//! another one.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use axum::routing::post;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{Idempotency, IdempotencyLayer, Policy, Registry, StepError, StepErrorKind, idempotent};
use idempotent_tests::{Answer, Runs, Server, answer, lock};
use tokio::sync::{Notify, mpsc};
use tower::ServiceExt;

type Result<T, E = Response> = std::result::Result<T, E>;

fn layer(scope: &str, registry: &Registry) -> IdempotencyLayer {
    IdempotencyLayer::new(Policy::builder(scope).build().expect("a valid policy")).with_registry(registry.clone())
}

async fn step(runs: &Runs, idempotency: &Idempotency, what: &str) -> Result<String> {
    idempotency.step("call", async || Ok::<_, Response>(format!("{what} {}", runs.run().await))).await
}

/// The status and the text of a handler's answer.
async fn said(to: Router, request: Request) -> String {
    let response = to.oneshot(request).await.expect("a router answers");
    let status = response.status().as_u16();
    let body = to_bytes(response.into_body(), usize::MAX).await.expect("the body arrives");
    if status == 200 { String::from_utf8(body.to_vec()).expect("it is text") } else { status.to_string() }
}

async fn reserve(State(runs): State<Runs>, idempotency: Idempotency) -> Result<String> {
    step(&runs, &idempotency, "reserved").await
}

async fn charge(State(runs): State<Runs>, idempotency: Idempotency) -> Result<String> {
    step(&runs, &idempotency, "charged").await
}

async fn charge_item(State(runs): State<Runs>, idempotency: Idempotency, item: String) -> Result<String> {
    step(&runs, &idempotency, &item).await
}

/// The handler has no key of its own, so its steps belong to the layer's claim.
#[idempotent(scope = "owners-item", header = "x-item")]
async fn charge_guarded_item(State(runs): State<Runs>, idempotency: Idempotency, item: String) -> Result<String> {
    step(&runs, &idempotency, &item).await
}

fn with_body(parts: &Parts, body: &'static str) -> Request {
    Request::from_parts(parts.clone(), Body::from(body))
}

async fn two_handlers(State(runs): State<Runs>, request: Request) -> String {
    let (parts, _) = request.into_parts();
    let reserved = said(Router::new().fallback(reserve).with_state(runs.clone()), with_body(&parts, "")).await;
    format!("{reserved}, {}", said(Router::new().fallback(charge).with_state(runs), with_body(&parts, "")).await)
}

async fn batch(State(runs): State<Runs>, request: Request) -> String {
    let (parts, _) = request.into_parts();
    let app = Router::new().fallback(charge_item).with_state(runs);
    format!("{}, {}", said(app.clone(), with_body(&parts, "tea")).await, said(app, with_body(&parts, "ham")).await)
}

async fn guarded_batch(State(runs): State<Runs>, request: Request) -> String {
    let (parts, _) = request.into_parts();
    let app = Router::new().fallback(charge_guarded_item).with_state(runs);
    format!("{}, {}", said(app.clone(), with_body(&parts, "tea")).await, said(app, with_body(&parts, "ham")).await)
}

#[tokio::test]
async fn handlers_without_keys_share_no_step_under_one_claim() {
    let registry = Registry::new(MemoryStore::new());
    for (path, expected) in [("/two", "reserved 1, 500"), ("/batch", "tea 1, 500"), ("/guarded-batch", "tea 1, 500")] {
        let runs = Runs::free();
        let app = Router::new()
            .route("/two", post(two_handlers))
            .route("/batch", post(batch))
            .route("/guarded-batch", post(guarded_batch))
            .with_state(runs.clone())
            .layer(layer("owners-api", &registry));
        let answer = Server::start(app).await.post_with_key(path, path).await;
        assert_eq!((answer.text(), runs.started()), (expected, 1), "{path}");
    }
}

fn is_first(request: &Request) -> bool {
    request.headers().get("x-attempt").is_some_and(|attempt| attempt == "1")
}

/// The first attempt of each path ends after a step of one handler. The second attempt runs another handler.
#[idempotent(scope = "owners-attempts", shared_scope)]
async fn attempts(State(runs): State<Runs>, idempotency: Idempotency, request: Request) -> Result<String> {
    let (is_first, path) = (is_first(&request), request.uri().path().to_owned());
    if is_first && path == "/own-first" {
        step(&runs, &idempotency, "own").await?;
    } else if !is_first && path == "/inner-first" {
        return step(&runs, &idempotency, "own").await;
    } else {
        let beneath = Router::new();
        let beneath = if is_first { beneath.fallback(inner) } else { beneath.fallback(other_inner) };
        let said = said(beneath.with_state(runs), request).await;
        if !is_first {
            return Ok(said);
        }
    }
    Err(Response::builder().status(StatusCode::SERVICE_UNAVAILABLE).body(Body::empty()).expect("a response"))
}

#[idempotent(scope = "owners-attempts", shared_scope)]
async fn inner(State(runs): State<Runs>, idempotency: Idempotency) -> Result<String> {
    step(&runs, &idempotency, "inner").await
}

#[idempotent(scope = "owners-attempts", shared_scope)]
async fn other_inner(State(runs): State<Runs>, idempotency: Idempotency) -> Result<String> {
    step(&runs, &idempotency, "other inner").await
}

/// Plain handlers inside of a layer. They are distinguished by the target.
async fn plain_attempts(State(runs): State<Runs>, mut request: Request) -> (StatusCode, String) {
    let is_first = is_first(&request);
    let to = if is_first || request.uri().path() == "/plain-same" { "/reserve" } else { "/charge" };
    *request.uri_mut() = to.parse().expect("a path");
    let beneath = Router::new().route("/reserve", post(reserve)).route("/charge", post(charge)).with_state(runs);
    let said = said(beneath, request).await;
    (if is_first { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }, said)
}

#[tokio::test]
async fn step_of_another_handler_in_an_earlier_attempt_is_none() {
    let registry = Registry::new(MemoryStore::new());
    for (path, expected) in [
        ("/own-first", (200, "500")),
        ("/inner-first", (500, "step_failed")),
        ("/other-inner", (200, "500")),
        ("/plain", (200, "500")),
        ("/plain-same", (200, "reserved 1")),
    ] {
        let runs = Runs::free();
        let plain = post(plain_attempts).layer(layer("owners-plain-attempts", &registry));
        let app = Router::new()
            .route("/plain", plain.clone())
            .route("/plain-same", plain)
            .fallback(attempts)
            .with_state(runs.clone())
            .layer(registry.layer());
        let server = Server::start(app).await;
        let send = async |attempt: &str| -> Answer {
            answer(server.post(path).header("idempotency-key", path).header("x-attempt", attempt)).await
        };
        assert_eq!(send("1").await.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        let second = send("2").await;
        let said = if second.status == 200 { second.text().to_owned() } else { second.rejection() };
        assert_eq!((second.status.as_u16(), said.as_str(), runs.started()), (expected.0, expected.1, 1), "{path}");
    }
}

/// Takes its step in a separate task, after its response was sent.
fn step_later(later: &Later, idempotency: Idempotency) -> &'static str {
    let Later { runs, go, said } = later.clone();
    tokio::spawn(async move {
        go.notified().await;
        let step = idempotency.step("call", async || Ok::<_, StepError>(runs.run().await)).await;
        said.send(step.map_err(|error| matches!(error.kind(), StepErrorKind::NoClaim))).expect("the test listens");
    });
    "accepted"
}

#[derive(Clone)]
struct Later {
    runs: Runs,
    go: Arc<Notify>,
    said: mpsc::UnboundedSender<Result<usize, bool>>,
}

async fn plain_later(State(later): State<Later>, idempotency: Idempotency) -> &'static str {
    step_later(&later, idempotency)
}

#[idempotent(scope = "owners-later")]
async fn guarded_later(State(later): State<Later>, idempotency: Idempotency) -> &'static str {
    step_later(&later, idempotency)
}

#[idempotent(scope = "owners-later-api", shared_scope)]
async fn covered_later(State(later): State<Later>, idempotency: Idempotency) -> &'static str {
    step_later(&later, idempotency)
}

#[tokio::test]
async fn step_after_the_end_of_the_claim_is_an_error() {
    let registry = Registry::new(MemoryStore::new());
    let (said, mut hear) = mpsc::unbounded_channel();
    let later = Later { runs: Runs::free(), go: Arc::default(), said };
    let app = Router::new()
        .route("/plain", post(plain_later))
        .route("/guarded", post(guarded_later))
        .route("/covered", post(covered_later))
        .with_state(later.clone())
        .layer(registry.layer())
        .layer(layer("owners-later-api", &registry));
    let server = Server::start(app).await;
    for path in ["/plain", "/guarded", "/covered"] {
        assert_eq!(server.post_with_key(path, path).await.text(), "accepted", "{path}");
        later.go.notify_one();
        assert_eq!((hear.recv().await, later.runs.started()), (Some(Err(true)), 0), "{path}");
    }
}

type Seen = Arc<Mutex<Vec<String>>>;

async fn pay(State(seen): State<Seen>, idempotency: Idempotency) -> &'static str {
    lock(&seen).push(idempotency.downstream_key("bank"));
    "paid"
}

/// Pays two orders by requests without keys. Its first attempt fails afterwards.
#[idempotent(scope = "owners-batch")]
async fn pay_orders(State(seen): State<Seen>, _: Bytes) -> StatusCode {
    let payments = Router::new().route("/{order}", post(pay)).with_state(seen.clone());
    for order in ["/1", "/2"] {
        let request = Request::post(order).body(Body::empty()).expect("the parts are valid");
        payments.clone().oneshot(request).await.expect("a router answers");
    }
    if lock(&seen).len() > 2 { StatusCode::CREATED } else { StatusCode::INTERNAL_SERVER_ERROR }
}

/// Otherwise the bank would take the second payment for a repetition of the first one.
#[tokio::test]
async fn payments_under_one_claim_have_keys_of_their_own() {
    let (seen, registry) = (Seen::default(), Registry::new(MemoryStore::new()));
    let app = Router::new().route("/", post(pay_orders)).with_state(seen.clone()).layer(registry.layer());
    let server = Server::start(app).await;
    assert_eq!(server.post_with_key("/", "k").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(server.post_with_key("/", "k").await.status, StatusCode::CREATED);
    let seen = lock(&seen).clone();
    assert_eq!(seen[..2], seen[2..], "each attempt has the same keys");
    assert_ne!(seen[0], seen[1]);
}
