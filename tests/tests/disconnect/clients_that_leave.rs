//! A client disconnects while it sends, while the handler runs, and while it reads, over HTTP/1.1 and HTTP/2. What was
//! begun is done once and recorded, and the retry gets all of it as a replay.

use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::post;
use futures_util::stream::{self, StreamExt as _};
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{Registry, idempotent};
use idempotent_tests::{Answer, Logs, Mode, PATIENCE, Proxy, Runs, Server, answer, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// Larger than the buffers of a connection, and small enough to be recorded.
const LARGE: usize = 3 * 1024 * 1024;

#[idempotent(scope = "left-charges")]
async fn create_charge(State(runs): State<Runs>, body: String) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charge {} for {}", runs.run().await, body.len()))
}

/// Does not need the body, neither in the handler nor for the fingerprint.
#[idempotent(scope = "pings", fingerprint = none)]
async fn ping(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("ping {}", runs.run().await))
}

#[idempotent(scope = "reports")]
async fn report(State(runs): State<Runs>) -> (StatusCode, Vec<u8>) {
    let run = runs.run().await;
    (StatusCode::CREATED, (0..LARGE).map(|at| u8::try_from((at / 4096 + run) % 251).expect("below 251")).collect())
}

/// Reports when the server has finished a request, with or without an answer.
async fn tell_end(State(ended): State<watch::Sender<usize>>, request: Request, next: Next) -> Response {
    struct End(watch::Sender<usize>);
    impl Drop for End {
        fn drop(&mut self) {
            self.0.send_modify(|ended| *ended += 1);
        }
    }
    let _end = End(ended);
    next.run(request).await
}

struct Service {
    server: Server,
    runs: Runs,
    store: MemoryStore,
    registry: Registry,
    ended: watch::Sender<usize>,
}

impl Service {
    async fn start(runs: Runs) -> Self {
        let (store, ended) = (MemoryStore::new(), watch::Sender::new(0));
        let registry = Registry::new(store.clone());
        let app = Router::new()
            .route("/charges", post(create_charge))
            .route("/pings", post(ping))
            .route("/reports", post(report))
            .with_state(runs.clone())
            .layer(registry.layer())
            .layer(from_fn_with_state(ended.clone(), tell_end));
        Self { server: Server::start(app).await, runs, store, registry, ended }
    }

    async fn until_ended(&self, count: usize) {
        let mut ended = self.ended.subscribe();
        let waited = tokio::time::timeout(PATIENCE, ended.wait_for(|&ended| ended >= count)).await;
        waited.expect("the server ends the request").expect("the sender is not dropped");
    }

    async fn retry(&self, path: &str, key: &str, body: &'static str) -> Answer {
        answer(self.server.post(path).header("idempotency-key", key).body(body)).await
    }
}

/// The log line for a request that continues after its client has disconnected.
const GOES_ON: &str = "the client disconnected: the handler continues";

async fn until_left(logs: &Logs, clients: usize) {
    eventually(async || logs.text().matches(GOES_ON).count(), |&left| left == clients).await;
}

/// Resets the connection: the server's next read fails.
fn reset(connection: &TcpStream) {
    connection.set_zero_linger().expect("the option is known");
}

fn head(path: &str, key: &str, framing: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nidempotency-key: {key}\r\n{framing}\r\n\r\n")
}

/// Requests of which only a half arrives: with an announced length, and in chunks.
fn halves(path: &str) -> [String; 2] {
    [
        head(path, "k", "content-length: 1000") + "half of it",
        head(path, "k", "transfer-encoding: chunked") + "a\r\nhalf of it\r\n",
    ]
}

/// A client that assumes HTTP/2, with one connection for all its requests.
fn http2(address: &str) -> (reqwest::Client, String) {
    let client = reqwest::Client::builder().http2_prior_knowledge().retry(reqwest::retry::never()).build();
    (client.expect("a client without TLS"), format!("http://{address}"))
}

