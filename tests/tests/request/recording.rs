//! Which responses are recorded, and which parts of them are replayed.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, response};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures_util::{Stream, StreamExt, stream};
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{Registry, idempotent};
use idempotent_tests::{Answer, PATIENCE, Runs, Server, answer};

/// A response with the status that the request names.
async fn status_asked_for(runs: &Runs, body: &str) -> (StatusCode, String) {
    let status = body.parse().ok().and_then(|status| StatusCode::from_u16(status).ok());
    (status.unwrap_or(StatusCode::IM_A_TEAPOT), format!("run {}", runs.run().await))
}

#[idempotent(scope = "default")]
async fn by_default(State(runs): State<Runs>, body: String) -> (StatusCode, String) {
    status_asked_for(&runs, &body).await
}

#[idempotent(scope = "list", cache = [201, 409, 500..502, 420..=422, "3xx"])]
async fn by_list(State(runs): State<Runs>, body: String) -> (StatusCode, String) {
    status_asked_for(&runs, &body).await
}

#[idempotent(scope = "all", cache = all)]
async fn by_all(State(runs): State<Runs>, body: String) -> (StatusCode, String) {
    status_asked_for(&runs, &body).await
}

fn is_final(parts: &response::Parts) -> bool {
    parts.headers.contains_key("x-final")
}

#[idempotent(scope = "predicate", cache_if = is_final)]
async fn by_predicate(State(runs): State<Runs>, body: String) -> Response {
    let mut response = format!("run {}", runs.run().await).into_response();
    if body == "final" {
        response.headers_mut().insert("x-final", HeaderValue::from_static("1"));
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    }
    response
}

fn all_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("connection", "x-hop, X-Other-Hop"),
        ("x-hop", "1"),
        ("x-other-hop", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "close"),
        ("te", "trailers"),
        ("trailer", "x-checksum"),
        ("upgrade", "h2c"),
        ("date", "Tue, 15 Nov 1994 08:12:31 GMT"),
        ("proxy-authenticate", "Basic"),
        ("proxy-authentication-info", "x"),
        ("set-cookie", "session=secret"),
        ("retry-after", "120"),
        ("location", "/charges/1"),
        ("x-many", "first"),
        ("x-many", "second"),
        ("x-many", ""),
        ("idempotent-replayed", "false"),
    ] {
        headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    headers.append("x-bytes", HeaderValue::from_bytes(b"\xff\xfe caf\xe9").expect("obs-text is allowed"));
    headers
}

#[idempotent(scope = "headers")]
async fn with_headers() -> (HeaderMap, &'static str) {
    (all_headers(), "body")
}

#[idempotent(scope = "kept-headers", keep_headers = ["Set-Cookie", "Retry-After"], drop_headers = ["location", "X-Many"])]
async fn with_exceptions() -> (HeaderMap, &'static str) {
    (all_headers(), "body")
}

