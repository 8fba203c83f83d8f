//! Handlers whose requests leave every possible state, and an inspector beside them.

use std::time::{Duration, SystemTime};

use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use idempotent_runtime::inspector::{Inspector, Operator};
use idempotent_runtime::store::{AfterCrash, Claim, ClaimRequest, Held, StoreAdmin, Token};
use idempotent_runtime::{Fingerprint, Record, RecordKey, RecordedBody, Registry};
use idempotent_tests::{Answer, Runs, Server, answer};
use reqwest::Method;
use serde_json::Value;

use crate::inspector::shop_handlers::routes;

/// The path of the inspector.
pub(crate) const AT: &str = "/ops/idempotency";

/// A server. Its handlers in `payouts` are held until they may continue.
pub(crate) struct Shop {
    pub(crate) server: Server,
    pub(crate) runs: Runs,
}

impl Shop {
    pub(crate) async fn open(registry: &Registry, inspector: Inspector) -> Self {
        let runs = Runs::held();
        let inspector = inspector.router().layer(from_fn(operators_only));
        Self { server: Server::start(routes(registry, &runs).nest(AT, inspector)).await, runs }
    }

    /// Makes a charge that is answered.
    pub(crate) async fn charge(&self, caller: &str, key: &str) {
        let charge = self.server.post("/charges").header("x-caller", caller).header("idempotency-key", key);
        assert_eq!(answer(charge).await.status, StatusCode::CREATED);
    }

    /// Begins a payout that runs until the shop closes.
    pub(crate) async fn begin_payout(&self, key: &str) {
        let payout = self.server.post("/payouts").header("idempotency-key", key);
        let before = self.runs.started();
        tokio::spawn(payout.send());
        self.runs.until_started(before + 1).await;
    }

    /// One entry in each state but damage: `completed`, `unrecorded`, `running`, `cut-off`, `left-behind`.
    pub(crate) async fn leave_every_state(&self, store: &impl StoreAdmin) {
        self.charge("alice", "completed-8e03978e").await;
        let unrecorded = self.server.post_with_key("/exports", "unrecorded-8e03978e").await;
        assert_eq!(unrecorded.status, StatusCode::OK);
        self.begin_payout("running-8e03978e").await;
        let cut_off = self.server.post_with_key("/transfers", "cut-off-8e03978e").await;
        assert_eq!(cut_off.status, StatusCode::INTERNAL_SERVER_ERROR);
        leave_behind(store, &RecordKey::new("payouts", None, "left-behind-8e03978e")).await;
    }

    /// Sends a GET as the operator.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        answer(self.asking(Method::GET, path)).await
    }

    /// Sends a GET as the operator, and returns the JSON of the answer.
    pub(crate) async fn json(&self, path: &str) -> Value {
        let answer = self.get(path).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        answer.json()
    }

    /// Sends a form as the operator.
    pub(crate) async fn form(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        answer(self.asking(Method::POST, path).form(fields)).await
    }

    /// A request by the operator to a path below the inspector.
    pub(crate) fn asking(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.server.request(method, &format!("{AT}{path}")).header("authorization", "Bearer of-alice")
    }
}

/// Leaves the claim of a process that died.
pub(crate) async fn leave_behind(store: &impl StoreAdmin, key: &RecordKey) {
    let request = ClaimRequest::new(Token::unique(), Fingerprint::from_bytes([7; 32]))
        .with_lease(Duration::ZERO)
        .with_ttl(Duration::from_hours(24))
        .with_after_crash(AfterCrash::Rerun);
    assert_eq!(store.claim(key, request).await.expect("the store answers"), Claim::Acquired { attempt: 1 });
}

/// Leaves a record with status 201.
pub(crate) async fn complete(store: &impl StoreAdmin, key: &RecordKey) {
    let fingerprint = Fingerprint::from_bytes([7; 32]);
    let request = ClaimRequest::new(Token::unique(), fingerprint)
        .with_lease(Duration::from_secs(30))
        .with_ttl(Duration::from_hours(24))
        .with_after_crash(AfterCrash::Rerun);
    assert_eq!(store.claim(key, request).await.expect("the store answers"), Claim::Acquired { attempt: 1 });
    let body = RecordedBody::Whole("paid".into());
    let record = Record::new(StatusCode::CREATED, Vec::new(), body, fingerprint, SystemTime::now());
    let held = store.complete(key, request.token, record, request.ttl).await;
    assert_eq!(held.expect("the store answers"), Held::Yes);
}

async fn operators_only(mut request: Request, next: Next) -> Result<Response, StatusCode> {
    match request.headers().get("authorization") {
        Some(value) if value == "Bearer of-alice" => {}
        _ => return Err(StatusCode::UNAUTHORIZED),
    }
    request.extensions_mut().insert(Operator::new("alice"));
    Ok(next.run(request).await)
}
