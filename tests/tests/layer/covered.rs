//! Runs under the claim of an outer guard: the claim does not end before they do, and a run that was cut off is not
//! forgotten.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use idempotent_runtime::store::{EntryState, MemoryStore, SqliteStore, StoreAdmin};
use idempotent_runtime::{AfterCrash, Idempotency, IdempotencyLayer, Policy, Registry, StepError, idempotent};
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::{Runs, Server, answer, eventually};
use tokio::runtime::Builder;
use tokio::sync::Notify;
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::timeout::TimeoutLayer;

fn rejecting(scope: &'static str, registry: &Registry) -> IdempotencyLayer {
    let policy = Policy::builder(scope).after_crash(AfterCrash::Reject).build().expect("a valid policy");
    IdempotencyLayer::new(policy).with_registry(registry.clone())
}

#[idempotent(scope = "covered-cut-off", after_crash = "reject")]
async fn cut_off(State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

#[tokio::test]
async fn covered_handler_that_is_cut_off_is_an_unknown_outcome() {
    let (runs, registry) = (Runs::held(), Registry::new(MemoryStore::new()));
    let router = Router::new().route("/", post(cut_off)).with_state(runs.clone()).layer(registry.layer());
    let timeout = TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_millis(100));
    let server = Server::start(router.layer(timeout).layer(rejecting("covered-cut-off", &registry))).await;
    assert_eq!(server.post_with_key("/", "k").await.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(server.post_with_key("/", "k").await.rejection(), "in_flight", "it continues");
    runs.let_finish(2);
    eventually(async || server.post_with_key("/", "k").await.rejection(), |code| code == "outcome_unknown").await;
    assert_eq!((runs.started(), runs.finished()), (1, 1));
}

#[idempotent(scope = "covered-goes-on")]
async fn goes_on(State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

/// A middleware between two guards of one scope drops the inner request, whose handler is annotated or not.
#[tokio::test]
async fn covered_handler_that_is_cut_off_goes_on_to_its_end() {
    for is_annotated in [true, false] {
        let (runs, registry) = (Runs::held(), Registry::new(MemoryStore::new()));
        let layer = || {
            let policy = Policy::builder("covered-goes-on").build().expect("a valid policy");
            IdempotencyLayer::new(policy).with_registry(registry.clone())
        };
        let route = if is_annotated {
            post(goes_on)
        } else {
            post(async |State(runs): State<Runs>| format!("run {}", runs.run().await)).layer(layer())
        };
        let router = Router::new().route("/", route).with_state(runs.clone()).layer(registry.layer());
        let timeout = TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_millis(100));
        let server = Server::start(router.layer(timeout).layer(layer())).await;
        assert_eq!(server.post_with_key("/", "k").await.status, StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(server.post_with_key("/", "k").await.rejection(), "in_flight", "annotated: {is_annotated}");
        runs.let_finish(2);
        runs.until_finished(1).await;
        assert_eq!(registry.drain(Duration::from_secs(10)).await, 0);
        // The answer of the dropped run reached no client, and the response in its place is not recorded.
        assert_eq!(server.post_with_key("/", "k").await.text(), "run 2", "annotated: {is_annotated}");
    }
}

#[idempotent(scope = "covered-panics", after_crash = "reject")]
async fn panics(State(runs): State<Runs>) -> String {
    assert!(runs.run().await > 1, "in the middle");
    "a second run".to_owned()
}

#[tokio::test]
async fn covered_handler_that_panics_is_an_unknown_outcome() {
    let (runs, registry) = (Runs::free(), Registry::new(MemoryStore::new()));
    let router = Router::new().route("/", post(panics)).with_state(runs.clone()).layer(registry.layer());
    let server =
        Server::start(router.layer(CatchPanicLayer::new()).layer(rejecting("covered-panics", &registry))).await;
    assert_eq!(server.post_with_key("/", "k").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(server.post_with_key("/", "k").await.rejection(), "outcome_unknown");
    assert_eq!(runs.started(), 1);
}

#[idempotent(scope = "covered-spawned", shared_scope)]
async fn spawns(State(runs): State<Runs>, request: Request) -> StatusCode {
    let beneath: Router = Router::new().fallback(spawned).with_state(runs.clone());
    tokio::spawn(beneath.oneshot(request));
    runs.until_started(1).await;
    StatusCode::GATEWAY_TIMEOUT
}

#[idempotent(scope = "covered-spawned", shared_scope)]
async fn spawned(State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

#[tokio::test]
async fn claim_lasts_as_long_as_what_it_covers() {
    let (runs, registry) = (Runs::held(), Registry::new(MemoryStore::new()));
    let router = Router::new().route("/", post(spawns)).with_state(runs.clone()).layer(registry.layer());
    let server = Server::start(router).await;
    assert_eq!(server.post_with_key("/", "k").await.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(server.post_with_key("/", "k").await.rejection(), "in_flight");
    assert_eq!((runs.started(), registry.drain(Duration::from_millis(10)).await), (1, 1));
    runs.let_finish(1);
    assert_eq!(registry.drain(Duration::from_secs(10)).await, 0);
}

#[idempotent(scope = "covered-steps", lease = "1s")]
async fn buffered_steps(
    State((runs, go_on)): State<(Runs, std::sync::Arc<Notify>)>,
    idempotency: Idempotency,
) -> Result<String, StatusCode> {
    let steps = ["a", "b", "c", "d"].map(|name| {
        let idempotency = idempotency.clone();
        let step = async move { idempotency.step(name, async || Ok::<_, StepError>(1)).await };
        Box::pin(step) as BoxFuture<'static, Result<i32, StepError>>
    });
    let mut results = futures_util::stream::iter(steps).buffered(4);
    let run = runs.run().await;
    // The first result is ready. The other steps have begun, and nothing polls them.
    results.next().await.expect("there are four").map_err(StatusCode::from)?;
    go_on.notified().await;
    while let Some(result) = results.next().await {
        result.map_err(StatusCode::from)?;
    }
    Ok(format!("run {run}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_that_are_not_polled_end_no_lease() {
    let file = SqliteFile::new();
    let (runs, go_on) = (Runs::free(), std::sync::Arc::new(Notify::new()));
    let router = Router::new().route("/", post(buffered_steps)).with_state((runs.clone(), go_on.clone()));
    let stores = [
        SqliteStore::open(file.path()).await.expect("the file opens"),
        SqliteStore::open(file.path()).await.expect("the file opens"),
    ];
    let look = stores[1].clone();
    let [first, second] = stores.map(|store| router.clone().layer(Registry::new(store).layer()));
    let (first, second) = (Server::start(first).await, Server::start(second).await);
    let running = tokio::spawn(answer(first.post("/").header("idempotency-key", "k")));
    runs.until_started(1).await;
    // For longer than a lease, every look finds the claim alive, so at least two renewals have succeeded.
    let is_alive = async || {
        let page = look.list(None, 100).await.expect("the store answers");
        let handler = page.entries.into_iter().find(|entry| !entry.key.as_str().contains("%0A"));
        handler.is_some_and(|entry| matches!(entry.state, EntryState::Claimed { lease: Some(_), .. }))
    };
    let begun = tokio::time::Instant::now();
    eventually(
        async || {
            assert!(is_alive().await, "the lease has expired while the handler runs");
            begun.elapsed()
        },
        |elapsed| *elapsed > Duration::from_millis(2300),
    )
    .await;
    assert_eq!(second.post_with_key("/", "k").await.rejection(), "in_flight");
    go_on.notify_one();
    assert_eq!((running.await.expect("it ends").status.as_u16(), runs.started()), (200, 1));
}

#[idempotent(scope = "covered-dropped-elsewhere")]
async fn dropped_elsewhere(State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

/// A request may be dropped in another runtime than the one in which it ran.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_dropped_in_another_runtime_goes_on_in_its_own() {
    let (runs, registry) = (Runs::held(), Registry::new(MemoryStore::new()));
    let router: Router =
        Router::new().route("/", post(dropped_elsewhere)).with_state(runs.clone()).layer(registry.layer());
    let request = Request::post("/").header("idempotency-key", "k").body(Body::empty()).expect("a request");
    let mut call = Box::pin(router.oneshot(request));
    tokio::select! {
        _ = &mut call => unreachable!("the handler is held"),
        () = runs.until_started(1) => {}
    }
    let dropping = std::thread::spawn(move || {
        let undriven = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let _entered = undriven.enter();
        drop(call);
    });
    dropping.join().expect("it is dropped");
    runs.let_finish(1);
    assert_eq!(registry.drain(Duration::from_secs(10)).await, 0, "it continues in its own runtime");
    assert_eq!((runs.started(), runs.finished()), (1, 1));
}
