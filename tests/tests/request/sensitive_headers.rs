//! Header values that a handler marks as sensitive. A replay has the mark too, so that no log and no HPACK table gets
//! the values.

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http_body::Frame;
use idempotent_runtime::store::{MemoryStore, PostgresStore, RedisStore, SqliteStore, StoreAdmin};
use idempotent_runtime::{Registry, RegistryBuilder, idempotent};
use idempotent_tests::{Server, sealing_key, stores};

fn lines() -> Vec<(HeaderName, HeaderValue)> {
    let line = |name: &'static str, value: &'static [u8], is_sensitive| {
        let mut value = HeaderValue::from_bytes(value).expect("a value");
        value.set_sensitive(is_sensitive);
        (HeaderName::from_static(name), value)
    };
    vec![
        line("x-account", b"4711", true),
        line("x-account", b"4712", false),
        line("x-account", b"caf\xe9", true),
        line("x-account", b"", true),
        line("x-open", b"\xff", false),
    ]
}

#[idempotent(scope = "sensitive")]
async fn account() -> (HeaderMap, &'static str) {
    let mut headers = HeaderMap::new();
    for (name, value) in lines() {
        headers.append(name, value);
    }
    (headers, "opened")
}

#[idempotent(scope = "sensitive-trailers")]
async fn with_trailers() -> Response {
    let trailers = lines().into_iter().collect();
    let frames = [Ok::<_, std::convert::Infallible>(Frame::data("opened".into())), Ok(Frame::trailers(trailers))];
    Body::new(http_body_util::StreamBody::new(futures_util::stream::iter(frames))).into_response()
}

/// Reports which values are marked as sensitive, as outer layers see them.
async fn tell(response: Response) -> Response {
    use http_body_util::BodyExt;

    let (parts, body) = response.into_parts();
    let body = body.collect().await.expect("the body comes whole");
    let told = |headers: &HeaderMap| headers.values().filter(|value| value.is_sensitive()).count();
    let told = format!("{} {}", told(&parts.headers), body.trailers().map_or(0, told));
    let mut response = Response::new(Body::from(told));
    response.headers_mut().extend(parts.headers);
    response.headers_mut().remove("content-length");
    response
}

async fn assert_keeps(registry: RegistryBuilder, store: &str) {
    let routes = Router::new().route("/headers", post(account)).route("/trailers", post(with_trailers));
    let server = Server::start(routes.layer(registry.build().layer()).layer(map_response(tell))).await;
    for is_replay in [false, true] {
        let headers = server.post_with_key("/headers", "k").await;
        assert_eq!((headers.text(), headers.is_replay()), ("3 0", is_replay), "{store}");
        let values: Vec<_> = headers.headers.get_all("x-account").iter().map(HeaderValue::as_bytes).collect();
        assert_eq!(values, [&b"4711"[..], b"4712", b"caf\xe9", b""], "{store}");
        let trailers = server.post_with_key("/trailers", "k").await;
        assert_eq!((trailers.text(), trailers.is_replay()), ("0 3", is_replay), "{store}");
    }
}

/// Checks the store without and with sealing.
async fn assert_store_keeps<S: StoreAdmin + Clone + 'static>(store: impl AsyncFn() -> S, name: &str) {
    assert_keeps(Registry::builder(store().await), name).await;
    assert_keeps(Registry::builder(store().await).seal_with(sealing_key(1)), &format!("{name}, sealed")).await;
}

#[tokio::test]
async fn sensitive_values_are_sensitive_in_a_replay() {
    assert_store_keeps(async || MemoryStore::new(), "memory").await;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let files = std::sync::atomic::AtomicUsize::new(0);
    let sqlite = async || {
        let number = files.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        SqliteStore::open(folder.path().join(format!("{number}.db"))).await.expect("the store opens")
    };
    assert_store_keeps(sqlite, "sqlite").await;
    assert_store_keeps::<PostgresStore>(async || stores::postgres(2).await, "postgres").await;
    assert_store_keeps::<RedisStore>(async || stores::redis().await, "redis").await;
}
