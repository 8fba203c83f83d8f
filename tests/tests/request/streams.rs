//! Responses of unknown length: their frames are sent as they are made, and only their end waits for the record.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Request, StatusCode, Version, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures_util::stream::{self, Stream, StreamExt};
use idempotent_runtime::store::{MemoryStore, StoreAdmin};
use idempotent_runtime::{RecordKey, Registry, idempotent};
use idempotent_tests::{Answer, Fault, FaultyStore, PATIENCE, Runs, Server, eventually, take_over};
use tokio::io::AsyncReadExt;
use tower::ServiceExt;

const FIRST: &str = "{\"line\":1}\n";
const SECOND: &str = "{\"line\":2}\n";

/// Sends one line at once, and another one when the run may finish.
fn lines(runs: Runs) -> Body {
    let second = stream::once(async move {
        runs.run().await;
        Ok(SECOND)
    });
    Body::from_stream(stream::iter([Ok::<_, std::io::Error>(FIRST)]).chain(second))
}

#[idempotent(scope = "streams-lines", cache = [201])]
async fn two_lines(State(runs): State<Runs>) -> Response {
    (StatusCode::CREATED, [(header::CONTENT_TYPE, "application/x-ndjson")], lines(runs)).into_response()
}

/// Sends one line at once, and another one after each run, without an end.
fn endless(runs: Runs) -> impl Stream<Item = Result<&'static str, std::io::Error>> {
    stream::unfold(runs, |runs| async move {
        runs.run().await;
        Some((Ok(FIRST), runs))
    })
}

#[idempotent(scope = "streams-endless", lease = "300ms", max_body = "1KiB")]
async fn without_end(State(runs): State<Runs>) -> Response {
    let kind = [(header::CONTENT_TYPE, "multipart/x-mixed-replace; boundary=frame")];
    (kind, Body::from_stream(endless(runs))).into_response()
}

#[idempotent(scope = "streams-endless-again", lease = "300ms", oversize = "rerun")]
async fn without_end_again(State(runs): State<Runs>) -> Body {
    Body::from_stream(endless(runs))
}

#[idempotent(scope = "streams-passed", stream = "pass")]
async fn passed(State(runs): State<Runs>) -> Body {
    lines(runs)
}

#[idempotent(scope = "streams-passed-again", stream = "pass", oversize = "rerun")]
async fn passed_again(State(runs): State<Runs>) -> Body {
    lines(runs)
}

#[idempotent(scope = "streams-panic")]
async fn panics(State(runs): State<Runs>) -> Body {
    let run = runs.run().await;
    let second = stream::once(async move {
        assert!(run > 1, "the first run panics");
        Ok(SECOND)
    });
    Body::from_stream(stream::iter([Ok::<_, std::io::Error>(FIRST)]).chain(second))
}

/// The head announces the length of the stream.
#[idempotent(scope = "streams-of-known-length")]
async fn of_known_length(State(runs): State<Runs>) -> Response {
    ([(header::CONTENT_LENGTH, FIRST.len() + SECOND.len())], lines(runs)).into_response()
}

#[idempotent(scope = "streams-of-events")]
async fn events(State(runs): State<Runs>) -> Response {
    ([(header::CONTENT_TYPE, "Text/Event-Stream;;charset=utf-8")], lines(runs)).into_response()
}

/// The head announces one byte more than the stream has.
#[idempotent(scope = "streams-too-short")]
async fn too_short(State(runs): State<Runs>) -> Response {
    ([(header::CONTENT_LENGTH, FIRST.len() + SECOND.len() + 1)], lines(runs)).into_response()
}

/// The same, with the body in one frame.
#[idempotent(scope = "streams-too-short-at-once")]
async fn too_short_at_once() -> Response {
    ([(header::CONTENT_LENGTH, FIRST.len() + 1)], Body::from(FIRST)).into_response()
}