#[idempotent(scope = "absolute")]
async fn with_absolute_retry_after() -> ([(HeaderName, &'static str); 1], &'static str) {
    ([(header::RETRY_AFTER, "Tue, 15 Nov 1994 08:12:31 GMT")], "body")
}

#[idempotent(scope = "large", max_body = "1KiB")]
async fn large(State(runs): State<Runs>, body: String) -> (StatusCode, String) {
    runs.run().await;
    (StatusCode::ACCEPTED, "x".repeat(body.parse().expect("the request is a number")))
}

#[idempotent(scope = "large-streams", max_body = "1KiB")]
async fn large_stream(State(runs): State<Runs>) -> (StatusCode, Body) {
    runs.run().await;
    (StatusCode::ACCEPTED, Body::from_stream(chunks(100, 1000)))
}

#[idempotent(scope = "large-reruns", max_body = "1KiB", oversize = "rerun")]
async fn large_reruns(State(runs): State<Runs>) -> Body {
    runs.run().await;
    Body::from_stream(chunks(100, 1000))
}

#[idempotent(scope = "small-streams")]
async fn small_stream(State(runs): State<Runs>) -> Body {
    runs.run().await;
    Body::from_stream(chunks(3, 5))
}

#[idempotent(scope = "broken-streams")]
async fn broken_stream(State(runs): State<Runs>) -> Body {
    runs.run().await;
    let broken = stream::iter([Ok(Bytes::from_static(b"part")), Err(std::io::Error::other("the disk is gone"))]);
    Body::from_stream(broken)
}

#[idempotent(scope = "broken-reruns", oversize = "rerun")]
async fn broken_reruns(state: State<Runs>) -> Body {
    broken_stream(state.into()).await.into_body()
}

fn chunks(count: usize, length: usize) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static {
    stream::iter(0..count).map(move |_| Ok(Bytes::from(vec![b'x'; length])))
}

#[idempotent(scope = "recording-events")]
async fn events(State(runs): State<Runs>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let first = stream::iter([Ok(Event::default().data("begun"))]);
    Sse::new(first.chain(stream::once(async move {
        let run = runs.run().await;
        Ok(Event::default().data(format!("run {run} is done")))
    })))
}

#[idempotent(scope = "empty")]
async fn nothing(State(runs): State<Runs>) {
    runs.run().await;
}

async fn serve(runs: &Runs) -> Server {
    let app = Router::new()
        .route("/default", post(by_default))
        .route("/list", post(by_list))
        .route("/all", post(by_all))
        .route("/predicate", post(by_predicate))
        .route("/headers", post(with_headers))
        .route("/kept-headers", post(with_exceptions))
        .route("/absolute", post(with_absolute_retry_after))
        .route("/large", post(large))
        .route("/large-streams", post(large_stream))
        .route("/large-reruns", post(large_reruns))
        .route("/small-streams", post(small_stream))
        .route("/broken-streams", post(broken_stream))
        .route("/broken-reruns", post(broken_reruns))
        .route("/events", post(events))
        .route("/empty", post(nothing))
        .with_state(runs.clone())
        .layer(Registry::new(MemoryStore::new()).layer());
    Server::start(app).await
}

async fn send(server: &Server, path: &str, key: &str, body: impl Into<reqwest::Body>) -> Answer {
    answer(server.post(path).header("idempotency-key", key).body(body)).await
}

#[tokio::test]
async fn the_statuses_of_the_policy_are_recorded_and_no_others() {
    let server = serve(&Runs::free()).await;
    let expected: [(&str, &[u16], &[u16]); 3] = [
        ("/default", &[200, 201, 204, 299], &[300, 302, 400, 401, 404, 409, 422, 429, 500, 503]),
        ("/list", &[201, 409, 500, 501, 420, 421, 422, 300, 308], &[200, 202, 400, 419, 423, 502, 503]),
        ("/all", &[200, 302, 402, 418, 500, 599], &[]),
    ];
    for (path, recorded, not_recorded) in expected {
        for (statuses, is_recorded) in [(recorded, true), (not_recorded, false)] {
            for status in statuses {
                let first = send(&server, path, &status.to_string(), status.to_string()).await;
                let second = send(&server, path, &status.to_string(), status.to_string()).await;
                assert_eq!((first.status.as_u16(), second.status.as_u16()), (*status, *status), "{path}");
                assert_eq!(second.is_replay(), is_recorded, "{path} {status}");
                assert_eq!(first.body == second.body, is_recorded || *status == 204, "{path} {status}");
            }
        }
    }
}

#[tokio::test]
async fn an_interim_status_is_never_recorded() {
    use tower::ServiceExt;

    let runs = Runs::free();
    let app = Router::new()
        .route("/", post(by_all))
        .with_state(runs.clone())
        .layer(Registry::new(MemoryStore::new()).layer());
    for run in 1..=2 {
        let request = axum::http::Request::post("/").header("idempotency-key", "k").body(Body::from("101"));
        let response = app.clone().oneshot(request.expect("a well-formed request")).await.expect("a router answers");
        assert_eq!((response.status(), runs.started()), (StatusCode::SWITCHING_PROTOCOLS, run));
    }
}

#[tokio::test]
async fn a_predicate_decides_by_status_and_headers() {
    let server = serve(&Runs::free()).await;
    assert_eq!(send(&server, "/predicate", "a", "final").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(send(&server, "/predicate", "a", "final").await.is_replay());
    assert_eq!(send(&server, "/predicate", "b", "not yet").await.status, StatusCode::OK);
    assert!(!send(&server, "/predicate", "b", "not yet").await.is_replay());
}

#[tokio::test]
async fn headers_but_those_of_a_connection_are_replayed_as_bytes() {
    let server = serve(&Runs::free()).await;
    let request = b"POST /headers HTTP/1.1\r\nhost: 127.0.0.1\r\nidempotency-key: k\r\nconnection: close\r\n\
        content-length: 0\r\n\r\n";
    let first = server.raw(request).await;
    assert!(first.contains("set-cookie: session=secret"), "the first client gets all of them: {first}");
    assert!(!first.contains("idempotent-replayed"), "only a replay has the mark: {first}");
    let replay = send(&server, "/headers", "k", "").await;
    assert!(replay.is_replay());
    assert_eq!(replay.text(), "body");
    let many: Vec<_> = replay.headers.get_all("x-many").iter().map(HeaderValue::as_bytes).collect();
    assert_eq!(many, [b"first".as_slice(), b"second", b""]);
    assert_eq!(replay.headers["x-bytes"].as_bytes(), b"\xff\xfe caf\xe9");
    assert_eq!(replay.headers["location"], "/charges/1");
    assert_eq!(replay.headers.get_all("idempotent-replayed").iter().count(), 1);
    for left_out in [
        "connection",
        "x-hop",
        "x-other-hop",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "upgrade",
        "proxy-authenticate",
        "proxy-authentication-info",
        "set-cookie",
        "retry-after",
    ] {
        assert!(!replay.headers.contains_key(left_out), "{left_out}");
    }
    assert_ne!(replay.headers["date"], "Tue, 15 Nov 1994 08:12:31 GMT");
    assert_eq!(replay.headers["content-length"], "4");
}

#[tokio::test]
async fn keep_headers_and_drop_headers_make_exceptions() {
    let server = serve(&Runs::free()).await;
    send(&server, "/kept-headers", "k", "").await;
    let replay = send(&server, "/kept-headers", "k", "").await;
    assert!(replay.is_replay());
    assert_eq!(replay.headers["set-cookie"], "session=secret");
    assert_eq!(replay.headers["retry-after"], "120");
    assert!(!replay.headers.contains_key("location") && !replay.headers.contains_key("x-many"));
}

#[tokio::test]
async fn a_retry_after_that_is_a_date_is_replayed() {
    let server = serve(&Runs::free()).await;
    send(&server, "/absolute", "k", "").await;
    assert_eq!(send(&server, "/absolute", "k", "").await.headers["retry-after"], "Tue, 15 Nov 1994 08:12:31 GMT");
}

#[tokio::test]
async fn a_response_over_the_cap_arrives_whole_and_never_runs_again() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    for (path, key) in [("/large", "a"), ("/large-streams", "b")] {
        let first = send(&server, path, key, "100000").await;
        assert_eq!((first.status, first.body.len()), (StatusCode::ACCEPTED, 100_000), "{path}");
        let is_told = first.headers.get("idempotent-recorded").is_some_and(|recorded| recorded == "false");
        assert_eq!(is_told, path == "/large", "if it is known when its head is sent");
        let retry = send(&server, path, key, "100000").await;
        assert_eq!((retry.status, retry.rejection().as_str()), (StatusCode::CONFLICT, "response_not_recorded"));
        assert_eq!(retry.json()["original_status"], 202);
        assert!(retry.json()["detail"].as_str().is_some_and(|detail| detail.contains("202")));
    }
    assert_eq!(runs.started(), 2);
}

#[tokio::test]
async fn the_cap_is_the_largest_recorded_length() {
    let server = serve(&Runs::free()).await;
    send(&server, "/large", "a", "1024").await;
    assert!(send(&server, "/large", "a", "1024").await.is_replay());
    send(&server, "/large", "b", "1025").await;
    assert_eq!(send(&server, "/large", "b", "1025").await.rejection(), "response_not_recorded");
    assert_eq!(send(&server, "/large", "b", "1").await.rejection(), "key_reused", "422 takes precedence over 409");
}

#[tokio::test]
async fn an_oversize_response_runs_again_where_the_policy_says_so() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    for run in 1..=2 {
        assert_eq!(send(&server, "/large-reruns", "k", "").await.body.len(), 100_000);
        assert_eq!(runs.started(), run);
    }
}

#[tokio::test]
async fn a_streamed_response_within_the_cap_is_replayed() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    let first = send(&server, "/small-streams", "k", "").await;
    let second = send(&server, "/small-streams", "k", "").await;
    assert_eq!(first.body, b"x".repeat(15));
    assert_eq!(second.body, first.body);
    assert!(second.is_replay());
}

