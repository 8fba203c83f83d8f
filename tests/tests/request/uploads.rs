//! Uploads that are answered before their bodies were read. The client sends the whole body, and then reads its answer.

use std::convert::Infallible;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::StreamExt;
use futures_util::stream;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{IdempotencyLayer, Policy, Registry, idempotent};
use idempotent_tests::{Fault, FaultyStore, PATIENCE, Runs, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::ServiceExt;

/// Larger than the buffers of a connection, and than axum's limit for bodies.
const LARGE: usize = 16 * 1024 * 1024;

/// The key of the first client, with other credentials.
const OF_A_STRANGER: &str = "idempotency-key: k\r\nauthorization: Bearer mallory";

#[idempotent(scope = "uploads-streamed", fingerprint = none)]
async fn upload(State(runs): State<Runs>, body: Body) -> Result<(StatusCode, String), StatusCode> {
    let mut length = 0;
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        length += chunk.map_err(|_| StatusCode::BAD_REQUEST)?.len();
    }
    Ok((StatusCode::CREATED, format!("run {}: {length}", runs.run().await)))
}

#[idempotent(scope = "uploads-required", required)]
async fn required(State(runs): State<Runs>, body: Bytes) -> String {
    format!("run {}: {}", runs.run().await, body.len())
}

#[idempotent(scope = "uploads-required-streamed", required, fingerprint = none)]
async fn required_streamed(State(runs): State<Runs>, body: Body) -> String {
    upload_length(runs, body).await
}

#[idempotent(scope = "uploads-required-by-length", required, fingerprint = body.len())]
async fn required_by_length(State(runs): State<Runs>, body: Bytes) -> String {
    format!("run {}: {}", runs.run().await, body.len())
}

async fn upload_length(runs: Runs, body: Body) -> String {
    let body = axum::body::to_bytes(body, usize::MAX).await.expect("it arrives");
    format!("run {}: {}", runs.run().await, body.len())
}

fn app(runs: &Runs, registry: &Registry) -> Router {
    let policy = Policy::builder("uploads-beneath").without_fingerprint().required().build().expect("it is valid");
    let layer = IdempotencyLayer::new(policy).with_registry(registry.clone());
    let beneath = async |State(runs): State<Runs>, body: Body| {
        let whole = axum::body::to_bytes(body, usize::MAX).await.expect("it arrives");
        (StatusCode::CREATED, format!("run {}: {}", runs.run().await, whole.len()))
    };
    Router::new()
        .route("/beneath", post(beneath))
        .layer(layer)
        .route("/uploads", post(upload))
        .route("/required", post(required))
        .route("/required-streamed", post(required_streamed))
        .route("/required-by-length", post(required_by_length))
        .with_state(runs.clone())
        .layer(registry.layer())
}

fn head(path: &str, more: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-length: {LARGE}\r\n{more}\r\n\r\n")
}

async fn send(server: &Server, path: &str) -> String {
    send_with(server, path, "idempotency-key: k").await
}

/// Sends like a client that reads nothing before it has sent everything.
async fn send_with(server: &Server, path: &str, more: &str) -> String {
    let mut connection = server.connect_and_send(head(path, more).as_bytes()).await;
    let chunk = vec![b'x'; 64 * 1024];
    for _ in 0..LARGE / chunk.len() {
        connection.write_all(&chunk).await.expect("the server reads");
    }
    let mut received = String::new();
    connection.read_to_string(&mut received).await.expect("the server answers");
    received
}

#[tokio::test]
async fn upload_that_is_answered_unread_is_read_to_its_end() {
    for path in ["/uploads", "/beneath"] {
        let (runs, store) = (Runs::held(), FaultyStore::new());
        let server = Server::start(app(&runs, &Registry::new(store.clone()))).await;
        let (first, second) = tokio::join!(send(&server, path), async {
            runs.until_started(1).await;
            let second = send(&server, path).await;
            let stranger = send_with(&server, path, OF_A_STRANGER).await;
            assert!(stranger.starts_with("HTTP/1.1 422") && stranger.contains("other_credentials"), "{stranger}");
            runs.let_finish(1);
            second
        });
        assert!(second.contains("in_flight"), "{second}");
        assert!(first.contains("201 Created") && first.ends_with(&format!("run 1: {LARGE}")), "{first}");
        let replay = send(&server, path).await;
        assert!(
            replay.contains("idempotent-replayed: true") && replay.contains(&format!("run 1: {LARGE}")),
            "{replay}"
        );
        let stranger = send_with(&server, path, OF_A_STRANGER).await;
        assert!(stranger.starts_with("HTTP/1.1 422") && stranger.contains("other_credentials"), "{stranger}");
        store.on_claim(Fault::Unreachable);
        let rejected = send(&server, path).await;
        assert!(rejected.contains("store_unavailable"), "{rejected}");
        assert_eq!(runs.started(), 1);
    }
}