/// A body whose second half never comes.
fn half_a_body() -> reqwest::Body {
    let half = stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"half of it")) });
    reqwest::Body::wrap_stream(half.chain(stream::pending()))
}

#[tokio::test]
async fn http1_cut_off_in_the_body_executes_nothing() {
    for is_reset in [false, true] {
        for half in halves("/charges") {
            let service = Service::start(Runs::free()).await;
            let connection = service.server.connect_and_send(half.as_bytes()).await;
            if is_reset {
                reset(&connection);
            }
            drop(connection);
            service.until_ended(1).await;
            assert_eq!((service.runs.started(), service.store.len()), (0, 0), "{half}");
            let retry = service.retry("/charges", "k", "all of it").await;
            assert_eq!((retry.text(), retry.is_replay()), ("charge 1 for 9", false), "{half}");
        }
    }
}

#[tokio::test]
async fn http2_cut_off_in_the_body_executes_nothing() {
    let service = Service::start(Runs::free()).await;
    let (client, url) = http2(&service.server.address().to_string());
    let half = client.post(format!("{url}/charges")).header("idempotency-key", "k").body(half_a_body()).send();
    // The request is dropped when the server has had it for long enough to answer another one. This resets the stream.
    tokio::select! {
        biased;
        answered = half => panic!("{answered:?}"),
        whole = answer(client.post(format!("{url}/pings")).header("idempotency-key", "other")) => {
            assert_eq!(whole.text(), "ping 1");
        }
    }
    service.until_ended(2).await;
    assert_eq!((service.runs.started(), service.store.len()), (1, 1), "only the ping was executed");
    let retry = service.retry("/charges", "k", "all of it").await;
    assert_eq!((retry.text(), retry.is_replay()), ("charge 2 for 9", false));
}

#[tokio::test]
async fn cut_off_in_an_unread_body_executes_and_replays() {
    for half in halves("/pings") {
        let service = Service::start(Runs::held()).await;
        let connection = service.server.connect_and_send(half.as_bytes()).await;
        service.runs.until_started(1).await;
        reset(&connection);
        drop(connection);
        // The server does not read further until the handler has ended, so it does not see that the client has
        // disconnected.
        service.runs.let_finish(1);
        service.until_ended(1).await;
        assert_eq!(service.registry.drain(PATIENCE).await, 0);
        let retry = service.retry("/pings", "k", "").await;
        assert_eq!((retry.text(), retry.is_replay()), ("ping 1", true), "{half}");
        assert_eq!(service.runs.finished(), 1);
    }
}

#[tokio::test]
async fn http1_reset_in_the_handler_executes_once_and_replays() {
    let (service, logs) = (Service::start(Runs::held()).await, Logs::collect());
    for number in 0..20 {
        let request = head("/charges", &format!("k{number}"), "content-length: 3") + "tea";
        let connection = service.server.connect_and_send(request.as_bytes()).await;
        service.runs.until_started(number + 1).await;
        reset(&connection);
    }
    until_left(&logs, 20).await;
    service.runs.let_finish(20);
    assert_eq!(service.registry.drain(PATIENCE).await, 0);
    for number in 0..20 {
        let retry = service.retry("/charges", &format!("k{number}"), "tea").await;
        assert_eq!((retry.text(), retry.is_replay()), (format!("charge {} for 3", number + 1).as_str(), true));
    }
    assert_eq!(service.runs.started(), 20);
}

