//! The extraction after the claim is part of the guarded run: clients that disconnect, panics, steps, transactions.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{FromRequestParts, Request, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use axum::routing::post;
use idempotent_runtime::store::{MemoryStore, SqliteStore};
use idempotent_runtime::{Idempotency, Registry, Tx, idempotent};
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::{Logs, Runs, Server, answer, eventually};
use sqlx::Sqlite;
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;

/// An argument whose extraction takes as long as its run.
struct Checked(usize);

impl FromRequestParts<Runs> for Checked {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, runs: &Runs) -> Result<Self, StatusCode> {
        let run = runs.run().await;
        assert!(!(parts.headers.contains_key("x-panic") && run == 1), "the extractor panics");
        Ok(Self(run))
    }
}

#[idempotent(scope = "extraction-runs", claim_after = none, lease = "100ms")]
async fn check(Checked(run): Checked, body: String) -> String {
    format!("{body} {run}")
}

#[idempotent(scope = "extraction-runs-reject", claim_after = none, after_crash = "reject")]
async fn check_once(Checked(run): Checked, body: String) -> String {
    format!("{body} {run}")
}

async fn serve(runs: &Runs) -> Server {
    let app = Router::new()
        .route("/", post(check))
        .route("/once", post(check_once))
        .with_state(runs.clone())
        .layer(Registry::new(MemoryStore::new()).layer());
    Server::start(app.layer(CatchPanicLayer::new())).await
}

fn head(path: &str, more: &str) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nhost: h\r\nidempotency-key: k\r\n{more}\r\n").into_bytes()
}

#[tokio::test]
async fn extraction_after_the_claim_survives_its_client() {
    let runs = Runs::held();
    let server = serve(&runs).await;
    let post = || answer(server.post("/").header("idempotency-key", "k").body("paid"));
    let client = tokio::spawn({
        let request = server.post("/").header("idempotency-key", "k").body("paid");
        async move { answer(request).await }
    });
    runs.until_started(1).await;
    client.abort();
    assert!(client.await.is_err());
    // The extraction takes longer than its lease, which is renewed.
    for _ in 0..3 {
        assert_eq!(post().await.rejection(), "in_flight");
        tokio::time::sleep(std::time::Duration::from_millis(60)).await;
    }
    runs.let_finish(1);
    let replay = eventually(async || post().await, |answer| answer.status == StatusCode::OK).await;
    assert_eq!((replay.text(), replay.is_replay(), runs.started()), ("paid 1", true, 1));
}

#[tokio::test]
async fn panic_after_the_claim_is_that_of_the_handler() {
    for (path, retry) in [("/", "paid 2"), ("/once", "outcome_unknown")] {
        let server = serve(&Runs::free()).await;
        let post = || answer(server.post(path).header("idempotency-key", "k").header("x-panic", "1").body("paid"));
        assert_eq!(post().await.status, StatusCode::INTERNAL_SERVER_ERROR);
        let retried = post().await;
        let said = if retried.status == StatusCode::OK { retried.text().to_owned() } else { retried.rejection() };
        assert_eq!(said, retry);
    }
}

#[idempotent(scope = "extraction-streamed", fingerprint = none)]
async fn store(State(runs): State<Runs>, body: Body) -> Result<String, StatusCode> {
    let run = runs.run().await;
    let body = to_bytes(body, 100).await.map_err(|_| StatusCode::BAD_REQUEST)?;
    Ok(format!("run {run}: {} bytes", body.len()))
}

#[idempotent(scope = "extraction-required", required)]
async fn required(_: String) {}

#[tokio::test]
async fn replay_asks_for_no_streamed_body() {
    let runs = Runs::free();
    let app = Router::new().route("/", post(store)).route("/required", post(required)).with_state(runs);
    let server = Server::start(app.layer(Registry::new(MemoryStore::new()).layer())).await;
    let first = answer(server.post("/").header("idempotency-key", "k").header("host", "h").body("12345")).await;
    assert_eq!(first.text(), "run 1: 5 bytes");
    let replay = server.raw(&head("/", "expect: 100-continue\r\ncontent-length: 5\r\nconnection: close\r\n")).await;
    assert!(replay.starts_with("HTTP/1.1 200") && replay.ends_with("run 1: 5 bytes"), "{replay}");
    let required =
        "POST /required HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 5\r\nconnection: close\r\n\r\n";
    let without_key = server.raw(required.as_bytes()).await;
    assert!(without_key.starts_with("HTTP/1.1 400"), "{without_key}");
}

/// An argument that takes a step while it is extracted.
struct Stepped(u64);

impl FromRequestParts<Runs> for Stepped {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, runs: &Runs) -> Result<Self, Response> {
        let Ok(idempotency) = Idempotency::from_request_parts(parts, runs).await;
        let run = async || Ok::<_, Response>(u64::try_from(runs.run().await).unwrap_or_default());
        idempotency.step("extract", run).await.map(Self)
    }
}

