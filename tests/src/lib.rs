//! Shared by the behaviour tests: a server on a free loopback port, clients, and handlers that count and wait.

mod alone;
pub mod any;
mod certificates;
#[cfg(feature = "faults")]
mod dead;
mod dump;
mod executions;
pub mod fake_redis;
mod lock;
mod logs;
pub mod pgbouncer;
pub mod postgres;
mod proxy;
mod raw;
pub mod redis;
mod scopes;
mod sealing;
mod seed;
pub mod sentinel;
pub mod soak;
pub mod sqlite;
pub mod steps;
pub mod stores;
mod tmpfs;
mod wrapped;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use http::HeaderMap;
use reqwest::{Method, RequestBuilder, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

#[cfg(feature = "faults")]
pub use idempotent_runtime::testing::{Fault, FaultyStore};

pub use self::alone::alone;
pub use self::certificates::Certificates;
#[cfg(feature = "faults")]
pub use self::dead::{fingerprint_of_another_request, leave_a_claim, leave_a_claim_for, take_over};
pub use self::dump::Dump;
pub use self::executions::{Executions, post_until_answered};
pub use self::lock::lock;
pub use self::logs::Logs;
pub use self::proxy::{Loss, Mode, Proxy};
pub use self::raw::{Exchange, Raw};
pub use self::scopes::assert_different_scopes;
pub use self::sealing::sealing_key;
pub use self::seed::Seed;
pub use self::tmpfs::Tmpfs;
pub use self::wrapped::{Wrapped, Wrapper};

/// How long a test waits for something that must happen before it fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A server that serves a router on a free port of 127.0.0.1. It stops when it is dropped.
pub struct Server {
    address: SocketAddr,
    client: reqwest::Client,
    task: JoinHandle<()>,
}

impl Server {
    /// Serves `router`.
    ///
    /// # Panics
    ///
    /// When no port can be bound.
    pub async fn start(router: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound listener has an address");
        let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("the server runs") });
        // The client must not retry: the tests do that themselves.
        let client = reqwest::Client::builder().retry(reqwest::retry::never()).build().expect("a client without TLS");
        Self { address, client, task }
    }

    /// The address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A request to `path`.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("http://{}{path}", self.address))
    }

    /// A POST to `path`.
    pub fn post(&self, path: &str) -> RequestBuilder {
        self.request(Method::POST, path)
    }

    /// Sends a POST to `path` with this `Idempotency-Key`.
    pub async fn post_with_key(&self, path: &str, key: &str) -> Answer {
        answer(self.post(path).header("idempotency-key", key)).await
    }

    /// Sends these bytes on a new connection.
    ///
    /// # Panics
    ///
    /// When the server cannot be reached.
    pub async fn connect_and_send(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.expect("the server listens");
        stream.write_all(bytes).await.expect("the server reads");
        stream
    }

    /// Sends these bytes and returns everything that the server sends until the connection ends.
    ///
    /// # Panics
    ///
    /// When the server cannot be reached.
    pub async fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect_and_send(bytes).await;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("the server answers");
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A response, read to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    ///
    /// # Panics
    ///
    /// When the body is not UTF-8.
    pub fn text(&self) -> &str {
        str::from_utf8(&self.body).expect("the body is text")
    }

    /// The body as JSON.
    ///
    /// # Panics
    ///
    /// When the body is not JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }

    /// Whether the response is marked as a replay.
    pub fn is_replay(&self) -> bool {
        self.headers.get("idempotent-replayed").is_some_and(|value| value == "true")
    }

    /// The `code` of a rejection. Checks that the answer is a problem of RFC 9457 with every member that this crate
    /// promises.
    ///
    /// # Panics
    ///
    /// When the answer is not such a problem.
    pub fn rejection(&self) -> String {
        assert_eq!(
            self.headers.get("content-type").map(http::HeaderValue::as_bytes),
            Some(b"application/problem+json".as_slice()),
            "{self:?}"
        );
        let problem = self.json();
        assert_eq!(problem["status"], self.status.as_u16(), "{problem}");
        for member in ["type", "title", "detail", "code"] {
            assert!(problem[member].as_str().is_some_and(|text| !text.is_empty()), "{member} in {problem}");
        }
        problem["code"].as_str().expect("checked above").to_owned()
    }
}