/// Empty frames, as fast as they are read.
#[idempotent(scope = "streams-empty", lease = "1s")]
async fn empty_frames(State(runs): State<Runs>) -> Body {
    runs.run().await;
    Body::from_stream(stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::new())).take(100_000_000))
}

async fn serve(runs: &Runs, store: impl StoreAdmin) -> Server {
    Server::start(app(runs, store)).await
}

fn app(runs: &Runs, store: impl StoreAdmin) -> Router {
    Router::new()
        .route("/lines", post(two_lines))
        .route("/endless", post(without_end))
        .route("/endless-again", post(without_end_again))
        .route("/passed", post(passed))
        .route("/passed-again", post(passed_again))
        .route("/panics", post(panics))
        .route("/known", post(of_known_length))
        .route("/events", post(events))
        .route("/too-short", post(too_short))
        .route("/too-short-at-once", post(too_short_at_once))
        .route("/empty", post(empty_frames))
        .with_state(runs.clone())
        .layer(Registry::new(store).layer())
}

/// A client of HTTP/1.1 or HTTP/2.
fn client(speaks_http2: bool) -> reqwest::Client {
    let client = reqwest::Client::builder().retry(reqwest::retry::never());
    let client = if speaks_http2 { client.http2_prior_knowledge() } else { client };
    client.build().expect("a client without TLS")
}

/// Sends a request to this path, and returns the response before its body.
async fn begin(server: &Server, client: &reqwest::Client, path: &str) -> reqwest::Response {
    let request = client.post(format!("http://{}{path}", server.address())).header("idempotency-key", "k");
    tokio::time::timeout(PATIENCE, request.send()).await.expect("the head is sent at once").expect("the server answers")
}

async fn chunk(response: &mut reqwest::Response) -> Option<Bytes> {
    tokio::time::timeout(PATIENCE, response.chunk()).await.expect("a frame is sent at once").expect("it is whole")
}

async fn retry_begins(server: &Server, path: &str) -> StatusCode {
    begin(server, &client(false), path).await.status()
}

async fn retry(server: &Server, path: &str) -> Answer {
    server.post_with_key(path, "k").await
}

#[tokio::test]
async fn frames_go_out_as_they_come_and_the_end_waits_for_the_record() {
    for speaks_http2 in [false, true] {
        let (runs, store) = (Runs::held(), FaultyStore::new());
        let server = serve(&runs, store.clone()).await;
        let mut first = begin(&server, &client(speaks_http2), "/lines").await;
        assert_eq!(first.status(), StatusCode::CREATED);
        assert!(!first.headers().contains_key("idempotent-recorded"));
        assert_eq!(chunk(&mut first).await.as_deref(), Some(FIRST.as_bytes()));
        assert_eq!(retry(&server, "/lines").await.rejection(), "in_flight", "until the end");
        store.on_complete(Fault::ArrivesLate);
        runs.let_finish(1);
        assert_eq!(chunk(&mut first).await.as_deref(), Some(SECOND.as_bytes()));
        let end = tokio::spawn(first.bytes());
        eventually(async || store.completions(), |&tried| tried == 1).await;
        assert!(!end.is_finished(), "not before the record");
        store.on_complete(Fault::None);
        store.let_through();
        assert_eq!(end.await.expect("it is read").expect("it is whole"), "");
        let replay = retry(&server, "/lines").await;
        assert!(replay.is_replay());
        assert_eq!((replay.status, replay.text()), (StatusCode::CREATED, format!("{FIRST}{SECOND}").as_str()));
        assert_eq!(replay.headers["content-type"], "application/x-ndjson");
        assert_eq!(replay.headers["content-length"], "22");
        assert_eq!(runs.started(), 1);
    }
}

#[tokio::test]
async fn stream_whose_claim_is_lost_ends_with_an_error() {
    for speaks_http2 in [false, true] {
        let (runs, store) = (Runs::held(), MemoryStore::new());
        let server = serve(&runs, store.clone()).await;
        let mut first = begin(&server, &client(speaks_http2), "/lines").await;
        assert_eq!(chunk(&mut first).await.as_deref(), Some(FIRST.as_bytes()));
        take_over(&store, &RecordKey::new("streams-lines", None, "k")).await;
        runs.let_finish(1);
        let rest = async {
            while first.chunk().await?.is_some() {}
            Ok::<_, reqwest::Error>(())
        };
        assert!(rest.await.is_err(), "no client considers it complete");
    }
}

