//! The mark of a replay: only a replay of this very request has it, whatever headers a response contains.

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::HeaderValue;
use axum::http::request::Parts;
use axum::http::response;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{IdempotencyLayer, Policy, Registry, idempotent};
use idempotent_tests::{Runs, Server, answer};
use tokio::sync::Mutex;
use tower::ServiceExt;

fn layer(scope: &str, registry: &Registry) -> IdempotencyLayer {
    IdempotencyLayer::new(Policy::builder(scope).build().expect("a valid policy")).with_registry(registry.clone())
}

#[idempotent(scope = "marks-upstream")]
async fn upstream() -> &'static str {
    "upstream"
}

type Proxy = (Runs, Registry);

/// Calls another handler with a different key, and returns the response unchanged.
async fn forward((runs, registry): Proxy, parts: Parts) -> Response {
    runs.run().await;
    let own_key = HeaderValue::from_str(&parts.uri.path().replace('/', "-")).expect("a path");
    let mut request = Request::from_parts(parts, Body::empty());
    request.headers_mut().insert("idempotency-key", own_key);
    let upstream = Router::new().fallback(upstream).layer(registry.layer());
    upstream.oneshot(request).await.expect("a router answers")
}

#[idempotent(scope = "marks-proxy")]
async fn guarded_proxy(State(proxy): State<Proxy>, parts: Parts, _: Bytes) -> Response {
    forward(proxy, parts).await
}

async fn plain_proxy(State(proxy): State<Proxy>, parts: Parts, _: Bytes) -> Response {
    forward(proxy, parts).await
}

/// Looks like the response of another service that replays.
async fn marked(State((runs, _)): State<Proxy>) -> Response {
    let run = runs.run().await;
    ([("idempotent-replayed", "true")], format!("run {run}")).into_response()
}

#[idempotent(scope = "marks-own")]
async fn guarded_marked(proxy: State<Proxy>) -> Response {
    marked(proxy).await
}

#[tokio::test]
async fn response_that_another_request_replayed_has_no_mark() {
    let (runs, registry) = (Runs::free(), Registry::new(MemoryStore::new()));
    let beneath = |route| Router::new().route("/", route);
    let app = Router::new()
        .route("/guarded", post(guarded_proxy))
        .route("/guarded-marked", post(guarded_marked))
        .nest("/plain", beneath(post(plain_proxy)).layer(layer("marks-plain", &registry)))
        .nest("/marked", beneath(post(marked)).layer(layer("marks-marked", &registry)))
        .with_state((runs.clone(), registry.clone()));
    let server = Server::start(app.layer(registry.layer())).await;
    for path in ["/guarded", "/guarded-marked", "/plain", "/marked"] {
        for key in ["a", "b"] {
            let before = runs.started();
            for is_replay in [false, true, true] {
                let answer = server.post_with_key(path, key).await;
                assert_eq!(
                    (answer.status.as_u16(), answer.is_replay()),
                    (200, is_replay),
                    "{path} {key} {}",
                    answer.text()
                );
            }
            assert_eq!(runs.started(), before + 1, "{path} {key}");
        }
    }
}

#[idempotent(scope = "marks-kept")]
async fn kept() -> &'static str {
    "done"
}

type Kept = Arc<Mutex<Option<response::Parts>>>;

/// Does its work for each request, and answers with the head of the first response.
async fn keep(State((runs, kept)): State<(Runs, Kept)>, request: Request, next: Next) -> Response {
    let run = runs.run().await;
    let mut kept = kept.lock().await;
    if let Some(parts) = &*kept {
        return Response::from_parts(parts.clone(), Body::from(format!("work {run}")));
    }
    let (parts, body) = next.run(request).await.into_parts();
    *kept = Some(parts.clone());
    Response::from_parts(parts, body)
}

#[tokio::test]
async fn layer_records_a_response_with_the_mark_of_another_request() {
    let (runs, registry) = (Runs::free(), Registry::new(MemoryStore::new()));
    let keeping = axum::middleware::from_fn_with_state((runs.clone(), Kept::default()), keep);
    let app = Router::new().route("/", post(kept)).layer(registry.layer()).layer(keeping);
    let server = Server::start(app.layer(layer("marks-kept-api", &registry))).await;
    assert_eq!(server.post_with_key("/", "a").await.text(), "done");
    for is_replay in [false, true, true] {
        let answer = server.post_with_key("/", "b").await;
        assert_eq!((answer.text(), answer.is_replay()), ("work 2", is_replay));
    }
}

