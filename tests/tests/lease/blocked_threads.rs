//! Leases are renewed whatever the application does to its threads and runtimes: no second process gets a key while its
//! handler runs.

use std::future::pending;
use std::ops::Deref;
use std::panic::resume_unwind;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::Request;
use axum::routing::{get, post};
use futures_util::future::join;
use idempotent_runtime::store::{Held, MemoryStore, PostgresStore, Store, StoreAdmin, StoreError, Token};
use idempotent_runtime::{Idempotency, RecordKey, Registry, idempotent};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::stores::sqlite;
use idempotent_tests::{Executions, Runs, Server, Wrapped, Wrapper, answer, lock};
use tokio::runtime::{Builder, Runtime};
use tokio::time::{Instant, sleep, timeout};
use tower::ServiceExt as _;

const LEASE: Duration = Duration::from_millis(300);

/// State that the handlers of all processes share.
#[derive(Clone)]
struct Effects {
    executions: Executions,
    runs: Runs,
    thread: Arc<Thread>,
}

impl Effects {
    fn new() -> Self {
        Self { executions: Executions::default(), runs: Runs::held(), thread: Arc::default() }
    }
}

/// A thread that a handler blocks.
#[derive(Default)]
struct Thread {
    state: Mutex<Blocked>,
    changed: Condvar,
}

#[derive(Default)]
struct Blocked {
    has_begun: bool,
    may_end: bool,
}

impl Thread {
    fn block(&self) {
        let mut state = lock(&self.state);
        state.has_begun = true;
        self.changed.notify_all();
        // It continues by itself after some time, so that a failing test ends.
        let _ = self.changed.wait_timeout_while(state, 10 * LEASE, |state| !state.may_end).expect("no thread panics");
    }

    /// Resolves when the thread is blocked. It must not be the thread of the caller.
    async fn until_blocked(self: &Arc<Self>) {
        let thread = Arc::clone(self);
        let waiting = tokio::task::spawn_blocking(move || {
            let state = lock(&thread.state);
            let (state, _) = thread
                .changed
                .wait_timeout_while(state, 10 * LEASE, |state| !state.has_begun)
                .expect("no thread panics");
            assert!(state.has_begun, "no handler blocks its thread");
        });
        waiting.await.expect("the thread is blocked");
    }

    fn unblock(&self) {
        lock(&self.state).may_end = true;
        self.changed.notify_all();
    }
}

#[idempotent(scope = "sleeps", lease = "300ms")]
async fn sleeps(State(effects): State<Effects>, idempotency: Idempotency) -> &'static str {
    effects.executions.count(idempotency.key().expect("there is one"));
    effects.runs.run().await;
    "slept"
}

#[idempotent(scope = "thread-blocks", lease = "300ms")]
async fn blocks(State(effects): State<Effects>, idempotency: Idempotency) -> &'static str {
    effects.executions.count(idempotency.key().expect("there is one"));
    effects.thread.block();
    "blocked"
}

/// Its renewal is due when a lease of 300 ms has been renewed several times.
#[idempotent(scope = "blocks-long", lease = "6s")]
async fn blocks_long(State(effects): State<Effects>) -> &'static str {
    effects.thread.block();
    "blocked"
}

/// Its records are in the store that blocks its threads.
#[idempotent(scope = "elsewhere", lease = "300ms", store = "blocking")]
async fn in_another_store(State(effects): State<Effects>) -> &'static str {
    effects.runs.run().await;
    "held"
}

#[idempotent(scope = "passes", lease = "300ms")]
async fn passes() -> &'static str {
    "passed"
}

fn app(effects: &Effects, registry: &Registry) -> Router {
    Router::new()
        .route("/sleeps", post(sleeps))
        .route("/blocks", post(blocks))
        .route("/blocks-long", post(blocks_long))
        .route("/passes", post(passes))
        .route("/elsewhere", post(in_another_store))
        .route("/ping", get(|| async {}))
        .with_state(effects.clone())
        .layer(registry.layer())
}

/// A second runtime beside that of the test, which stays free. When dropped, it does not wait for a blocked thread.
struct Beside(Option<Runtime>);

impl Beside {
    fn of(mut builder: Builder) -> Self {
        Self(Some(builder.enable_all().build().expect("a runtime")))
    }

    fn with_workers(workers: usize) -> Self {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(workers);
        Self::of(builder)
    }
}

