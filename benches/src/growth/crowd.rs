//! Crowds: ten thousand handlers whose leases are renewed, and thousands of requests that wait for one key.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::future::join_all;
use idempotent_runtime::store::{Claim, ClaimRequest, Entry, MemoryStore, StoreAdmin, StoreError};
use idempotent_runtime::{RecordKey, Registry, idempotent};
use idempotent_tests::{Wrapped, Wrapper};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore};
use tower::ServiceExt;

use super::Scale;
use super::child::{Task, outcome};
use super::hot_key::{Engine, WithStore, with_store};
use crate::report::{Section, Table, figure};
use crate::scenario::key;

const HANDLERS: usize = 10_000;

/// The lease of each of them, as the attribute below says.
const LEASE: Duration = Duration::from_secs(3);

const WAITERS: usize = 5_000;

/// How long a request may wait for the others, before the measurement fails.
const PATIENCE: Duration = Duration::from_secs(90);

/// Where handlers wait until the measurement opens it.
struct Door {
    arrived: AtomicUsize,
    expected: usize,
    all_are_here: Notify,
    /// Closed when the door opens.
    shut: Semaphore,
}

impl Door {
    fn of(expected: usize) -> Arc<Self> {
        let (arrived, all_are_here, shut) = (AtomicUsize::new(0), Notify::new(), Semaphore::new(0));
        Arc::new(Self { arrived, expected, all_are_here, shut })
    }

    fn arrive(&self) {
        if self.arrived.fetch_add(1, Ordering::SeqCst) + 1 == self.expected {
            self.all_are_here.notify_one();
        }
    }

    async fn until_all_are_here(&self) {
        let all_are_here = tokio::time::timeout(PATIENCE, self.all_are_here.notified()).await;
        all_are_here.unwrap_or_else(|_| panic!("only {} have come", self.arrived.load(Ordering::SeqCst)));
    }

    async fn pass(&self) {
        let closed = self.shut.acquire().await;
        assert!(closed.is_err(), "it has no permits");
    }
}

#[idempotent(scope = "crowd-held", lease = "3s")]
async fn held(State(door): State<Arc<Door>>) -> StatusCode {
    door.arrive();
    door.pass().await;
    StatusCode::CREATED
}

#[idempotent(scope = "crowd-other")]
async fn other() -> StatusCode {
    StatusCode::CREATED
}

#[idempotent(scope = "crowd-awaited", in_flight = wait("120s"))]
async fn awaited(State(door): State<Arc<Door>>) -> StatusCode {
    door.pass().await;
    StatusCode::CREATED
}

/// The results for one store.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Crowd {
    /// The 99th percentile of other requests while the handlers run, in milliseconds.
    others: f64,
    /// The 99th percentile of the time from the end of the first request to the answer of a waiting one, in
    /// milliseconds.
    woken: f64,
    /// How often a second the store was asked for the key while they waited.
    looks: f64,
}

/// Measures one store.
pub(super) async fn rates(engine: Engine) -> Crowd {
    struct Measuring;
    impl WithStore for Measuring {
        type Outcome = Crowd;

        async fn run<S: StoreAdmin + Clone>(self, store: S) -> Crowd {
            let others = others(router(store.clone(), Door::of(HANDLERS))).await;
            let (woken, looks) = waiters(store).await;
            Crowd { others, woken, looks }
        }
    }
    if let Engine::Memory = engine {
        // By default, it is too small for so many claims of one caller.
        return Measuring.run(MemoryStore::builder().max_bytes(usize::MAX).build()).await;
    }
    with_store(engine, Measuring).await
}

fn router(store: impl StoreAdmin, door: Arc<Door>) -> (Router, Arc<Door>) {
    let registry = Registry::builder(store).max_running(4 * HANDLERS).max_running_per_scope(4 * HANDLERS).build();
    let router = Router::new().route("/held", post(held)).route("/other", post(other)).route("/awaited", post(awaited));
    (router.layer(registry.layer()).with_state(Arc::clone(&door)), door)
}

async fn send(router: Router, path: &str, key: &str) {
    assert_eq!(status(router, path, key).await, StatusCode::CREATED, "{path}");
}

async fn status(router: Router, path: &str, key: &str) -> StatusCode {
    let request = Request::post(path).header("idempotency-key", key).body(Body::empty());
    let answer = router.oneshot(request.expect("the request is well-formed")).await;
    answer.expect("a router is infallible").status()
}

/// The time between two of the other requests.
const EVERY: Duration = Duration::from_millis(2);

