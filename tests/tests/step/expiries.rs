//! When the record of a key expires, no result of its steps is left: the next execution runs each of them.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use futures_util::future::join4;
use http::StatusCode;
use idempotent_runtime::store::{Entry, EntryState, Held, MemoryStore, StoreAdmin, StoreError, Token};
use idempotent_runtime::{Idempotency, Record, RecordKey, Registry, idempotent};
use idempotent_tests::{Fault, FaultyStore, PATIENCE, Runs, Server, Wrapped, Wrapper, eventually, stores};
use tokio::sync::watch;

/// Counts the executions of a step, and of the code after it.
#[derive(Clone)]
struct Executions {
    step: Runs,
    rest: Runs,
}

async fn answer(runs: &Executions, idempotency: &Idempotency) -> Result<String, Response> {
    let step = idempotency.step("reserve", || async { Ok::<_, Response>(runs.step.run().await) }).await?;
    runs.rest.run().await;
    Ok(format!("reservation {step}"))
}

/// Its claim, and with it the step, is kept for two seconds: for twice its lease.
#[idempotent(scope = "expiring-orders", ttl = "1s", lease = "1s")]
async fn order(State(runs): State<Executions>, idempotency: Idempotency) -> Result<String, Response> {
    answer(&runs, &idempotency).await
}

#[idempotent(scope = "renewed-orders", ttl = "1s", lease = "300ms")]
async fn renewed_order(State(runs): State<Executions>, idempotency: Idempotency) -> Result<String, Response> {
    answer(&runs, &idempotency).await
}

/// Neither its claim nor its step expires while it runs.
#[idempotent(scope = "expiring-unique-orders", ttl = "1s", lease = "300ms", after_crash = "reject")]
async fn unique_order(State(runs): State<Executions>, idempotency: Idempotency) -> Result<String, Response> {
    answer(&runs, &idempotency).await
}

/// Half of the ttl of each record.
const HALF: Duration = Duration::from_millis(500);

/// Calls that end when half of the ttl of the handler's record has passed.
#[derive(Clone, Copy)]
struct Late {
    /// The store has recorded the response, and its answer is late.
    answer: bool,
    /// The call that sets the lifetime of the step reaches the store late.
    extension: bool,
}

struct LateStore<S> {
    inner: S,
    key: RecordKey,
    late: Late,
    extensions: watch::Sender<usize>,
}