#[tokio::test]
async fn an_empty_response_is_replayed() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    send(&server, "/empty", "k", "").await;
    let replay = send(&server, "/empty", "k", "").await;
    assert_eq!((replay.status, replay.body.len(), replay.is_replay()), (StatusCode::OK, 0, true));
    assert_eq!(runs.started(), 1);
}

#[tokio::test]
async fn broken_off_response_is_not_replayed_as_whole() {
    let runs = Runs::free();
    let server = serve(&runs).await;
    // Although an oversize response may run again with this policy, this one may not: it does not announce its size.
    for (path, run) in [("/broken-streams", 1), ("/broken-reruns", 2)] {
        let request = server.post(path).header("idempotency-key", "k");
        let read = async { request.send().await?.bytes().await };
        assert!(read.await.is_err(), "the client sees that it breaks off");
        assert_eq!(send(&server, path, "k", "").await.rejection(), "response_not_recorded");
        assert_eq!(runs.started(), run);
    }
}

#[tokio::test]
async fn server_sent_events_go_out_as_written_and_are_recorded() {
    let runs = Runs::held();
    let server = serve(&runs).await;
    let mut stream =
        server.post("/events").header("idempotency-key", "k").send().await.expect("the server answers").bytes_stream();
    let first = tokio::time::timeout(PATIENCE, stream.next()).await.expect("the first event comes at once");
    assert_eq!(first.expect("an event").expect("a whole one"), "data: begun\n\n");
    runs.let_finish(1);
    let rest: Vec<_> = tokio::time::timeout(PATIENCE, stream.collect()).await.expect("the stream ends");
    assert_eq!(
        rest.into_iter().map(|chunk| chunk.expect("whole")).collect::<Vec<_>>().concat(),
        b"data: run 1 is done\n\n"
    );
    let replay = send(&server, "/events", "k", "").await;
    assert_eq!((replay.text(), replay.is_replay()), ("data: begun\n\ndata: run 1 is done\n\n", true));
    assert_eq!(replay.headers["content-type"], "text/event-stream");
    assert_eq!(runs.started(), 1);
}

#[idempotent(scope = "short-lived", ttl = "1s")]
async fn short_lived(State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

#[tokio::test]
async fn after_its_time_to_live_a_key_is_new() {
    use tower::ServiceExt;

    let runs = Runs::free();
    let app = Router::new()
        .route("/", post(short_lived))
        .with_state(runs.clone())
        .layer(Registry::new(MemoryStore::new()).layer());
    let send = async || {
        let request = axum::http::Request::post("/").header("idempotency-key", "k").body(Body::empty());
        app.clone().oneshot(request.expect("a well-formed request")).await.expect("the router never fails")
    };
    tokio::time::pause();
    send().await;
    tokio::time::advance(Duration::from_millis(990)).await;
    assert!(send().await.headers().contains_key("idempotent-replayed"));
    tokio::time::advance(Duration::from_millis(20)).await;
    assert!(!send().await.headers().contains_key("idempotent-replayed"));
    assert_eq!(runs.started(), 2);
}
