//! How large the body of a request with a key may be inside of a layer: as large as that of a request without a key.

use std::io;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Request};
use axum::routing::post;
use futures_util::stream;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{IdempotencyLayer, Policy, Registry};
use idempotent_tests::{Server, answer};
use tower::ServiceExt as _;

const MIB: usize = 1024 * 1024;

fn layer(scope: &str) -> IdempotencyLayer {
    let policy = Policy::builder(scope).build().expect("the policy is valid");
    IdempotencyLayer::new(policy).with_registry(Registry::new(MemoryStore::new()))
}

fn lengths(limit: Option<DefaultBodyLimit>) -> Router {
    let route = post(async |body: Bytes| body.len().to_string());
    Router::new().route("/", if let Some(limit) = limit { route.layer(limit) } else { route })
}

/// The status of a request with a body of this size, with and without a key.
async fn statuses(app: Router, size: usize) -> [u16; 2] {
    let server = Server::start(app).await;
    let body = vec![b'x'; size];
    let keyed = answer(server.post("/").header("idempotency-key", "k").body(body.clone())).await;
    let unkeyed = answer(server.post("/").body(body)).await;
    [keyed.status.as_u16(), unkeyed.status.as_u16()]
}

#[tokio::test]
async fn limit_of_a_route_beneath_a_layer_counts_for_keyed_bodies() {
    let large = || lengths(Some(DefaultBodyLimit::max(64 * MIB)));
    assert_eq!(statuses(large().layer(layer("bodies-large")), 3 * MIB).await, [200, 200]);
    assert_eq!(statuses(lengths(None).layer(layer("bodies-default")), 3 * MIB).await, [413, 413]);
    let small = lengths(Some(DefaultBodyLimit::max(5000)));
    assert_eq!(statuses(small.layer(layer("bodies-small")), 5001).await, [413, 413]);
}

#[tokio::test]
async fn limit_around_a_layer_counts_for_keyed_bodies() {
    let around = |scope: &str| lengths(None).layer(layer(scope));
    let small = around("bodies-around-small").layer(DefaultBodyLimit::max(5000));
    assert_eq!(statuses(small, 5001).await, [413, 413]);
    let large = around("bodies-around-large").layer(DefaultBodyLimit::max(80 * MIB));
    assert_eq!(statuses(large, 65 * MIB).await, [200, 200]);
}

#[tokio::test]
async fn keyed_body_over_the_limit_of_the_layer_is_rejected() {
    let unlimited = || lengths(Some(DefaultBodyLimit::disable()));
    let limited = |scope: &str, limit| unlimited().layer(layer(scope).max_request_body(limit));
    assert_eq!(statuses(limited("bodies-of-layer", 3 * MIB), 3 * MIB).await, [200, 200]);
    assert_eq!(statuses(limited("bodies-of-layer", 3 * MIB), 3 * MIB + 1).await, [413, 200]);
    assert_eq!(statuses(limited("bodies-of-layer-tiny", 10), 11).await, [413, 200]);
    assert_eq!(statuses(unlimited().layer(layer("bodies-of-default")), 64 * MIB + 1).await, [413, 200]);
}

/// The fingerprint does not need the body, so the handler's extractor is the first to read it.
#[tokio::test]
async fn rejection_of_a_body_that_was_cut_off_is_not_recorded() {
    let policy = Policy::builder("bodies-cut-off").without_fingerprint().cache_all().build().expect("it is valid");
    let layer = IdempotencyLayer::new(policy).with_registry(Registry::new(MemoryStore::new()));
    let app = lengths(None).layer(layer);
    let send = async |body: Body| {
        let request = Request::post("/").header("host", "127.0.0.1").header("idempotency-key", "k").body(body);
        let response = app.clone().oneshot(request.expect("a well-formed request")).await.expect("a router answers");
        (response.status().as_u16(), response.headers().contains_key("idempotent-replayed"))
    };
    let broken = stream::iter([Ok("01234"), Err(io::Error::from(io::ErrorKind::ConnectionReset))]);
    assert_eq!(send(Body::from_stream(broken)).await, (400, false));
    assert_eq!(send(Body::from("0123456789")).await, (200, false));
    assert_eq!(send(Body::from("0123456789")).await, (200, true));
}
