//! The attacked server: handlers that count their executions by key, and what must hold for every answer.

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::store::MemoryStore;
use idempotent_runtime::{Idempotency, Registry, idempotent};
use idempotent_tests::{Answer, Exchange, Executions, Logs, PATIENCE, Raw, Server};
use tower_http::catch_panic::CatchPanicLayer;

/// Part of every key that is longer than one byte. It must be in no answer and in no line of the log.
pub(crate) const SECRET: &str = "hush";

/// Returns only as many bytes as the body has, and nothing of the body: a broken request's key may have become a part
/// of its body.
#[idempotent(scope = "raw-charges", required, max_body = "1KiB")]
async fn create_charge(
    State(executions): State<Executions>,
    idempotency: Idempotency,
    body: Bytes,
) -> (StatusCode, Vec<u8>) {
    executions.count(idempotency.key().expect("the policy requires a key"));
    (StatusCode::CREATED, vec![b'.'; body.len()])
}

/// Does not use the body, so only the guard can notice that the body is broken.
#[idempotent(scope = "orders", required)]
async fn create_order(State(executions): State<Executions>, idempotency: Idempotency) -> StatusCode {
    executions.count(&format!("order {}", idempotency.key().expect("the policy requires a key")));
    StatusCode::CREATED
}

/// The paths of the handlers.
pub(crate) const PATHS: [&str; 2] = ["/charges", "/orders"];

/// A server with its own store.
pub(crate) struct Charges {
    server: Server,
    registry: Registry,
    executions: Executions,
}

impl Charges {
    pub(crate) async fn start() -> Self {
        let (registry, executions) = (Registry::new(MemoryStore::new()), Executions::default());
        let app = Router::new()
            .route("/charges", post(create_charge))
            .route("/orders", post(create_order))
            .with_state(executions.clone())
            .layer(registry.layer())
            // A panic becomes a 500, which is never an allowed answer.
            .layer(CatchPanicLayer::new());
        Self { server: Server::start(app).await, registry, executions }
    }

    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    pub(crate) fn executions(&self) -> usize {
        self.executions.total()
    }

    /// Sends these bytes. Every answer must be a documented one, and must not contain the key.
    pub(crate) async fn send(&self, raw: Raw, bytes: &[u8]) -> Exchange {
        let exchange = raw.send(self.server.address(), bytes).await;
        for answer in &exchange.answers {
            check(answer);
        }
        assert!(exchange.rest.is_empty(), "half an answer: {}", exchange.rest.escape_ascii());
        exchange
    }

    /// The only answer to these bytes, after which the server closes the connection.
    pub(crate) async fn answer(&self, bytes: &[u8]) -> Answer {
        let mut exchange = self.send(Raw::UntilClosed, bytes).await;
        assert_eq!(exchange.answers.len(), 1, "{exchange:?}");
        exchange.answers.remove(0)
    }

    /// The request is rejected with this status, and no handler has run.
    pub(crate) async fn is_rejected(&self, name: &str, bytes: &[u8], status: u16) -> Answer {
        let before = self.executions();
        let answer = self.answer(bytes).await;
        assert_eq!(answer.status.as_u16(), status, "{name}: {answer:?}");
        assert_eq!(self.executions(), before, "{name} ran a handler");
        answer
    }

    /// The request is executed once, and replayed when it is sent again.
    pub(crate) async fn is_executed_once(&self, name: &str, bytes: &[u8]) {
        let before = self.executions();
        let first = self.answer(bytes).await;
        assert_eq!((first.status, first.is_replay()), (StatusCode::CREATED, false), "{name}: {first:?}");
        let again = self.answer(bytes).await;
        assert_eq!((again.status, again.is_replay()), (StatusCode::CREATED, true), "{name}: {again:?}");
        assert_eq!(self.executions(), before + 1, "{name}");
    }

    /// What must hold after all attacks: no handler still runs, no key ran twice, a good request is served, and the log
    /// contains no error of the server and no key.
    pub(crate) async fn is_unharmed(&self, logs: &Logs) {
        assert_eq!(self.registry.drain(PATIENCE).await, 0);
        assert_eq!(self.executions.repeated(), []);
        self.is_executed_once("a good request", &request("/charges", &format!("{SECRET}-after-all"), b"")).await;
        assert_eq!(logs.of_level("ERROR"), [""; 0]);
        assert!(!logs.text().contains(SECRET), "the log contains a key");
    }
}

/// A good request, after which the server closes the connection.
pub(crate) fn request(path: &str, key: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-length: {length}\r\n\
         idempotency-key: {key}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

fn check(answer: &Answer) {
    let expected: &[&str] = match answer.status.as_u16() {
        400 => &["invalid_key", "missing_key"],
        409 => &["in_flight", "response_not_recorded"],
        // A fingerprint has 16 bits of each part to tell which one differs. If all are equal by chance, it seems to be the
        // credentials.
        422 => &["key_reused", "other_credentials"],
        // The handler's own status, and those of axum and hyper: unknown path or method; body, path or head too large.
        201 | 404 | 405 | 413 | 414 | 431 => &[],
        _ => panic!("not documented: {answer:?}"),
    };
    if answer.headers.get("content-type").is_some_and(|value| value == "application/problem+json") {
        assert!(expected.contains(&answer.rejection().as_str()), "{answer:?}");
    } else {
        assert!(!matches!(answer.status.as_u16(), 409 | 422), "not documented: {answer:?}");
    }
    let told = [answer.body.clone(), format!("{:?}", answer.headers).into_bytes()].concat();
    assert!(!String::from_utf8_lossy(&told).contains(SECRET), "the key is in {answer:?}");
}
