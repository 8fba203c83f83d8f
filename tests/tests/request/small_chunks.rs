//! Bodies that arrive in very small chunks.

use std::convert::Infallible;
use std::fs;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::http::{Request, StatusCode};
use axum::response::Response;
use axum::routing::post;
use futures_util::stream;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{Registry, idempotent};
use idempotent_tests::alone;
use tower::ServiceExt;

/// In bytes. Below axum's limit of 2 MiB.
const SIZE: usize = 2_000_000;

/// A body of single bytes, each made when it is polled.
fn bytes_of(size: usize) -> Body {
    Body::from_stream(stream::iter((0..size).map(|_| Ok::<_, Infallible>(Bytes::from_static(b"x")))))
}

#[idempotent(scope = "small-chunks")]
async fn take(body: Bytes) -> String {
    body.len().to_string()
}

#[idempotent(scope = "small-chunks-of-a-response")]
async fn give() -> Body {
    bytes_of(SIZE)
}

/// The most memory that this process has had so far, in kB.
fn peak() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("Linux tells it");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it names the peak");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

async fn send(app: &Router, path: &str, body: Body) -> Response {
    let request = Request::post(path).header("host", "127.0.0.1").header("idempotency-key", "k").body(body);
    app.clone().oneshot(request.expect("a request")).await.expect("a router answers")
}

#[tokio::test]
async fn body_in_chunks_of_one_byte_takes_memory_for_its_bytes() {
    if !alone(body_in_chunks_of_one_byte_takes_memory_for_its_bytes) {
        return;
    }
    let routes = Router::new().route("/take", post(take)).route("/give", post(give));
    let app = routes.layer(Registry::new(MemoryStore::new()).layer());
    let before = peak();
    let taken = send(&app, "/take", bytes_of(SIZE)).await;
    assert_eq!(to_bytes(taken.into_body(), 100).await.expect("a body"), SIZE.to_string());
    assert_eq!(send(&app, "/take", bytes_of(SIZE + 100_000)).await.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let given = send(&app, "/give", Body::empty()).await;
    assert_eq!(to_bytes(given.into_body(), SIZE).await.expect("a body").len(), SIZE);
    let grown = peak() - before;
    assert!(grown < 24 * 1024, "{grown} kB for bodies of 2 MB");
}