#[idempotent(scope = "extraction-inner")]
async fn inner(idempotency: Idempotency) -> String {
    idempotency.downstream_key("bank")
}

#[idempotent(scope = "extraction-steps", claim_after = first)]
async fn steps(
    first: Idempotency,
    Stepped(step): Stepped,
    late: Idempotency,
    request: Request,
) -> (StatusCode, String) {
    let own = late.downstream_key("bank");
    let is_same = first.key() == late.key() && first.downstream_key("bank") == own;
    let is_last = request.headers().contains_key("x-last");
    let response = Router::new().fallback(inner).oneshot(request).await.expect("a router answers");
    let others = to_bytes(response.into_body(), 100).await.expect("the body arrives");
    let status = if is_last { StatusCode::OK } else { StatusCode::IM_A_TEAPOT };
    (status, format!("{is_same} {} step {step}", own.as_bytes() != &*others))
}

#[tokio::test]
async fn idempotency_after_the_claim_is_the_handlers() {
    let runs = Runs::free();
    let registry = Registry::new(MemoryStore::new());
    let app = Router::new().route("/", post(steps)).with_state(runs.clone()).layer(registry.layer());
    let server = Server::start(app).await;
    let not_recorded = server.post_with_key("/", "k").await;
    assert_eq!((not_recorded.status, not_recorded.text()), (StatusCode::IM_A_TEAPOT, "true true step 1"));
    let next = answer(server.post("/").header("idempotency-key", "k").header("x-last", "1")).await;
    assert_eq!((next.status, next.text(), runs.started()), (StatusCode::OK, "true true step 1", 1));
}

type Transaction = Tx<Sqlite>;

#[idempotent(scope = "extraction-tx", claim_after = tx)]
async fn charge(mut tx: Tx<Sqlite>, Checked(run): Checked, body: String) -> Result<String, StatusCode> {
    let insert = sqlx::query("INSERT INTO charges (id) VALUES (?)").bind(&body).execute(&mut *tx).await;
    insert.map(|_| format!("{body} {run}")).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

#[idempotent(scope = "extraction-tx-late", claim_after = none)]
async fn charge_late(_: Transaction, _: String) {}

#[tokio::test]
async fn transaction_begins_with_the_claim() {
    let (file, runs) = (SqliteFile::new(), Runs::free());
    file.execute("CREATE TABLE charges (id TEXT)").await;
    let store = SqliteStore::open(file.path()).await.expect("the store opens");
    let app = Router::new().route("/", post(charge)).route("/late", post(charge_late)).with_state(runs.clone());
    let server = Server::start(app.layer(Registry::new(store).layer())).await;
    for is_replay in [false, true] {
        let answer = answer(server.post("/").header("idempotency-key", "k").body("ch")).await;
        assert_eq!((answer.text(), answer.is_replay(), runs.started()), ("ch 1", is_replay, 1));
    }
    assert_eq!(file.number("SELECT count(*) FROM charges").await, 1);

    let logs = Logs::collect();
    assert_eq!(server.post_with_key("/late", "late").await.rejection(), "transaction_failed");
    assert!(logs.text().contains("is extracted after the claim"), "{}", logs.text());
}

/// Panics when it is dropped.
struct Bomb(bool);

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(!self.0 || std::thread::panicking(), "an argument panics when it is dropped");
    }
}

impl<S: Sync> FromRequestParts<S> for Bomb {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, StatusCode> {
        Ok(Self(parts.headers.contains_key("x-bomb")))
    }
}

struct FailsBesideBomb;

impl<S: Sync> FromRequestParts<S> for FailsBesideBomb {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, StatusCode> {
        if parts.headers.contains_key("x-bomb") { Err(StatusCode::IM_A_TEAPOT) } else { Ok(Self) }
    }
}

#[idempotent(scope = "extraction-bomb", claim_after = bomb)]
async fn beside_a_bomb(bomb: Bomb, _late: FailsBesideBomb) -> &'static str {
    let _bomb = bomb;
    "done"
}

#[tokio::test]
async fn argument_that_panics_when_dropped_settles_its_claim() {
    let app = Router::new().route("/", post(beside_a_bomb));
    let app = app.layer(Registry::new(MemoryStore::new()).layer()).layer(CatchPanicLayer::new());
    let server = Server::start(app).await;
    let first = answer(server.post("/").header("idempotency-key", "k").header("x-bomb", "1")).await;
    assert_eq!(first.status, StatusCode::INTERNAL_SERVER_ERROR);
    let retry = server.post_with_key("/", "k").await;
    assert_eq!((retry.status, retry.text()), (StatusCode::OK, "done"));
}