#[tokio::test]
async fn stream_that_cannot_be_recorded_at_once_keeps_its_key() {
    let (runs, store) = (Runs::held(), FaultyStore::new());
    let server = serve(&runs, store.clone()).await;
    let mut first = begin(&server, &client(false), "/lines").await;
    chunk(&mut first).await;
    store.on_complete(Fault::Unreachable);
    runs.let_finish(1);
    assert_eq!(first.bytes().await.expect("it is whole"), SECOND);
    assert_eq!(retry(&server, "/lines").await.rejection(), "in_flight");
    store.on_complete(Fault::None);
    eventually(async || retry(&server, "/lines").await, Answer::is_replay).await;
    assert_eq!(runs.started(), 1);
}

#[tokio::test]
async fn stream_whose_client_leaves_is_read_to_its_end() {
    for speaks_http2 in [false, true] {
        let runs = Runs::held();
        let server = serve(&runs, MemoryStore::new()).await;
        let mut first = begin(&server, &client(speaks_http2), "/lines").await;
        chunk(&mut first).await;
        drop(first);
        runs.let_finish(1);
        let replay = eventually(async || retry(&server, "/lines").await, Answer::is_replay).await;
        assert_eq!((replay.text(), runs.started()), (format!("{FIRST}{SECOND}").as_str(), 1));
    }
}

#[tokio::test]
async fn endless_stream_ends_one_lease_after_its_client_left() {
    let runs = Runs::held();
    let server = serve(&runs, MemoryStore::new()).await;
    for (path, abandoned, runs_again) in [("/endless", 1, false), ("/endless-again", 2, true)] {
        runs.let_finish(1);
        let mut first = begin(&server, &client(false), path).await;
        assert_eq!(chunk(&mut first).await.as_deref(), Some(FIRST.as_bytes()));
        assert_eq!(retry(&server, path).await.rejection(), "in_flight");
        drop(first);
        runs.until_abandoned(abandoned).await;
        if runs_again {
            runs.let_finish(1);
            eventually(async || retry_begins(&server, path).await, |&status| status == StatusCode::OK).await;
        } else {
            let answer =
                eventually(async || retry(&server, path).await, |retry| retry.rejection() != "in_flight").await;
            assert_eq!(answer.rejection(), "response_not_recorded");
        }
    }
}

#[tokio::test]
async fn endless_stream_passes_on_beyond_the_cap() {
    let runs = Runs::free();
    let server = serve(&runs, MemoryStore::new()).await;
    let mut first = begin(&server, &client(false), "/endless").await;
    let mut received = 0;
    while received < 64 * 1024 {
        received += chunk(&mut first).await.map_or(0, |chunk| chunk.len());
    }
    assert_eq!(retry(&server, "/endless").await.rejection(), "response_not_recorded");
    drop(first);
}

#[tokio::test]
async fn a_passed_stream_is_not_recorded_and_ends_with_its_client() {
    let runs = Runs::held();
    let server = serve(&runs, MemoryStore::new()).await;
    for (path, ended) in [("/passed", 1), ("/passed-again", 2)] {
        let mut first = begin(&server, &client(false), path).await;
        assert_eq!(first.headers()["idempotent-recorded"], "false");
        assert_eq!(chunk(&mut first).await.as_deref(), Some(FIRST.as_bytes()));
        runs.until_started(ended).await;
        if path == "/passed" {
            assert_eq!(retry(&server, path).await.rejection(), "response_not_recorded", "while it runs");
        }
        drop(first);
        runs.until_abandoned(ended).await;
    }
    runs.let_finish(1);
    assert_eq!(retry(&server, "/passed-again").await.text(), format!("{FIRST}{SECOND}"));
    assert_eq!(retry(&server, "/passed").await.rejection(), "response_not_recorded");
}

