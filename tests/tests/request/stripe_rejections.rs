//! Every rejection in the format of Stripe's API, caused over real HTTP.

use axum::Router;
use axum::extract::{FromRequestParts, State};
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::{RecordKey, Registry, RejectedRequest, Rejection, Tx, idempotent, rejection};
use idempotent_tests::{Answer, Fault, FaultyStore, Runs, Server, answer, take_over};
use serde_json::json;
use sqlx::Sqlite;

#[idempotent(scope = "payments", required, max_body = "16B")]
async fn pay(State(runs): State<Runs>, body: String) -> String {
    let number = runs.run().await;
    if body == "a long receipt" { "receipt ".repeat(number * 10) } else { format!("payment {number}") }
}

#[idempotent(scope = "payments-at-most-once", after_crash = "reject")]
async fn pay_at_most_once(State(runs): State<Runs>) -> String {
    runs.run().await;
    panic!("the card network answers nonsense");
}

#[idempotent(scope = "stripe-transfers")]
async fn transfer(_tx: Tx<Sqlite>) -> StatusCode {
    StatusCode::CREATED
}

/// Two arguments `Tx` do not compile, so this extractor contains both.
#[derive(FromRequestParts)]
struct Transfers {
    _from: Tx<Sqlite>,
    _to: Tx<Sqlite>,
}

#[idempotent(scope = "double-transfers")]
async fn transfer_twice(_transfers: Transfers) -> StatusCode {
    StatusCode::CREATED
}

struct Bench {
    runs: Runs,
    store: FaultyStore,
    server: Server,
}

impl Bench {
    async fn new(runs: Runs) -> Self {
        let store = FaultyStore::new();
        let registry =
            Registry::builder(store.clone()).render_rejections(rejection::stripe).max_in_flight_per_caller(2);
        let app = Router::new()
            .route("/payments", post(pay))
            .route("/payments-at-most-once", post(pay_at_most_once))
            .route("/transfers", post(transfer))
            .route("/double-transfers", post(transfer_twice))
            .with_state(runs.clone())
            .layer(registry.build().layer());
        Self { runs, store, server: Server::start(app).await }
    }

