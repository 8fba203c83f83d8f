//! How long a recorded step lives: as long as its key, and no longer.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::Response;
use axum::routing::post;
use futures_util::future::join4;
use http::StatusCode;
use idempotent_runtime::store::{MemoryStore, StoreAdmin};
use idempotent_runtime::{Idempotency, RecordKey, Registry, idempotent};
use idempotent_tests::{PATIENCE, Runs, Server, eventually, stores};
use tower_http::catch_panic::CatchPanicLayer;

/// Counts the executions of a step, and of the code after it.
#[derive(Clone)]
struct Executions {
    step: Runs,
    rest: Runs,
}

async fn answer(runs: &Executions, idempotency: &Idempotency) -> Result<(StatusCode, String), Response> {
    let step = idempotency.step("reserve", || async { Ok::<_, Response>(runs.step.run().await) }).await?;
    let rest = runs.rest.run().await;
    Ok((if rest == 1 { StatusCode::BAD_GATEWAY } else { StatusCode::CREATED }, format!("reservation {step}")))
}

#[idempotent(scope = "long-orders", ttl = "1s", lease = "300ms")]
async fn order(State(runs): State<Executions>, idempotency: Idempotency) -> Result<(StatusCode, String), Response> {
    answer(&runs, &idempotency).await
}

#[idempotent(scope = "unique-orders", ttl = "1s", lease = "300ms", after_crash = "reject")]
async fn unique_order(
    State(runs): State<Executions>,
    idempotency: Idempotency,
) -> Result<(StatusCode, String), Response> {
    answer(&runs, &idempotency).await
}

async fn serve(path: &str, store: impl StoreAdmin) -> (Arc<Server>, Executions, String) {
    let runs = Executions { step: Runs::free(), rest: Runs::held() };
    let app = Router::new().route("/orders", post(order)).route("/unique", post(unique_order));
    let server = Server::start(app.with_state(runs.clone()).layer(Registry::new(store).layer())).await;
    (Arc::new(server), runs, path.to_owned())
}

async fn left(store: &impl StoreAdmin, key: &RecordKey) -> Duration {
    let entry = store.get(key).await.expect("the store answers");
    entry.and_then(|entry| entry.expires_in).unwrap_or_default()
}

async fn step_lives_as_long_as_its_key(path: &str, scope: &str, store: impl StoreAdmin) {
    let store = Arc::new(store);
    let (server, runs, path) = serve(path, Arc::clone(&store)).await;
    let post = || {
        let (server, path) = (Arc::clone(&server), path.clone());
        tokio::spawn(async move { server.post_with_key(&path, "k").await })
    };
    let first = post();
    runs.rest.until_started(1).await;
    // The handler runs for longer than the ttl of its step.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    runs.rest.let_finish(1);
    assert_eq!(first.await.expect("it answers").status, StatusCode::BAD_GATEWAY);
    let second = post();
    runs.rest.until_started(2).await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    runs.rest.let_finish(1);
    let second = second.await.expect("it answers");
    assert_eq!((second.status, second.text()), (StatusCode::CREATED, "reservation 1"));
    let key = RecordKey::new(scope, None, "k");
    let step = key.step("reserve");
    let lives = async || (left(&*store, &step).await, left(&*store, &key).await);
    // The two lifetimes are read one after the other, and time passes in between.
    let slack = Duration::from_millis(100);
    eventually(lives, |&(step, record)| step <= record + slack && record > Duration::ZERO).await;
    eventually(lives, |&(step, record)| (step, record) == (Duration::ZERO, Duration::ZERO)).await;
    runs.rest.let_finish(1);
    let third = post().await.expect("it answers");
    assert_eq!(third.text(), "reservation 2", "it is a new execution, of which nothing has run");
}