/// Sends the request and reads its answer.
///
/// # Panics
///
/// When the connection breaks.
pub async fn answer(request: RequestBuilder) -> Answer {
    let response = request.send().await.expect("the server answers");
    let (status, headers) = (response.status(), response.headers().clone());
    Answer { status, headers, body: response.bytes().await.expect("the body arrives whole").to_vec() }
}

/// Counts a handler's executions, and holds them until they may go on.
#[derive(Clone)]
pub struct Runs {
    started: watch::Sender<usize>,
    finished: watch::Sender<usize>,
    abandoned: watch::Sender<usize>,
    may_finish: Arc<Semaphore>,
    numbers: Arc<AtomicUsize>,
}

impl Runs {
    /// Executions that continue at once.
    pub fn free() -> Self {
        Self::with_permits(Semaphore::MAX_PERMITS)
    }

    /// Executions that wait for [`Runs::let_finish`].
    pub fn held() -> Self {
        Self::with_permits(0)
    }

    fn with_permits(permits: usize) -> Self {
        Self {
            started: watch::Sender::new(0),
            finished: watch::Sender::new(0),
            abandoned: watch::Sender::new(0),
            may_finish: Arc::new(Semaphore::new(permits)),
            numbers: Arc::default(),
        }
    }

    /// Called by a handler. Counts the execution, waits until it may go on, and returns its number, counted from 1.
    ///
    /// # Panics
    ///
    /// Never: the semaphore is not closed.
    pub async fn run(&self) -> usize {
        let number = self.numbers.fetch_add(1, Ordering::SeqCst) + 1;
        self.started.send_modify(|started| *started += 1);
        let mut ended = Ended(Some(&self.abandoned));
        self.may_finish.acquire().await.expect("the semaphore stays open").forget();
        ended.0 = None;
        self.finished.send_modify(|finished| *finished += 1);
        number
    }

    /// Lets `count` executions go on.
    pub fn let_finish(&self, count: usize) {
        self.may_finish.add_permits(count);
    }

    /// How many executions have begun.
    pub fn started(&self) -> usize {
        *self.started.borrow()
    }

    /// How many executions have ended.
    pub fn finished(&self) -> usize {
        *self.finished.borrow()
    }

    /// Waits until `count` executions have begun.
    ///
    /// # Panics
    ///
    /// When fewer have begun in time.
    pub async fn until_started(&self, count: usize) {
        until(&self.started, count).await;
    }

    /// Waits until `count` executions have ended.
    ///
    /// # Panics
    ///
    /// When fewer have ended in time.
    pub async fn until_finished(&self, count: usize) {
        until(&self.finished, count).await;
    }

    /// Waits until `count` executions were dropped before their end.
    ///
    /// # Panics
    ///
    /// When fewer were dropped in time.
    pub async fn until_abandoned(&self, count: usize) {
        until(&self.abandoned, count).await;
    }
}

struct Ended<'a>(Option<&'a watch::Sender<usize>>);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if let Some(abandoned) = self.0 {
            abandoned.send_modify(|abandoned| *abandoned += 1);
        }
    }
}

async fn until(counter: &watch::Sender<usize>, count: usize) {
    let mut receiver = counter.subscribe();
    tokio::time::timeout(PATIENCE, receiver.wait_for(|&reached| reached >= count))
        .await
        .unwrap_or_else(|_| panic!("only {} of {count} executions", *counter.borrow()))
        .expect("the sender is not dropped");
}

/// Asks until the answer satisfies the condition. For effects that happen soon, in the background.
///
/// # Panics
///
/// When the answer does not satisfy in time.
pub async fn eventually<T: std::fmt::Debug>(mut ask: impl AsyncFnMut() -> T, satisfies: impl Fn(&T) -> bool) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let answer = ask().await;
        if satisfies(&answer) {
            return answer;
        }
        assert!(tokio::time::Instant::now() < deadline, "still {answer:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The README's code blocks.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

/// The code blocks of the page for operators.
#[cfg(doctest)]
#[doc = include_str!("../../docs/operations/README.md")]
struct Operations;

/// The code blocks of the cookbook.
#[cfg(doctest)]
#[doc = include_str!("../../docs/cookbook.md")]
struct Cookbook;