impl Deref for Beside {
    type Target = Runtime;

    fn deref(&self) -> &Runtime {
        self.0.as_ref().expect("it is taken by the drop alone")
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

async fn serve_on(runtime: &Runtime, app: Router) -> Server {
    runtime.spawn(Server::start(app)).await.expect("the server starts")
}

/// Opens two connections and leaves them idle, as a client's pool does.
async fn open_two_connections(server: &Server) {
    let ping = || answer(server.request(reqwest::Method::GET, "/ping"));
    join(ping(), ping()).await;
}

/// Checks for the length of four leases that another process over the same store is told that these keys are in use.
async fn assert_in_use_elsewhere(elsewhere: &Server, effects: &Effects, keys: &[(&str, &str)]) {
    let begun = Instant::now();
    while begun.elapsed() < 4 * LEASE {
        for (path, key) in keys {
            // A handler that runs is held, so it does not answer.
            let answer = timeout(LEASE, elsewhere.post_with_key(path, key)).await;
            let answer = answer.unwrap_or_else(|_| panic!("{key} is executed again after {:?}", begun.elapsed()));
            assert_eq!(answer.rejection(), "in_flight", "{key} after {:?}", begun.elapsed());
        }
        sleep(LEASE / 10).await;
    }
    assert_eq!(effects.executions.repeated(), []);
}

/// One handler sleeps, another one blocks its thread, and both run for longer than their leases.
async fn one_handler_blocks_while_another_sleeps(
    runtime: Beside,
    store: impl StoreAdmin,
    store_elsewhere: impl StoreAdmin,
) {
    let effects = Effects::new();
    let server = serve_on(&runtime, app(&effects, &Registry::new(store))).await;
    let elsewhere = Server::start(app(&effects, &Registry::new(store_elsewhere))).await;
    open_two_connections(&server).await;

    let sleeping = tokio::spawn(answer(server.post("/sleeps").header("idempotency-key", "asleep")));
    effects.runs.until_started(1).await;
    // All workers must be asleep, and nothing shows when they are. A worker that still looks for work would poll the
    // timers from then on. The worker that polls the timers gets the next request.
    sleep(5 * LEASE / 6).await;
    let blocking = tokio::spawn(answer(server.post("/blocks").header("idempotency-key", "blocked")));
    effects.thread.until_blocked().await;
    assert_in_use_elsewhere(&elsewhere, &effects, &[("/sleeps", "asleep"), ("/blocks", "blocked")]).await;

    effects.thread.unblock();
    effects.runs.let_finish(1);
    assert_eq!(sleeping.await.expect("it is answered").text(), "slept");
    assert_eq!(blocking.await.expect("it is answered").text(), "blocked");
    assert!(elsewhere.post_with_key("/sleeps", "asleep").await.is_replay());
    assert!(elsewhere.post_with_key("/blocks", "blocked").await.is_replay());
}

// One test for each store: `docs/guarantees.md` links each by its name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocked_worker_of_two_ends_no_lease_in_memory() {
    let store = MemoryStore::new();
    one_handler_blocks_while_another_sleeps(Beside::with_workers(2), store.clone(), store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocked_worker_of_four_ends_no_lease_in_memory() {
    let store = MemoryStore::new();
    one_handler_blocks_while_another_sleeps(Beside::with_workers(4), store.clone(), store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocked_only_worker_ends_no_lease_in_memory() {
    let store = MemoryStore::new();
    one_handler_blocks_while_another_sleeps(Beside::with_workers(1), store.clone(), store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocked_worker_of_two_ends_no_lease_in_sqlite() {
    let (store, _folder) = sqlite().await;
    one_handler_blocks_while_another_sleeps(Beside::with_workers(2), store.clone(), store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocked_worker_of_four_ends_no_lease_in_sqlite() {
    let (store, _folder) = sqlite().await;
    one_handler_blocks_while_another_sleeps(Beside::with_workers(4), store.clone(), store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocked_worker_of_two_ends_no_lease_in_postgres() {
    let database = PostgresServer::shared().await.database().await;
    // The process whose thread is blocked has its connections in its own runtime.
    let runtime = Beside::with_workers(2);
    let opening = runtime.spawn(async move { (PostgresStore::new(database.pool(4).await), database) });
    let (store, database) = opening.await.expect("the pool opens");
    store.migrate().await.expect("the tables are made");
    let elsewhere = PostgresStore::new(database.pool(4).await);
    one_handler_blocks_while_another_sleeps(runtime, store, elsewhere).await;
}

/// A current-thread runtime that has served one request.
fn runtime_that_has_served(app: Router) -> Beside {
    let runtime = Beside::of(Builder::new_current_thread());
    let request = Request::post("/passes").header("idempotency-key", "first").body(Body::empty());
    let passing = app.oneshot(request.expect("the parts are valid"));
    assert_eq!(runtime.block_on(passing).expect("a router answers").status(), 200);
    runtime
}

/// The runtime of the first claim ends or is no longer driven, while a handler runs on another runtime.
async fn first_runtime_leaves(store: impl StoreAdmin, store_elsewhere: impl StoreAdmin, ends: bool) {
    let effects = Effects::new();
    let app_here = app(&effects, &Registry::new(store));
    let first = {
        let app = app_here.clone();
        tokio::task::spawn_blocking(move || runtime_that_has_served(app)).await.expect("it serves")
    };
    let server = Server::start(app_here).await;
    let elsewhere = Server::start(app(&effects, &Registry::new(store_elsewhere))).await;
    let sleeping = tokio::spawn(answer(server.post("/sleeps").header("idempotency-key", "asleep")));
    effects.runs.until_started(1).await;
    let first = (!ends).then_some(first);
    assert_in_use_elsewhere(&elsewhere, &effects, &[("/sleeps", "asleep")]).await;
    effects.runs.let_finish(1);
    assert_eq!(sleeping.await.expect("it is answered").text(), "slept");
    drop(first);
}

// Each pair is two tests, so that a failure names the store and what happens to the runtime.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_runtime_that_is_not_driven_ends_no_lease_in_memory() {
    let store = MemoryStore::new();
    first_runtime_leaves(store.clone(), store, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_runtime_that_is_not_driven_ends_no_lease_in_sqlite() {
    let (store, _folder) = sqlite().await;
    first_runtime_leaves(store.clone(), store, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_runtime_that_has_ended_ends_no_lease_in_memory() {
    let store = MemoryStore::new();
    first_runtime_leaves(store.clone(), store, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_runtime_that_has_ended_ends_no_lease_in_sqlite() {
    let (store, _folder) = sqlite().await;
    first_runtime_leaves(store.clone(), store, true).await;
}

/// A server whose runtime has one core and its own thread. The runtime ends when the returned sender is dropped.
fn core(app: Router) -> (std::net::SocketAddr, tokio::sync::oneshot::Sender<()>) {
    let (listening, address) = std::sync::mpsc::channel();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async move {
            let server = Server::start(app).await;
            listening.send(server.address()).expect("the test waits");
            let _ = ended.await;
        });
    });
    (address.recv().expect("the core serves"), end)
}

async fn one_core_blocks_while_another_sleeps(store: impl StoreAdmin, store_elsewhere: impl StoreAdmin) {
    let effects = Effects::new();
    let app_here = app(&effects, &Registry::new(store));
    let (cores, client) = ([core(app_here.clone()), core(app_here)], reqwest::Client::new());
    let post = |core: usize, path: &str, key: &str| {
        let url = format!("http://{}{path}", cores[core].0);
        tokio::spawn(answer(client.post(url).header("idempotency-key", key)))
    };
    let elsewhere = Server::start(app(&effects, &Registry::new(store_elsewhere))).await;

    // The core that blocks was the first to claim.
    assert_eq!(post(0, "/passes", "first").await.expect("it is answered").text(), "passed");
    let sleeping = post(1, "/sleeps", "asleep");
    effects.runs.until_started(1).await;
    let blocking = post(0, "/blocks", "blocked");
    effects.thread.until_blocked().await;
    assert_in_use_elsewhere(&elsewhere, &effects, &[("/sleeps", "asleep"), ("/blocks", "blocked")]).await;

    effects.thread.unblock();
    effects.runs.let_finish(1);
    assert_eq!(sleeping.await.expect("it is answered").text(), "slept");
    assert_eq!(blocking.await.expect("it is answered").text(), "blocked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocked_core_ends_no_lease_of_any_core_in_memory() {
    let store = MemoryStore::new();
    one_core_blocks_while_another_sleeps(store.clone(), store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocked_core_ends_no_lease_of_any_core_in_sqlite() {
    let (store, _folder) = sqlite().await;
    one_core_blocks_while_another_sleeps(store.clone(), store).await;
}

/// A store in which the renewal of some keys fails, depending on their names.
#[derive(Clone)]
struct OneKeyHangs(MemoryStore, Arc<Thread>);

impl OneKeyHangs {
    fn new() -> Wrapped<Self> {
        Wrapped(Self(MemoryStore::new(), Arc::default()))
    }
}

impl Wrapper for OneKeyHangs {
    fn inner(&self) -> &impl StoreAdmin {
        &self.0
    }

    async fn renew(&self, key: &RecordKey, token: Token, lease: Duration) -> Result<Held, StoreError> {
        if key.as_str().contains("hangs") {
            pending::<()>().await;
        }
        if key.as_str().contains("thread") {
            self.1.block();
        }
        if key.as_str().contains("panics") {
            // Without the panic hook: its backtrace can block the thread, and so the renewals, for longer than a lease.
            resume_unwind(Box::new("a store of one's own may panic"));
        }
        self.0.renew(key, token, lease).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewal_that_hangs_ends_no_lease_of_another_key() {
    one_key_ends_no_lease_of_another("hangs").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewal_that_panics_ends_no_lease_of_another_key() {
    one_key_ends_no_lease_of_another("panics").await;
}

async fn one_key_ends_no_lease_of_another(key: &'static str) {
    let (effects, store) = (Effects::new(), OneKeyHangs::new());
    let server = Server::start(app(&effects, &Registry::new(store.clone()))).await;
    let elsewhere = Server::start(app(&effects, &Registry::new(store))).await;
    let running: Vec<_> = [key, "asleep"]
        .into_iter()
        .map(|key| tokio::spawn(answer(server.post("/sleeps").header("idempotency-key", key))))
        .collect();
    effects.runs.until_started(2).await;
    assert_in_use_elsewhere(&elsewhere, &effects, &[("/sleeps", "asleep")]).await;
    effects.runs.let_finish(2);
    for handler in running {
        handler.await.expect("it is answered");
    }
}

/// The renewal blocks a thread of the application, and then the thread on which the library retries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_that_blocks_threads_ends_no_lease_of_another() {
    let (effects, store, blocking) = (Effects::new(), MemoryStore::new(), OneKeyHangs::new());
    let registry = Registry::builder(store.clone()).store("blocking", blocking.clone()).build();
    let runtime = Beside::with_workers(4);
    let app_here = app(&effects, &registry);
    let server = serve_on(&runtime, app_here).await;
    let elsewhere = Server::start(app(&effects, &Registry::new(store))).await;
    let held = tokio::spawn(answer(server.post("/elsewhere").header("idempotency-key", "thread")));
    effects.runs.until_started(1).await;
    blocking.1.until_blocked().await;
    let sleeping = tokio::spawn(answer(server.post("/sleeps").header("idempotency-key", "asleep")));
    effects.runs.until_started(2).await;
    assert_in_use_elsewhere(&elsewhere, &effects, &[("/sleeps", "asleep")]).await;
    blocking.1.unblock();
    effects.runs.let_finish(2);
    assert_eq!(sleeping.await.expect("it is answered").text(), "slept");
    held.await.expect("it is answered");
}

/// A batch may take as long as its leases allow. A batch of long leases must not delay a batch of short ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocked_core_with_a_long_lease_ends_no_short_lease() {
    let (effects, store) = (Effects::new(), MemoryStore::new());
    let app_here = app(&effects, &Registry::new(store.clone()));
    let (blocked, client) = (core(app_here.clone()), reqwest::Client::new());
    let server = Server::start(app_here).await;
    let elsewhere = Server::start(app(&effects, &Registry::new(store))).await;
    let url = format!("http://{}/blocks-long", blocked.0);
    let blocking = tokio::spawn(answer(client.post(url).header("idempotency-key", "long")));
    effects.thread.until_blocked().await;
    let sleeping = tokio::spawn(answer(server.post("/sleeps").header("idempotency-key", "asleep")));
    effects.runs.until_started(1).await;
    for _ in 0..2 {
        assert_in_use_elsewhere(&elsewhere, &effects, &[("/sleeps", "asleep")]).await;
    }
    effects.thread.unblock();
    effects.runs.let_finish(1);
    assert_eq!(sleeping.await.expect("it is answered").text(), "slept");
    assert_eq!(blocking.await.expect("it is answered").text(), "blocked");
}