/// The answer to a head without a body.
async fn ask(server: &Server, path: &str, more: &str) -> String {
    let mut connection = server.connect_and_send(head(path, more).as_bytes()).await;
    let mut received = String::new();
    let reading = connection.read_to_string(&mut received);
    tokio::time::timeout(PATIENCE, reading).await.expect("it answers without the body").expect("it answers");
    received
}

#[tokio::test]
async fn upload_that_waits_for_100_continue_is_answered_without_it() {
    let (runs, registry) = (Runs::free(), Registry::new(MemoryStore::new()));
    let server = Server::start(app(&runs, &registry)).await;
    send(&server, "/uploads").await;
    let replay = ask(&server, "/uploads", "expect: 100-continue\r\nidempotency-key: k").await;
    assert!(replay.starts_with("HTTP/1.1 201") && replay.contains("idempotent-replayed: true"), "{replay}");
    assert_eq!(runs.started(), 1);
}

#[tokio::test]
async fn required_without_a_key_is_answered_without_the_upload() {
    let (runs, registry) = (Runs::free(), Registry::new(MemoryStore::new()));
    let server = Server::start(app(&runs, &registry)).await;
    for path in ["/beneath", "/required", "/required-streamed", "/required-by-length"] {
        for expects in ["expect: 100-continue", "x-expects: nothing"] {
            let missing = ask(&server, path, expects).await;
            assert!(missing.starts_with("HTTP/1.1 400") && missing.contains("missing_key"), "{path}: {missing}");
        }
    }
    assert_eq!(runs.started(), 0);
}

#[tokio::test]
async fn upload_that_stalls_is_answered_after_a_while() {
    let (runs, registry) = (Runs::free(), Registry::new(MemoryStore::new()));
    let app = app(&runs, &registry);
    tokio::time::pause();
    for body in [Body::from("all of it"), Body::from_stream(stream::pending::<Result<&str, Infallible>>())] {
        let request =
            Request::post("/uploads").header("idempotency-key", "k").body(body).expect("a well-formed request");
        let answer = app.clone().oneshot(request).await.expect("a router answers");
        assert_eq!(answer.status(), StatusCode::CREATED);
    }
    assert_eq!(runs.started(), 1);
}

#[idempotent(scope = "uploads-all", fingerprint = none, cache = all)]
async fn records_all(State(runs): State<Runs>, body: String) -> String {
    format!("run {}: {body}", runs.run().await)
}

/// The extractor rejects the body with 400, which the policy records. A retry sends the whole body.
#[tokio::test]
async fn rejection_of_a_body_that_broke_off_is_not_recorded() {
    let runs = Runs::free();
    let registry = Registry::new(MemoryStore::new());
    let app = Router::new().route("/", post(records_all)).with_state(runs.clone()).layer(registry.layer());
    let server = Server::start(app).await;
    let head =
        "POST / HTTP/1.1\r\nhost: h\r\nidempotency-key: k\r\ncontent-type: text/plain\r\ncontent-length: 10\r\n\r\n123";
    for _ in 0..3 {
        let mut client = server.connect_and_send(head.as_bytes()).await;
        client.shutdown().await.expect("it ends what it sends");
        let _ = client.read_to_end(&mut Vec::new()).await;
        assert_eq!(registry.drain(PATIENCE).await, 0);
    }
    let retry = idempotent_tests::answer(server.post("/").header("idempotency-key", "k").body("1234567890")).await;
    assert_eq!((retry.text(), retry.is_replay(), runs.started()), ("run 1: 1234567890", false, 1));
}