async fn on_every_store(path: &'static str, scope: &'static str) {
    let (sqlite, _folder) = stores::sqlite().await;
    let (postgres, redis) = (stores::postgres(4).await, stores::redis().await);
    let _: ((), (), (), ()) = join4(
        step_lives_as_long_as_its_key(path, scope, MemoryStore::new()),
        step_lives_as_long_as_its_key(path, scope, sqlite),
        step_lives_as_long_as_its_key(path, scope, postgres),
        step_lives_as_long_as_its_key(path, scope, redis),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_every_store_a_step_lives_as_long_as_its_key() {
    on_every_store("/orders", "long-orders").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_reject_a_step_lives_as_long_as_its_key() {
    on_every_store("/unique", "unique-orders").await;
}

/// The handler's process is stopped for good: nothing renews the lease, and the outcome stays unknown.
#[tokio::test]
async fn step_of_an_unknown_outcome_never_expires() {
    let store = MemoryStore::new();
    let (server, runs, path) = serve("/unique", store.clone()).await;
    let running = tokio::spawn(async move { server.post_with_key(&path, "k").await });
    runs.rest.until_started(1).await;
    let step = RecordKey::new("unique-orders", None, "k").step("reserve");
    eventually(async || left(&store, &step).await, |&left| left > Duration::from_hours(24 * 365)).await;
    running.abort();
    runs.rest.let_finish(1);
}

#[idempotent(scope = "slow-orders", ttl = "1s", lease = "300ms", after_crash = "reject")]
async fn slow_order(
    State(runs): State<Executions>,
    idempotency: Idempotency,
) -> Result<(StatusCode, String), Response> {
    let reserve = || async {
        tokio::time::sleep(Duration::from_millis(1300)).await;
        Ok::<_, Response>(runs.step.run().await)
    };
    let step = idempotency.step("reserve", reserve).await?;
    Ok((StatusCode::BAD_GATEWAY, format!("reservation {step}")))
}

#[idempotent(scope = "quick-orders", ttl = "1s", lease = "300ms", after_crash = "reject")]
async fn quick_order(State(runs): State<Executions>, idempotency: Idempotency) -> Result<String, Response> {
    let step = idempotency.step("reserve", || async { Ok::<_, Response>(runs.step.run().await) }).await?;
    Ok(format!("reservation {step}"))
}

#[idempotent(scope = "broken-orders", ttl = "1s", lease = "300ms", after_crash = "reject")]
async fn broken_order(State(runs): State<Executions>, idempotency: Idempotency) -> Result<String, Response> {
    let step = idempotency.step("reserve", || async { Ok::<_, Response>(runs.step.run().await) }).await?;
    panic!("the handler is cut off after reservation {step}");
}

const KEYS: [&str; 5] = ["a", "b", "c", "d", "e"];

async fn serve_short(store: impl StoreAdmin) -> (Server, Executions, Registry) {
    let (runs, registry) = (Executions { step: Runs::free(), rest: Runs::free() }, Registry::new(store));
    let app = Router::new()
        .route("/slow", post(slow_order))
        .route("/quick", post(quick_order))
        .route("/broken", post(broken_order))
        .with_state(runs.clone())
        .layer(registry.layer())
        .layer(CatchPanicLayer::new());
    (Server::start(app).await, runs, registry)
}

/// The ttl of a step begins when its handler ends.
async fn step_longer_than_its_ttl_runs_once(store: impl StoreAdmin) {
    let (server, runs, registry) = serve_short(store).await;
    for key in KEYS {
        let first = server.post_with_key("/slow", key).await;
        // A drain waits until the store knows how long the step is kept.
        assert_eq!(registry.drain(PATIENCE).await, 0);
        assert_eq!(server.post_with_key("/slow", key).await.text(), first.text());
    }
    assert_eq!(runs.step.started(), KEYS.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_every_store_a_step_longer_than_its_ttl_runs_once() {
    let (sqlite, _folder) = stores::sqlite().await;
    let (postgres, redis) = (stores::postgres(4).await, stores::redis().await);
    let _: ((), (), (), ()) = join4(
        step_longer_than_its_ttl_runs_once(MemoryStore::new()),
        step_longer_than_its_ttl_runs_once(sqlite),
        step_longer_than_its_ttl_runs_once(postgres),
        step_longer_than_its_ttl_runs_once(redis),
    )
    .await;
}

/// The end of the handler and the record of its step set the step's lifetime at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn step_right_before_the_end_of_its_handler_expires() {
    let store = MemoryStore::new();
    let (server, _runs, _registry) = serve_short(store.clone()).await;
    for number in 1..=50 {
        assert_eq!(server.post_with_key("/quick", &format!("k{number}")).await.status, StatusCode::OK);
    }
    eventually(async || store.len(), |&left| left == 0).await;
}

async fn step_before_a_panic_never_expires(store: impl StoreAdmin) {
    let store = Arc::new(store);
    let (server, _runs, registry) = serve_short(Arc::clone(&store)).await;
    for key in KEYS {
        assert_eq!(server.post_with_key("/broken", key).await.status, StatusCode::INTERNAL_SERVER_ERROR);
    }
    // After a drain, the end of a handler no longer shortens the lifetime of a step.
    assert_eq!(registry.drain(PATIENCE).await, 0);
    for key in KEYS {
        let step = RecordKey::new("broken-orders", None, key).step("reserve");
        eventually(async || left(&*store, &step).await, |&left| left > Duration::from_hours(24 * 365)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_every_store_a_step_before_a_panic_never_expires() {
    let (sqlite, _folder) = stores::sqlite().await;
    let (postgres, redis) = (stores::postgres(4).await, stores::redis().await);
    let _: ((), (), (), ()) = join4(
        Box::pin(step_before_a_panic_never_expires(MemoryStore::new())),
        Box::pin(step_before_a_panic_never_expires(sqlite)),
        Box::pin(step_before_a_panic_never_expires(postgres)),
        Box::pin(step_before_a_panic_never_expires(redis)),
    )
    .await;
}