#[tokio::test]
async fn stream_that_panics_breaks_off_and_frees_its_key() {
    let runs = Runs::free();
    let server = serve(&runs, MemoryStore::new()).await;
    let first = begin(&server, &client(false), "/panics").await;
    assert!(first.bytes().await.is_err(), "its client sees that it breaks off");
    assert_eq!(retry(&server, "/panics").await.text(), format!("{FIRST}{SECOND}"));
    assert!(retry(&server, "/panics").await.is_replay());
    assert_eq!(runs.started(), 2);
}

/// The client would take an incomplete response as complete: HTTP/1.0 ends a response with the connection, and a
/// response of known length ends with its last byte.
#[tokio::test]
async fn stream_whose_end_no_frame_tells_is_recorded_first() {
    for (path, scope, version) in [("/lines", "streams-lines", "1.0"), ("/known", "streams-of-known-length", "1.1")] {
        let (runs, store) = (Runs::held(), MemoryStore::new());
        let server = serve(&runs, store.clone()).await;
        let request = format!(
            "POST {path} HTTP/{version}\r\nhost: 127.0.0.1\r\nidempotency-key: k\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        );
        let mut connection = server.connect_and_send(request.as_bytes()).await;
        runs.until_started(1).await;
        take_over(&store, &RecordKey::new(scope, None, "k")).await;
        runs.let_finish(1);
        let mut received = String::new();
        connection.read_to_string(&mut received).await.expect("the server answers");
        assert!(received.contains(" 409 ") && received.contains("claim_lost"), "{received}");
        assert!(!received.contains(FIRST), "{received}");
    }
}

/// HTTP/1.0 ends a response with the connection. So the stream cannot be recorded while it is sent, and the client
/// would wait for the first event.
#[tokio::test]
async fn event_stream_of_odd_parameters_is_passed_to_http10() {
    let runs = Runs::free();
    let server = serve(&runs, MemoryStore::new()).await;
    let request = b"POST /events HTTP/1.0\r\nhost: 127.0.0.1\r\nidempotency-key: k\r\ncontent-length: 0\r\n\r\n";
    let first = server.raw(request).await;
    assert!(first.contains("idempotent-recorded: false") && first.ends_with(SECOND), "{first}");
    assert_eq!(retry(&server, "/events").await.rejection(), "response_not_recorded");
}

/// The client sees that the response breaks off, so a replay must not be complete.
#[tokio::test]
async fn response_shorter_than_its_length_is_not_recorded() {
    for path in ["/too-short", "/too-short-at-once"] {
        let server = serve(&Runs::free(), MemoryStore::new()).await;
        let first = server.post(path).header("idempotency-key", "k").send().await;
        let body = async { first?.bytes().await }.await;
        assert!(body.is_err(), "{path} breaks off");
        assert_eq!(retry(&server, path).await.rejection(), "response_not_recorded", "{path}");
    }
}

/// HTTP/1.0 ends a response with the connection, so the response is collected first.
#[tokio::test]
async fn frames_that_are_always_ready_are_collected_for_one_lease() {
    let runs = Runs::free();
    let app = app(&runs, MemoryStore::new());
    let request = |path: &str, version| {
        let request = Request::post(path).version(version).header("idempotency-key", "k");
        app.clone().oneshot(request.body(Body::empty()).expect("a valid request"))
    };
    let first = tokio::spawn(request("/empty", Version::HTTP_10));
    runs.until_started(1).await;
    let other = request("/lines", Version::HTTP_11).await.expect("a router answers");
    assert_eq!(other.status(), StatusCode::CREATED);
    assert!(!first.is_finished(), "the only thread of the runtime also serves another request");
    let first = first.await.expect("no panic").expect("a router answers");
    assert_eq!(first.headers()["idempotent-recorded"], "false");
}
