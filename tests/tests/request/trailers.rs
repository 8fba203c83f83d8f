//! Trailers of requests with a key and of recorded responses.

use std::convert::Infallible;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures_util::stream;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use idempotent_runtime::store::{MemoryStore, StoreAdmin};
use idempotent_runtime::{Registry, idempotent};
use idempotent_tests::{Server, sealing_key};

/// The trailer `x-sum` of a request.
async fn sum_in(body: Body) -> String {
    let trailers = body.collect().await.expect("it arrives").trailers().cloned().unwrap_or_default();
    trailers.get("x-sum").map_or("none", |sum| sum.to_str().expect("text")).to_owned()
}

#[idempotent(scope = "trailers-of-requests")]
async fn sum(body: Body) -> String {
    sum_in(body).await
}

#[idempotent(scope = "trailers-of-uploads", fingerprint = none)]
async fn sum_of_upload(body: Body) -> String {
    sum_in(body).await
}

/// The trailers that the server announces.
const ANNOUNCED: &str = "x-checksum, x-access-token, idempotent-replayed, idempotent-recorded";

fn with_trailers(frames: usize) -> Response {
    let mut trailers = HeaderMap::new();
    trailers.append("x-checksum", HeaderValue::from_static("a: b"));
    trailers.append("x-checksum", HeaderValue::from_bytes(b"caf\xe9").expect("a value"));
    trailers.append("x-access-token", HeaderValue::from_static("secret"));
    trailers.append("idempotent-replayed", HeaderValue::from_static("true"));
    trailers.append("idempotent-recorded", HeaderValue::from_static("false"));
    let data = (0..frames).map(|_| Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"part"))));
    let frames = data.chain([Ok(Frame::trailers(trailers))]).collect::<Vec<_>>();
    let mut response = Body::new(StreamBody::new(stream::iter(frames))).into_response();
    response.headers_mut().insert(header::TRAILER, HeaderValue::from_static(ANNOUNCED));
    response.headers_mut().insert("idempotency-recorded-trailer", HeaderValue::from_static("x-planted: 1"));
    response
}

#[idempotent(scope = "trailers-of-responses")]
async fn checked() -> Response {
    with_trailers(2)
}

async fn serve(registry: &Registry) -> Server {
    let app = Router::new()
        .route("/sums", post(sum))
        .route("/uploads", post(sum_of_upload))
        .route("/checked", post(checked))
        .layer(registry.layer());
    Server::start(app).await
}

fn request(path: &str, key: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nte: trailers\r\nconnection: close\r\n{key}transfer-encoding: chunked\r\n\
         trailer: x-sum\r\n\r\n{body}"
    )
    .into_bytes()
}

#[tokio::test]
async fn request_trailers_reach_a_handler_with_and_without_a_key() {
    let server = serve(&Registry::new(MemoryStore::new())).await;
    for path in ["/sums", "/uploads"] {
        for key in ["", "idempotency-key: k\r\n"] {
            let answer = server.raw(&request(path, key, "4\r\nbody\r\n0\r\nx-sum: 42\r\n\r\n")).await;
            assert!(answer.ends_with("42"), "{path} {key}: {answer}");
        }
    }
}

async fn are_replayed(registry: Registry) {
    let server = serve(&registry).await;
    let request = request("/checked", "idempotency-key: k\r\n", "0\r\n\r\n");
    let first = server.raw(&request).await;
    assert!(first.contains("x-access-token: secret") && first.contains("x-checksum: a: b"), "{first}");
    let (_, trailers) = first.split_once("\r\n0\r\n").expect("it is chunked");
    assert!(!trailers.contains("idempotent-re"), "a handler's trailers say that this is a replay: {first}");
    let replay = server.raw(&request).await;
    assert!(replay.contains("idempotent-replayed: true") && replay.contains("partpart"), "{replay}");
    let (_, trailers) = replay.split_once("\r\n0\r\n").expect("it is chunked");
    assert!(trailers.starts_with("x-checksum: a: b\r\nx-checksum: caf"), "{replay}");
    assert!(!replay.contains("x-access-token") && !replay.contains("planted"), "{replay}");
    assert!(!replay.contains("idempotency-recorded-trailer") && !trailers.contains("idempotent-re"), "{replay}");
}

#[tokio::test]
async fn response_trailers_are_recorded_and_replayed() {
    are_replayed(Registry::new(MemoryStore::new())).await;
    let store = MemoryStore::new();
    are_replayed(Registry::builder(store.clone()).seal_with(sealing_key(7)).build()).await;
    let entries = store.list(None, 10).await.expect("the store answers").entries;
    assert_eq!(entries.len(), 1);
}