/// The 99th percentile of requests that are sent at a fixed rate while the handlers run, for two leases. The time counts
/// from when a request is due, so a pause counts for all requests that are due meanwhile.
async fn others((router, door): (Router, Arc<Door>)) -> f64 {
    let handlers = (0..HANDLERS).map(|number| {
        let router = router.clone();
        tokio::spawn(async move { send(router, "/held", &key(1, number)).await })
    });
    let handlers: Vec<_> = handlers.collect();
    door.until_all_are_here().await;
    let (begun, mut others) = (tokio::time::Instant::now(), Vec::new());
    while begun.elapsed() < 2 * LEASE {
        let due = begun + EVERY * u32::try_from(others.len()).expect("it fits");
        tokio::time::sleep_until(due).await;
        let (router, key) = (router.clone(), key(2, others.len()));
        others.push(tokio::spawn(async move {
            send(router, "/other", &key).await;
            due.elapsed()
        }));
    }
    let took = join_all(others).await.into_iter().map(|took| took.expect("each is answered")).collect();
    // Without renewals, their keys would be free by now.
    for number in (0..HANDLERS).step_by(100) {
        assert_eq!(status(router.clone(), "/held", &key(1, number)).await, StatusCode::CONFLICT, "{number}");
    }
    door.shut.close();
    join_all(handlers).await.into_iter().for_each(|ended| ended.expect("each handler is answered"));
    percentile(took)
}

/// A store that counts how often it is asked for a key.
struct Counting<S> {
    store: S,
    claims: Arc<Door>,
    looks: Arc<AtomicUsize>,
}

impl<S: StoreAdmin> Wrapper for Counting<S> {
    fn inner(&self) -> &impl StoreAdmin {
        &self.store
    }

    async fn claim(&self, key: &RecordKey, request: ClaimRequest) -> Result<Claim, StoreError> {
        let claim = self.store.claim(key, request).await;
        self.claims.arrive();
        self.looks.fetch_add(1, Ordering::SeqCst);
        claim
    }

    async fn get(&self, key: &RecordKey) -> Result<Option<Entry>, StoreError> {
        self.looks.fetch_add(1, Ordering::SeqCst);
        self.store.get(key).await
    }
}

/// The 99th percentile of the wake-up, and the looks per second before.
async fn waiters(store: impl StoreAdmin) -> (f64, f64) {
    let (looks, claims) = (Arc::<AtomicUsize>::default(), Door::of(WAITERS + 1));
    let store = Wrapped(Counting { store, claims: Arc::clone(&claims), looks: Arc::clone(&looks) });
    let (router, door) = router(store, Door::of(1));
    let waiters = (0..=WAITERS).map(|_| {
        let router = router.clone();
        tokio::spawn(async move {
            send(router, "/awaited", &key(3, 0)).await;
            Instant::now()
        })
    });
    let waiters: Vec<_> = waiters.collect();
    claims.until_all_are_here().await;
    let (before, begun) = (looks.load(Ordering::SeqCst), Instant::now());
    tokio::time::sleep(LEASE).await;
    let looks = (looks.load(Ordering::SeqCst) - before) as f64 / begun.elapsed().as_secs_f64();
    let opened = Instant::now();
    door.shut.close();
    let answered = join_all(waiters).await.into_iter().map(|at| at.expect("each is answered") - opened).collect();
    (percentile(answered), looks)
}

/// The 99th percentile, in milliseconds.
fn percentile(mut took: Vec<Duration>) -> f64 {
    took.sort();
    took[(took.len() * 99 / 100).min(took.len() - 1)].as_secs_f64() * 1_000.0
}

/// All stores, each in a separate process.
pub(super) fn measure(section: &mut Section, scale: Scale) -> anyhow::Result<()> {
    let mut table = Table::new(
        "Crowds",
        &[
            "",
            &format!("p99 of other requests beside {HANDLERS} handlers"),
            &format!("p99 of {WAITERS} waiting requests"),
            "looks per second while they wait",
        ],
    );
    for store in scale.part_of(&[Engine::Memory, Engine::Sqlite, Engine::Redis, Engine::Postgres]) {
        let Crowd { others, woken, looks } = outcome(&Task::Crowd(*store))?;
        table.row([format!("{store:?}"), figure(others, "ms"), figure(woken, "ms"), figure(looks, "")]);
        let target = |what: &str| format!("{store:?}: {what}");
        section.at_most(&target("other requests beside 10,000 handlers, p99"), 20.0, others, "ms");
        section.at_most(&target("wake-up of 5,000 waiting requests, p99"), 100.0, woken, "ms");
        section.at_most(&target("looks per second for one key with waiting requests"), 100.0, looks, "");
    }
    section.tables.push(table);
    section.text.push(format!(
        "{HANDLERS} handlers claim their keys in one burst and run for two leases of {} s. When all of them run, other \
         clients send a request with a fresh key every {} ms, whether the former ones were answered or not. {WAITERS} \
         requests of the same process wait for the key of a handler that runs; a look is a claim or a look-up of this key. \
         PostgreSQL is also asked for its state by one statement for each look.",
        LEASE.as_secs(),
        EVERY.as_millis()
    ));
    Ok(())
}
