//! How large the body of a request with a key may be inside of a layer: as large as that of a request without a key.

use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::routing::post;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{IdempotencyLayer, Policy, Registry};
use idempotent_tests::{Server, answer};

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