impl<S: StoreAdmin> LateStore<S> {
    async fn until_half_of_the_ttl_has_passed(&self) {
        loop {
            match self.inner.get(&self.key).await {
                Ok(Some(entry)) if matches!(entry.state, EntryState::Claimed { .. }) => {}
                Ok(Some(entry)) if entry.expires_in > Some(HALF) => {}
                Ok(_) => return,
                Err(error) => panic!("the store answers: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl<S: StoreAdmin> Wrapper for LateStore<S> {
    fn inner(&self) -> &impl StoreAdmin {
        &self.inner
    }

    async fn complete(&self, key: &RecordKey, token: Token, record: Record, ttl: Duration) -> Result<Held, StoreError> {
        let held = self.inner.complete(key, token, record, ttl).await;
        if self.late.answer && *key == self.key {
            self.until_half_of_the_ttl_has_passed().await;
        }
        held
    }

    async fn extend(&self, key: &RecordKey, ttl: Duration) -> Result<Held, StoreError> {
        self.extensions.send_modify(|extensions| *extensions += 1);
        if self.late.extension {
            self.until_half_of_the_ttl_has_passed().await;
        }
        self.inner.extend(key, ttl).await
    }
}

/// Only its first attempt takes the step.
#[idempotent(scope = "resumed-orders", ttl = "1s", lease = "300ms")]
async fn resumed_order(State(runs): State<Executions>, idempotency: Idempotency) -> Result<String, Response> {
    if idempotency.attempt() == 2 {
        return Ok("no reservation".to_owned());
    }
    answer(&runs, &idempotency).await
}

/// A paused attempt records its step when its successor has recorded the response.
async fn late_step_expires_before_the_record(store: impl StoreAdmin) {
    let store = Arc::new(store);
    let paused = Arc::new(FaultyStore::around(Arc::clone(&store)));
    let runs = Executions { step: Runs::held(), rest: Runs::free() };
    let serve = async |registry: Registry| {
        let app = Router::new().route("/resumed", post(resumed_order)).with_state(runs.clone());
        Server::start(app.layer(registry.layer())).await
    };
    let registry = Registry::new(Arc::clone(&paused));
    let (first, second) = (serve(registry.clone()).await, serve(Registry::new(Arc::clone(&store))).await);
    let late = tokio::spawn(async move { first.post_with_key("/resumed", "k").await });
    runs.step.until_started(1).await;
    paused.on_renew(Fault::Unreachable);
    let answer = eventually(async || second.post_with_key("/resumed", "k").await, |answer| answer.status == 200).await;
    assert_eq!(answer.text(), "no reservation");
    let key = RecordKey::new("resumed-orders", None, "k");
    let get = async |key: &RecordKey| store.get(key).await.expect("the store answers");
    let is_half_over = |entry: &Option<Entry>| entry.as_ref().is_none_or(|entry| entry.expires_in < Some(HALF));
    eventually(async || get(&key).await, is_half_over).await;
    paused.on_renew(Fault::None);
    runs.step.let_finish(2);
    assert_eq!(late.await.expect("it answers").rejection(), "claim_lost");
    assert!(get(&key).await.is_some(), "the record of the successor");
    eventually(async || get(&key).await, Option::is_none).await;
    assert_eq!(get(&key.step("reserve")).await, None, "the step outlives the record of its key");
    assert_eq!(second.post_with_key("/resumed", "k").await.text(), "reservation 2");
    assert_eq!(registry.drain(PATIENCE).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn step_of_a_paused_attempt_expires_before_the_record() {
    let (sqlite, _folder) = stores::sqlite().await;
    let (postgres, redis) = (stores::postgres(4).await, stores::redis().await);
    let _: ((), (), (), ()) = join4(
        late_step_expires_before_the_record(MemoryStore::new()),
        late_step_expires_before_the_record(sqlite),
        late_step_expires_before_the_record(postgres),
        late_step_expires_before_the_record(redis),
    )
    .await;
}

#[derive(Clone, Copy)]
struct Case {
    path: &'static str,
    scope: &'static str,
    late: Late,
    /// Whether a call that sets the lifetime of the step is on its way when the handler ends.
    ends_while_extending: bool,
}

async fn no_step_outlives_its_record(case: Case, store: impl StoreAdmin) {
    let key = RecordKey::new(case.scope, None, "k");
    let extensions = watch::Sender::new(0);
    let store = LateStore { inner: store, key: key.clone(), late: case.late, extensions: extensions.clone() };
    let store = Arc::new(Wrapped(store));
    let runs = Executions { step: Runs::free(), rest: Runs::held() };
    let app = Router::new()
        .route("/orders", post(order))
        .route("/renewed", post(renewed_order))
        .route("/unique", post(unique_order));
    let app = app.with_state(runs.clone()).layer(Registry::new(Arc::clone(&store)).layer());
    let server = Arc::new(Server::start(app).await);
    let first = {
        let server = Arc::clone(&server);
        tokio::spawn(async move { server.post_with_key(case.path, "k").await })
    };
    runs.rest.until_started(1).await;
    if case.ends_while_extending {
        extensions.subscribe().wait_for(|&begun| begun > 0).await.expect("the sender lives");
    }
    runs.rest.let_finish(2);
    let first = first.await.expect("it answers");
    assert_eq!((first.status, first.text()), (StatusCode::OK, "reservation 1"));
    let get = async |key: &RecordKey| store.get(key).await.expect("the store answers");
    eventually(async || get(&key).await, Option::is_none).await;
    assert_eq!(get(&key.step("reserve")).await, None, "{}: the step outlives the record of its key", case.path);
    let next = server.post_with_key(case.path, "k").await;
    assert_eq!(next.text(), "reservation 2", "the handler and its step run equally often");
}

async fn on_every_store(case: Case) {
    let (sqlite, _folder) = stores::sqlite().await;
    let (postgres, redis) = (stores::postgres(4).await, stores::redis().await);
    let _: ((), (), (), ()) = join4(
        no_step_outlives_its_record(case, MemoryStore::new()),
        no_step_outlives_its_record(case, sqlite),
        no_step_outlives_its_record(case, postgres),
        no_step_outlives_its_record(case, redis),
    )
    .await;
}

const ORDER: Case = Case {
    path: "/orders",
    scope: "expiring-orders",
    late: Late { answer: false, extension: false },
    ends_while_extending: false,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn step_expires_before_a_record_that_is_answered_late() {
    on_every_store(Case { late: Late { answer: true, extension: false }, ..ORDER }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn step_that_is_shortened_late_expires_before_its_record() {
    on_every_store(Case { late: Late { answer: false, extension: true }, ..ORDER }).await;
}

/// The renewal of the claim extends the step. Meanwhile, the handler ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn step_that_is_renewed_late_expires_before_its_record() {
    let late = Late { answer: false, extension: true };
    on_every_store(Case { path: "/renewed", scope: "renewed-orders", late, ends_while_extending: true }).await;
}

/// The step is kept for ever, and then until its record expires.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_reject_a_step_expires_before_its_record() {
    let late = Late { answer: true, extension: true };
    on_every_store(Case { path: "/unique", scope: "expiring-unique-orders", late, ends_while_extending: true }).await;
}
