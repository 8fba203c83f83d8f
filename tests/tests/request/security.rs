//! What one caller can learn about another, and what logs and rejections reveal.

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use idempotent_runtime::{Registry, idempotent};
use idempotent_tests::{Answer, Fault, FaultyStore, Logs, Runs, Server, answer};

const SECRET: &str = "planted-response-of-alice";

type Charged = (StatusCode, [(&'static str, String); 1], String);

fn charged(run: usize) -> Charged {
    (StatusCode::CREATED, [("x-receipt", format!("{SECRET}-header"))], format!("{SECRET} {run}"))
}

fn user(headers: &HeaderMap) -> String {
    headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

#[idempotent(scope = "by-credentials")]
async fn by_credentials(State(runs): State<Runs>, body: String) -> Charged {
    drop(body);
    charged(runs.run().await)
}

#[idempotent(scope = "by-caller", caller = user(&headers))]
async fn by_caller(State(runs): State<Runs>, headers: HeaderMap, body: String) -> Charged {
    drop(body);
    charged(runs.run().await)
}

#[idempotent(scope = "other", fingerprint = none)]
async fn in_another_scope(State(runs): State<Runs>) -> String {
    format!("other {}", runs.run().await)
}

#[idempotent(scope = "shared-path", fingerprint = none)]
async fn in_one_scope(State(runs): State<Runs>) -> String {
    format!("one {}", runs.run().await)
}

#[idempotent(scope = "security-large", max_body = "1KiB")]
async fn large(State(runs): State<Runs>) -> String {
    runs.run().await;
    SECRET.repeat(100)
}

#[idempotent(scope = "unknown", after_crash = "reject", lease = "500ms")]
async fn panics(State(runs): State<Runs>) -> String {
    runs.run().await;
    panic!("after the card was charged");
}

async fn serve(runs: &Runs, store: FaultyStore) -> Server {
    let app = Router::new()
        .route("/by-credentials", post(by_credentials))
        .route("/by-caller", post(by_caller))
        .route("/other", post(in_another_scope))
        .route("/one", post(in_one_scope))
        .route("/large", post(large))
        .route("/unknown", post(panics))
        .with_state(runs.clone());
    let registry = Registry::builder(store).max_in_flight_per_caller(2).build();
    Server::start(app.layer(registry.layer()).layer(tower_http::catch_panic::CatchPanicLayer::new())).await
}

async fn send(server: &Server, path: &str, key: &str, user: &str, body: &'static str) -> Answer {
    answer(server.post(path).header("idempotency-key", key).header("authorization", user).body(body)).await
}

fn shows(answer: &Answer, secret: &str) -> bool {
    let in_headers = answer.headers.values().any(|value| String::from_utf8_lossy(value.as_bytes()).contains(secret));
    in_headers || String::from_utf8_lossy(&answer.body).contains(secret)
}

#[tokio::test]
async fn key_reused_by_another_principal_shows_nothing() {
    let (runs, store) = (Runs::free(), FaultyStore::new());
    let server = serve(&runs, store.clone()).await;
    send(&server, "/by-credentials", "k", "Bearer alice", "tea").await;
    let before = store.claims();
    let rejected = send(&server, "/by-credentials", "k", "Bearer mallory", "tea").await;
    assert_eq!(rejected.rejection(), "other_credentials");
    assert!(!shows(&rejected, SECRET), "{rejected:?}");
    assert!(!rejected.is_replay());
    // The answer does not depend on what mallory asks for: nothing reveals what alice has asked for.
    let another = send(&server, "/by-credentials", "k", "Bearer mallory", "coffee").await;
    assert_eq!((another.status, another.body), (rejected.status, rejected.body));
    assert_eq!(store.claims(), before + 2, "each asks the store once, as a fresh key does");
    assert_eq!(runs.started(), 1);
}

#[tokio::test]
async fn another_callers_key_is_a_key_of_its_own() {
    let (runs, store) = (Runs::free(), FaultyStore::new());
    let server = serve(&runs, store.clone()).await;
    let alice = send(&server, "/by-caller", "k", "alice", "tea").await;
    let before = store.claims();
    let mallory = send(&server, "/by-caller", "k", "mallory", "tea").await;
    assert!(!mallory.is_replay());
    assert_ne!(mallory.text(), alice.text(), "the handler ran for mallory");
    assert_eq!(store.claims(), before + 1);
    assert_eq!(send(&server, "/by-caller", "k", "alice", "tea").await.text(), alice.text());
    assert_eq!(runs.started(), 2);
}

#[tokio::test]
async fn a_key_of_one_scope_never_reaches_another() {
    let runs = Runs::free();
    let server = serve(&runs, FaultyStore::new()).await;
    assert_eq!(send(&server, "/one", "k", "alice", "").await.text(), "one 1");
    let other = send(&server, "/other", "k", "alice", "").await;
    assert_eq!((other.text(), other.is_replay()), ("other 2", false));
}

const REJECTED: [&str; 9] = [
    "in_flight",
    "too_many_in_flight",
    "key_reused",
    "invalid_key",
    "response_not_recorded",
    "outcome_unknown",
    "store_unavailable",
    "store_unavailable",
    "store_unavailable",
];

#[tokio::test]
async fn no_rejection_and_no_log_shows_a_key_a_body_or_a_credential() {
    const KEY: &str = "planted-key-91cd";
    const USER: &str = "planted-credential-3f";
    const BODY: &str = "planted-request-body";
    let logs = Logs::collect();
    let (runs, store) = (Runs::held(), FaultyStore::new());
    let server = std::sync::Arc::new(serve(&runs, store.clone()).await);
    let mut rejections = Vec::new();

    let first = tokio::spawn({
        let server = server.clone();
        async move { send(&server, "/by-credentials", KEY, USER, BODY).await }
    });
    runs.until_started(1).await;
    rejections.push(send(&server, "/by-credentials", KEY, USER, BODY).await);
    let second = tokio::spawn({
        let server = server.clone();
        async move { send(&server, "/by-credentials", "planted-key-2", USER, BODY).await }
    });
    runs.until_started(2).await;
    rejections.push(send(&server, "/by-credentials", "planted-key-3", USER, BODY).await);
    runs.let_finish(100);
    first.await.expect("the request runs");
    second.await.expect("the request runs");
    rejections.push(send(&server, "/by-credentials", KEY, USER, "planted-request-body-2").await);
    rejections.push(send(&server, "/by-credentials", "planted,key", USER, BODY).await);
    send(&server, "/large", KEY, USER, BODY).await;
    rejections.push(send(&server, "/large", KEY, USER, BODY).await);
    send(&server, "/unknown", KEY, USER, BODY).await;
    rejections.push(send(&server, "/unknown", KEY, USER, BODY).await);
    for fault in [Fault::Unreachable, Fault::Damaged, Fault::Full] {
        store.on_claim(fault);
        rejections.push(send(&server, "/by-credentials", "planted-key-4", USER, BODY).await);
    }
    store.on_claim(Fault::None);
    store.on_complete(Fault::Unreachable);
    send(&server, "/by-credentials", "planted-key-5", USER, BODY).await;
    store.on_complete(Fault::None);

    assert_eq!(rejections.iter().map(Answer::rejection).collect::<Vec<_>>(), REJECTED);
    for secret in ["planted-key", "planted,key", USER, BODY, SECRET] {
        assert!(rejections.iter().all(|rejection| !shows(rejection, secret)), "{secret} in {rejections:?}");
        // What hyper logs about its own buffers at TRACE is outside of this library.
        let text = logs.text();
        let ours = text.lines().filter(|line| line.contains("idempotent")).find(|line| line.contains(secret));
        assert_eq!(ours, None);
    }
    assert!(logs.of_level("ERROR").len() >= 4, "there was something to show: {:?}", logs.of_level("ERROR"));
}