    fn payment(&self, key: &str, body: &'static str) -> impl Future<Output = Answer> + Send + 'static {
        answer(self.server.post("/payments").header("idempotency-key", key).body(body))
    }

    /// Runs `meanwhile` while a first payment with the key `k` runs.
    async fn while_one_runs<T>(&self, meanwhile: impl Future<Output = T>) -> (Answer, T) {
        let first = tokio::spawn(self.payment("k", ""));
        self.runs.until_started(1).await;
        let happened = meanwhile.await;
        self.runs.let_finish(1);
        (first.await.expect("the task ends"), happened)
    }
}

/// Checks what a client reads: `type`, `code`, and whether to retry. `message` explains the rest.
#[track_caller]
fn is_stripe_error(answer: &Answer, status: u16, kind: &str, code: &str, should_retry: bool) -> String {
    let body = answer.json();
    let header = |name| answer.headers.get(name).map(|value| value.to_str().expect("a text").to_owned());
    assert_eq!((answer.status.as_u16(), &body["error"]["type"]), (status, &json!(kind)), "{body}");
    assert_eq!(body["error"]["code"], code, "{body}");
    assert_eq!(header("content-type").as_deref(), Some("application/json"));
    assert_eq!(header("stripe-should-retry"), Some(should_retry.to_string()), "{body}");
    assert_eq!(header("retry-after"), should_retry.then(|| "1".to_owned()), "{body}");
    assert_eq!(header("idempotent-replayed"), None);
    let mut members: Vec<_> = body["error"].as_object().expect("an object").keys().map(String::as_str).collect();
    members.sort_unstable();
    assert_eq!(
        (members, body.as_object().map(serde_json::Map::len)),
        (vec!["code", "doc_url", "message", "type"], Some(1))
    );
    assert!(body["error"]["doc_url"].as_str().is_some_and(|url| url.starts_with("https://")), "{body}");
    body["error"]["message"].as_str().expect("a text").to_owned()
}

#[tokio::test]
async fn a_missing_or_malformed_key_is_an_invalid_request() {
    let bench = Bench::new(Runs::free()).await;
    let missing = answer(bench.server.post("/payments")).await;
    let message = is_stripe_error(&missing, 400, "invalid_request_error", "missing_key", false);
    assert!(message.contains("`idempotency-key`"), "{message}");
    let malformed = bench.payment("a,b", "").await;
    let message = is_stripe_error(&malformed, 400, "invalid_request_error", "invalid_key", false);
    assert!(message.contains("255"), "{message}");
    assert_eq!(bench.runs.started(), 0);
}

#[tokio::test]
async fn a_reused_key_is_an_idempotency_error_of_status_400() {
    let bench = Bench::new(Runs::free()).await;
    assert_eq!(bench.payment("k", "10 EUR").await.text(), "payment 1");
    let reused = bench.payment("k", "20 EUR").await;
    let message = is_stripe_error(&reused, 400, "idempotency_error", "key_reused", false);
    assert!(message.contains("different request"), "{message}");
    assert!(bench.payment("k", "10 EUR").await.is_replay());
}

#[tokio::test]
async fn a_key_whose_first_request_runs_is_in_use() {
    let bench = Bench::new(Runs::held()).await;
    let (first, again) = bench.while_one_runs(bench.payment("k", "")).await;
    is_stripe_error(&again, 409, "idempotency_error", "idempotency_key_in_use", true);
    assert_eq!(first.text(), "payment 1");
}

#[tokio::test]
async fn a_lost_claim_is_a_key_in_use() {
    let bench = Bench::new(Runs::held()).await;
    let key = RecordKey::new("payments", None, "k");
    let (late, ()) = bench.while_one_runs(take_over(&bench.store, &key)).await;
    let message = is_stripe_error(&late, 409, "idempotency_error", "idempotency_key_in_use", true);
    assert!(message.contains("was executed"), "{message}");
}

#[tokio::test]
async fn too_many_in_flight_is_a_rate_limit() {
    let bench = Bench::new(Runs::held()).await;
    let second = tokio::spawn(bench.payment("another", ""));
    let crowd = async {
        bench.runs.until_started(2).await;
        let crowded = bench.payment("third", "").await;
        // This ends whichever of the two requests began first.
        bench.runs.let_finish(1);
        crowded
    };
    let (first, crowded) = bench.while_one_runs(crowd).await;
    is_stripe_error(&crowded, 429, "invalid_request_error", "rate_limit", true);
    assert_eq!((first.status, second.await.expect("the task ends").status), (StatusCode::OK, StatusCode::OK));
}

#[tokio::test]
async fn an_unavailable_store_is_an_api_error_to_retry() {
    let bench = Bench::new(Runs::free()).await;
    bench.store.on_claim(Fault::Unreachable);
    is_stripe_error(&bench.payment("k", "").await, 503, "api_error", "store_unavailable", true);
    assert_eq!(bench.runs.started(), 0);
}

#[tokio::test]
async fn executed_and_untold_is_an_api_error_not_to_retry() {
    let bench = Bench::new(Runs::free()).await;
    let receipt = bench.payment("k", "a long receipt").await;
    assert_eq!(receipt.status, StatusCode::OK);
    let again = bench.payment("k", "a long receipt").await;
    let message = is_stripe_error(&again, 500, "api_error", "response_not_recorded", false);
    assert!(message.contains("status 200"), "{message}");

    let crash = bench.server.post("/payments-at-most-once").header("idempotency-key", "k").send().await;
    assert!(crash.is_err(), "the panic broke the connection");
    let again = bench.server.post_with_key("/payments-at-most-once", "k").await;
    is_stripe_error(&again, 500, "api_error", "outcome_unknown", false);
    assert_eq!(bench.runs.started(), 2);
}

#[tokio::test]
async fn a_failed_transaction_is_an_api_error_not_to_retry() {
    let bench = Bench::new(Runs::free()).await;
    // The store has no transactions, and a handler can have only one.
    for path in ["/transfers", "/double-transfers"] {
        let failed = bench.server.post_with_key(path, "k").await;
        is_stripe_error(&failed, 500, "api_error", "transaction_failed", false);
    }
}

#[test]
fn a_transaction_conflict_is_an_api_error_to_retry_at_once() {
    let answer = rejection::stripe(Rejection::TransactionConflict, &RejectedRequest::default());
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers()["stripe-should-retry"], "true");
    assert_eq!(answer.headers()["retry-after"], "0");
}