/// A middleware that passes the request on, unchanged or built anew, does not change the mark.
#[tokio::test]
async fn replay_of_a_handler_beneath_a_layer_keeps_its_mark() {
    let rebuild = async |request: Request, next: Next| {
        let (parts, body) = request.into_parts();
        let mut rebuilt = Request::new(body);
        (*rebuilt.method_mut(), *rebuilt.uri_mut(), *rebuilt.headers_mut()) = (parts.method, parts.uri, parts.headers);
        next.run(rebuilt).await
    };
    let registry = Registry::new(MemoryStore::new());
    let route = || Router::new().route("/", post(upstream)).layer(registry.layer());
    let app = Router::new()
        .nest("/direct", route().layer(layer("marks-direct", &registry)))
        .nest("/rebuilt", route().layer(from_fn(rebuild)).layer(layer("marks-rebuilt", &registry)));
    let server = Server::start(app).await;
    for path in ["/direct", "/rebuilt"] {
        for is_replay in [false, true] {
            assert_eq!(server.post_with_key(path, path).await.is_replay(), is_replay, "{path}");
        }
    }
}

/// Looks like the response of a service that calls itself idempotent.
async fn claims_to_be_a_replay() -> impl IntoResponse {
    ([("idempotent-replayed", "true"), ("idempotent-recorded", "false")], "done")
}

#[idempotent(scope = "marks-claims")]
async fn guarded_claims_to_be_a_replay() -> impl IntoResponse {
    claims_to_be_a_replay().await
}

#[idempotent(scope = "marks-extracted")]
async fn extracted(_: Claims) {}

/// An extractor whose rejection looks like a replay.
struct Claims;

impl<S: Sync> axum::extract::FromRequest<S> for Claims {
    type Rejection = Response;

    async fn from_request(_: Request, _: &S) -> Result<Self, Response> {
        Err(claims_to_be_a_replay().await.into_response())
    }
}

#[tokio::test]
async fn response_without_a_key_has_no_mark_of_its_own() {
    let registry = Registry::new(MemoryStore::new());
    let route = |route| Router::new().route("/", route);
    let plain = || post(claims_to_be_a_replay).get(claims_to_be_a_replay);
    let app = Router::new()
        .nest("/plain", route(plain()).layer(layer("marks-plain-unkeyed", &registry)))
        .nest("/guarded", route(post(guarded_claims_to_be_a_replay).get(guarded_claims_to_be_a_replay)))
        .nest("/extracted", route(post(extracted).get(extracted)))
        .nest(
            "/both",
            route(post(guarded_claims_to_be_a_replay).get(guarded_claims_to_be_a_replay))
                .layer(layer("marks-both-unkeyed", &registry)),
        );
    let server = Server::start(app.layer(registry.layer())).await;
    for path in ["/plain", "/guarded", "/extracted", "/both"] {
        let requests = [
            ("without a key", server.post(path)),
            ("with a key", server.post(path).header("idempotency-key", path.replace('/', "-"))),
            ("a method that passes", server.request(axum::http::Method::GET, path).header("idempotency-key", "k")),
        ];
        for (name, request) in requests {
            let answer = answer(request).await;
            assert_eq!(answer.text(), "done", "{path} {name}");
            for header in ["idempotent-replayed", "idempotent-recorded"] {
                assert_eq!(answer.headers.get(header), None, "{path} {name}");
            }
        }
    }
}

/// The handler's guard takes the key. The layer does not guard the request.
#[tokio::test]
async fn replay_beneath_a_layer_that_lets_it_pass_keeps_its_mark() {
    let registry = Registry::new(MemoryStore::new());
    let policy = Policy::builder("marks-elsewhere").header("x-request-id").build().expect("a valid policy");
    let elsewhere = IdempotencyLayer::new(policy).with_registry(registry.clone());
    let policy = Policy::builder("marks-put").methods([axum::http::Method::PUT]).build().expect("a valid policy");
    let put = IdempotencyLayer::new(policy).with_registry(registry.clone());
    let app = Router::new()
        .nest("/header", Router::new().route("/", post(upstream)).layer(elsewhere))
        .nest("/method", Router::new().route("/", post(upstream)).layer(put));
    let server = Server::start(app.layer(registry.layer())).await;
    for path in ["/header", "/method"] {
        for is_replay in [false, true] {
            assert_eq!(server.post_with_key(path, &path.replace('/', "-")).await.is_replay(), is_replay, "{path}");
        }
    }
}