#[tokio::test]
async fn http2_reset_streams_are_replayed_and_harm_no_other() {
    let (service, logs) = (Service::start(Runs::held()).await, Logs::collect());
    let (client, url) = http2(&service.server.address().to_string());
    let post = |key: String| client.post(format!("{url}/charges")).header("idempotency-key", key).body("tea");
    let (mut leaving, mut staying) = (Vec::new(), Vec::new());
    for number in 0..20 {
        let stream = tokio::spawn(answer(post(format!("k{number}"))));
        if number % 2 == 0 { leaving.push(stream) } else { staying.push(stream) }
    }
    service.runs.until_started(20).await;
    leaving.iter().for_each(tokio::task::JoinHandle::abort);
    until_left(&logs, 10).await;
    service.runs.let_finish(20);
    for stream in staying {
        let stayed = stream.await.expect("the request runs");
        assert_eq!((stayed.status, stayed.is_replay()), (StatusCode::CREATED, false));
    }
    assert_eq!(service.registry.drain(PATIENCE).await, 0);
    for number in 0..20 {
        assert!(answer(post(format!("k{number}"))).await.is_replay(), "k{number}");
    }
    assert_eq!(service.runs.started(), 20);
}

#[tokio::test]
async fn a_connection_that_is_cut_takes_none_of_its_streams_along() {
    let (service, logs) = (Service::start(Runs::held()).await, Logs::collect());
    let line = Proxy::to(service.server.address().to_string()).await;
    let (client, url) = http2(line.address());
    let post = |key: String| client.post(format!("{url}/charges")).header("idempotency-key", key).body("tea");
    let streams: Vec<_> = (0..20).map(|number| tokio::spawn(post(format!("k{number}")).send())).collect();
    service.runs.until_started(20).await;
    line.set(Mode::IsCut);
    for stream in streams {
        assert!(stream.await.expect("the request runs").is_err(), "its connection is cut");
    }
    until_left(&logs, 20).await;
    service.runs.let_finish(20);
    assert_eq!(service.registry.drain(PATIENCE).await, 0);
    line.set(Mode::Passes);
    for number in 0..20 {
        assert!(answer(post(format!("k{number}"))).await.is_replay(), "k{number}");
    }
    assert_eq!(service.runs.started(), 20);
}

#[tokio::test]
async fn cut_off_in_the_response_over_http1_the_retry_gets_all_of_it() {
    for is_reset in [false, true] {
        let service = Service::start(Runs::free()).await;
        let request = head("/reports", "k", "content-length: 0");
        let mut connection = service.server.connect_and_send(request.as_bytes()).await;
        let mut part = [0; 10_000];
        connection.read_exact(&mut part).await.expect("the response has begun");
        if is_reset {
            reset(&connection);
        }
        connection.shutdown().await.expect("the connection is open");
        drop(connection);
        assert_whole(&service).await;
    }
}

#[tokio::test]
async fn cut_off_in_the_response_over_http2_the_retry_gets_all_of_it() {
    for is_whole_connection in [false, true] {
        let service = Service::start(Runs::free()).await;
        let line = Proxy::to(service.server.address().to_string()).await;
        let (client, url) = http2(line.address());
        let request = client.post(format!("{url}/reports")).header("idempotency-key", "k");
        let mut response = request.send().await.expect("the server answers");
        assert_eq!(response.chunk().await.expect("the body begins").map(|chunk| chunk.is_empty()), Some(false));
        if is_whole_connection {
            line.set(Mode::IsCut);
            let rest = async {
                while response.chunk().await?.is_some() {}
                Ok::<_, reqwest::Error>(())
            };
            assert!(rest.await.is_err(), "the connection is cut");
        }
        drop(response);
        assert_whole(&service).await;
    }
}

async fn assert_whole(service: &Service) {
    let retry = service.retry("/reports", "k", "").await;
    assert_eq!((retry.status, retry.is_replay()), (StatusCode::CREATED, true));
    let first = (0..LARGE).map(|at| u8::try_from((at / 4096 + 1) % 251).expect("below 251"));
    assert!(retry.body.len() == LARGE && retry.body.iter().copied().eq(first), "the first execution's, byte for byte");
    assert_eq!(service.runs.started(), 1);
    assert_eq!(service.registry.drain(Duration::ZERO).await, 0, "no request continues");
}
