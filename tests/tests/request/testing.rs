//! The tools of the feature `testing`: what they count, seed, break and disable.

use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use axum::routing::{any, post};
use idempotent_runtime::inspector::Inspector;
use idempotent_runtime::store::{MemoryStore, SqliteStore, StoreAdmin};
use idempotent_runtime::testing::{
    self, Fault, FaultyStore, TestRegistry, assert_not_replayed, assert_replayed, idempotency,
};
use idempotent_runtime::{Idempotency, IdempotencyLayer, Policy, RecordKey, Registry, Rejection, Tx, idempotent};
use idempotent_tests::{Logs, PATIENCE, Runs, Server, take_over};
use sqlx::Sqlite;
use tokio::time::{Instant, advance, timeout};
use tower::ServiceExt;

#[idempotent(scope = "charges", cache = [201], in_flight = wait("1m"))]
async fn charge(State(runs): State<Runs>, idempotency: Idempotency, _: String) -> (StatusCode, String) {
    let run = runs.run().await;
    let key = idempotency.key().unwrap_or("none").to_owned();
    (StatusCode::CREATED, format!("charge {run} of {key}, attempt {}", idempotency.attempt()))
}

#[idempotent(scope = "refunds", required, caller = "alice")]
async fn refund(State(runs): State<Runs>) -> String {
    format!("refund {}", runs.run().await)
}

#[idempotent(scope = "testing-short", ttl = "2h", lease = "1h")]
async fn short(State(runs): State<Runs>) -> String {
    format!("short {}", runs.run().await)
}

#[idempotent(scope = "testing-long", ttl = "72h")]
async fn long(State(runs): State<Runs>) -> String {
    format!("long {}", runs.run().await)
}

#[idempotent(scope = "transfers")]
async fn transfer(State(runs): State<Runs>, _tx: Tx<Sqlite>) -> String {
    format!("transfer {}", runs.run().await)
}

fn app(runs: &Runs, registry: &Registry) -> Router {
    Router::new()
        .route("/charges", any(charge))
        .route("/refunds", post(refund))
        .route("/transfers", post(transfer))
        .route("/short", post(short))
        .route("/long", post(long))
        .with_state(runs.clone())
        .layer(registry.layer())
}

async fn send(app: &Router, method: &str, path: &str, key: Option<&str>, body: &'static str) -> Response {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(key) = key {
        request = request.header("idempotency-key", key);
    }
    app.clone().oneshot(request.body(Body::from(body)).expect("a request")).await.expect("a router answers")
}

async fn post_to(app: &Router, path: &str, key: &str) -> Response {
    send(app, "POST", path, Some(key), "").await
}

async fn text(response: Response) -> String {
    let body = to_bytes(response.into_body(), usize::MAX).await.expect("a whole body");
    String::from_utf8(body.to_vec()).expect("text")
}

#[tokio::test]
async fn executions_replays_rejections_count_by_scope_and_registry() {
    let (runs, registry, other) = (Runs::free(), testing::registry(), testing::registry());
    let (app, other_app) = (app(&runs, &registry), app(&runs, &other));
    for _ in 0..3 {
        post_to(&app, "/charges", "k").await;
    }
    send(&app, "POST", "/charges", Some("k"), "another body").await;
    send(&app, "POST", "/charges", None, "").await;
    send(&app, "GET", "/charges", Some("k"), "").await;
    send(&app, "POST", "/refunds", None, "").await;
    post_to(&other_app, "/charges", "k").await;
    assert_eq!((registry.executions("charges"), registry.replays("charges")), (3, 2));
    assert_eq!((registry.rejections("charges", "key_reused"), registry.rejections("charges", "missing_key")), (1, 0));
    assert_eq!((registry.rejections("refunds", "missing_key"), registry.executions("refunds")), (1, 0));
    assert_eq!((other.executions("charges"), other.replays("charges")), (1, 0));
    assert_eq!(runs.started(), 4);
}

#[tokio::test]
async fn a_handler_under_a_layer_of_its_own_scope_is_one_execution() {
    let (runs, registry) = (Runs::free(), testing::registry());
    let policy = Policy::builder("charges").build().expect("the defaults are valid");
    let layered = app(&runs, &registry).layer(IdempotencyLayer::new(policy).with_registry(Registry::clone(&registry)));
    for _ in 1..=2 {
        post_to(&layered, "/charges", "k").await;
    }
    assert_eq!((registry.executions("charges"), registry.replays("charges"), runs.started()), (1, 1, 1));
}

#[idempotent(scope = "steps")]
async fn take_one_step_twice(idempotency: Idempotency) -> Result<String, Response> {
    idempotency.step("reserve", || async { Ok::<_, Response>(1) }).await?;
    let number: u32 = idempotency.step("reserve", || async { Ok::<_, Response>(2) }).await?;
    Ok(number.to_string())
}

#[tokio::test]
async fn the_rejection_of_a_step_is_counted_in_the_handlers_scope() {
    let registry = testing::registry();
    let app: Router = Router::new().route("/", post(take_one_step_twice)).layer(registry.layer());
    assert_eq!(post_to(&app, "/", "k").await.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!((registry.executions("steps"), registry.rejections("steps", "step_failed")), (1, 1));
}

#[tokio::test]
#[should_panic(expected = "a claim cannot be seeded under charges//k, which has an entry")]
async fn a_claim_is_not_seeded_where_something_stands() {
    let registry = testing::registry();
    post_to(&app(&Runs::free(), &registry), "/charges", "k").await;
    let _claim = registry.seed_in_flight(RecordKey::new("charges", None, "k")).await;
}

#[tokio::test]
#[should_panic(expected = "no rejection has the code \"inflight\"")]
async fn a_code_that_is_none_is_no_zero() {
    testing::registry().rejections("charges", "inflight");
}

/// The counts of handlers and layers are 0 before the first request. An unknown scope makes the call panic.
#[tokio::test]
#[should_panic(expected = "no handler and no layer has the scope \"charge\"; the scopes are {")]
async fn scope_that_does_not_exist_is_no_zero() {
    let registry = testing::registry();
    let layer = IdempotencyLayer::new(Policy::builder("testing-unasked").build().expect("a valid policy"));
    assert_eq!((registry.executions("charges"), registry.replays("testing-unasked")), (0, 0));
    drop(layer);
    registry.executions("charge");
}

#[tokio::test]
async fn handler_that_lost_its_key_counts_as_run_and_rejected() {
    let (runs, registry) = (Runs::held(), testing::registry());
    let app = app(&runs, &registry);
    let first = tokio::spawn({
        let app = app.clone();
        async move { post_to(&app, "/charges", "k").await }
    });
    runs.until_started(1).await;
    take_over(registry.store().inner(), &RecordKey::new("charges", None, "k")).await;
    runs.let_finish(1);
    assert_eq!(first.await.expect("it runs").status(), StatusCode::CONFLICT);
    assert_eq!((registry.executions("charges"), registry.rejections("charges", "claim_lost")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_seeded_claim_is_one_of_another_process() {
    let (runs, registry) = (Runs::free(), testing::registry());
    let app = app(&runs, &registry);
    let key = |key| RecordKey::new("refunds", Some("alice"), key);

    let released = registry.seed_in_flight(key("released")).await;
    let (completed, crashed) =
        (registry.seed_in_flight(key("completed")).await, registry.seed_in_flight(key("crashed")).await);
    for key in ["released", "completed", "crashed"] {
        assert_eq!(post_to(&app, "/refunds", key).await.status(), StatusCode::CONFLICT);
        let another = send(&app, "POST", "/refunds", Some(key), "another body").await;
        assert_eq!(another.status(), StatusCode::UNPROCESSABLE_ENTITY, "it is a claim for the first request");
    }
    advance(Duration::from_hours(1)).await;
    assert_eq!(post_to(&app, "/refunds", "released").await.status(), StatusCode::CONFLICT, "its process renews it");

    released.release().await.expect("the store answers");
    assert_eq!(text(post_to(&app, "/refunds", "released").await).await, "refund 1");
    completed.complete((StatusCode::OK, [("x-from", "afar")], "refunded")).await.expect("the store answers");
    let replayed = post_to(&app, "/refunds", "completed").await;
    assert_replayed(replayed.headers());
    assert_eq!(replayed.headers()["x-from"], "afar");
    assert_eq!(text(replayed).await, "refunded");
    crashed.crash().await.expect("the store answers");
    assert_eq!(text(post_to(&app, "/refunds", "crashed").await).await, "refund 2");
}

#[tokio::test(start_paused = true)]
async fn a_seeded_claim_may_end_before_anybody_asks() {
    let (runs, registry) = (Runs::free(), testing::registry());
    let app = app(&runs, &registry);
    let seed = async |key| registry.seed_in_flight(RecordKey::new("charges", None, key)).await;
    seed("released").await.release().await.expect("the store answers");
    seed("completed").await.complete((StatusCode::CREATED, "afar")).await.expect("the store answers");
    seed("crashed").await.crash().await.expect("the store answers");
    assert_eq!(text(post_to(&app, "/charges", "released").await).await, "charge 1 of released, attempt 1");
    assert_eq!(text(post_to(&app, "/charges", "completed").await).await, "afar");
    assert_eq!(text(post_to(&app, "/charges", "crashed").await).await, "charge 2 of crashed, attempt 2");
}

#[tokio::test(start_paused = true)]
async fn seeded_record_lives_as_long_as_the_policy_says() {
    for (name, scope, hours) in [("short", "testing-short", 2), ("long", "testing-long", 72)] {
        for is_asked_first in [false, true] {
            let registry = testing::registry();
            let (app, path) = (app(&Runs::free(), &registry), format!("/{name}"));
            let key = RecordKey::new(scope, None, "k");
            let seeded = registry.seed_in_flight(key.clone()).await;
            if is_asked_first {
                assert_eq!(post_to(&app, &path, "k").await.status(), StatusCode::CONFLICT);
            }
            seeded.complete((StatusCode::CREATED, "afar")).await.expect("the store answers");
            assert_eq!(text(post_to(&app, &path, "k").await).await, "afar");
            let entry = registry.store().get(&key).await.expect("the store answers").expect("it is recorded");
            assert_eq!(entry.expires_in, Some(Duration::from_hours(hours)), "of the paused clock");
            advance(Duration::from_hours(hours - 1)).await;
            assert_replayed(post_to(&app, &path, "k").await.headers());
            advance(Duration::from_hours(1)).await;
            assert_eq!(text(post_to(&app, &path, "k").await).await, format!("{name} 1"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn crashed_seeded_claim_is_known_for_the_ttl_of_the_policy() {
    let registry = testing::registry();
    let key = RecordKey::new("testing-short", None, "k");
    let seeded = registry.seed_in_flight(key.clone()).await;
    assert_eq!(post_to(&app(&Runs::free(), &registry), "/short", "k").await.status(), StatusCode::CONFLICT);
    seeded.crash().await.expect("the store answers");
    let entry = registry.store().get(&key).await.expect("the store answers").expect("its claim is left");
    assert_eq!(entry.expires_in, Some(Duration::from_hours(2)), "of the paused clock");
}

#[tokio::test]
async fn listing_of_a_faulty_store_fails_on_command() {
    let store = FaultyStore::new();
    store.seed_in_flight(RecordKey::new("testing-short", None, "k")).await.crash().await.expect("the store answers");
    let registry = Registry::new(store.clone());
    let app = app(&Runs::free(), &registry).nest("/ops", Inspector::new(&registry).trust_everybody().router());
    post_to(&app, "/short", "k").await;
    for (fault, status) in [(Fault::None, 200), (Fault::Unreachable, 503), (Fault::None, 200)] {
        store.on_list(fault);
        assert_eq!(store.list(None, 10).await.is_err(), status == 503);
        assert_eq!(StoreAdmin::claims(&store, None, 10).await.is_err(), status == 503);
        let listing = send(&app, "GET", "/ops/api/summary", None, "").await;
        assert_eq!(listing.status().as_u16(), status, "{}", text(listing).await);
    }
}

#[tokio::test(start_paused = true)]
async fn seeded_claim_that_was_purged_records_nothing_and_says_so() {
    let registry = testing::registry();
    let app = app(&Runs::free(), &registry);
    let key = RecordKey::new("charges", None, "k");
    let seeded = registry.seed_in_flight(key.clone()).await;
    assert_eq!(post_to(&app, "/charges", "k").await.status(), StatusCode::CONFLICT);
    registry.store().on_purge(Fault::Unreachable);
    assert!(registry.store().purge(&key).await.is_err());
    registry.store().on_purge(Fault::None);
    assert!(registry.store().purge(&key).await.expect("the store answers"));
    let error = seeded.complete((StatusCode::CREATED, "afar")).await.expect_err("there is no claim");
    assert!(std::error::Error::source(&error).expect("a reason").to_string().contains("is gone"), "{error:?}");
}

/// The handler would run beside the claim.
#[tokio::test]
#[should_panic(expected = "a handler with a `Tx` claims in its transaction")]
async fn claim_cannot_be_seeded_for_a_handler_with_a_tx() {
    let _never = testing::registry().seed_in_flight(RecordKey::new("transfers", None, "k")).await;
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_seeded_claim_gets_its_response_in_no_time() {
    let registry = testing::registry();
    let app = app(&Runs::free(), &registry);
    let claim = registry.seed_in_flight(RecordKey::new("charges", None, "k")).await;
    let begun = Instant::now();
    let (waiter, ()) = tokio::join!(post_to(&app, "/charges", "k"), async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        claim.complete((StatusCode::CREATED, "afar")).await.expect("the store answers");
    });
    assert_eq!(text(waiter).await, "afar");
    assert!((30..31).contains(&begun.elapsed().as_secs()), "of the paused clock: {:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_store_of_ones_own_fails_and_stalls_on_command() {
    let runs = Runs::free();
    let registry =
        TestRegistry::with_options(MemoryStore::new(), |builder| builder.store_timeout(Duration::from_mins(1)));
    let app = app(&runs, &registry);
    registry.store().on_claim(Fault::Hangs);
    let begun = Instant::now();
    assert_eq!(post_to(&app, "/charges", "k").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(begun.elapsed(), Duration::from_mins(1), "of the paused clock");
    registry.store().on_claim(Fault::None);
    registry.store().on_complete(Fault::Unreachable);
    assert_eq!(text(post_to(&app, "/charges", "k2").await).await, "charge 1 of k2, attempt 1");
    registry.store().on_complete(Fault::None);
    assert_eq!(registry.drain(PATIENCE).await, 0, "it was tried until it was recorded");
    assert_replayed(post_to(&app, "/charges", "k2").await.headers());
    assert_eq!(registry.executions("charges"), 1);
}

#[tokio::test]
async fn transactions_are_those_of_the_store_behind_the_line() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let sqlite = SqliteStore::open(folder.path().join("idempotency.db")).await.expect("the store opens");
    let registry = TestRegistry::over(sqlite);
    let app = app(&Runs::free(), &registry);
    for _ in 0..2 {
        assert_eq!(text(post_to(&app, "/transfers", "k").await).await, "transfer 1");
    }
    assert_eq!((registry.executions("transfers"), registry.replays("transfers")), (1, 1));
}

#[tokio::test]
async fn a_disabled_registry_runs_handlers_bare_and_says_so() {
    let logs = Logs::collect();
    let (runs, registry) = (Runs::free(), Registry::disabled());
    let warnings = logs.of_level("WARN");
    assert!(warnings.len() == 1 && warnings[0].contains("every retry executes again"), "{warnings:?}");
    let app = app(&runs, &registry);
    for run in 1..=2 {
        let response = post_to(&app, "/charges", "k").await;
        assert_not_replayed(response.headers());
        assert_eq!(text(response).await, format!("charge {run} of k, attempt 1"));
    }
    assert_eq!(send(&app, "POST", "/refunds", None, "").await.status(), StatusCode::BAD_REQUEST, "still required");
    assert_eq!(post_to(&app, "/charges", "\"broken").await.status(), StatusCode::BAD_REQUEST);
    for key in [Some("k"), None] {
        let rejected = send(&app, "POST", "/transfers", key, "").await;
        assert_eq!(rejected.status(), Rejection::TransactionFailed.status());
    }
    assert_eq!(runs.started(), 2);
    assert_eq!(logs.of_level("WARN").len(), 1, "once");
}

#[tokio::test]
async fn handler_of_a_disabled_registry_ends_with_its_client() {
    let runs = Runs::held();
    let server = Server::start(app(&runs, &Registry::disabled())).await;
    let request = b"POST /charges HTTP/1.1\r\nhost: 127.0.0.1\r\nidempotency-key: k\r\ncontent-length: 0\r\n\r\n";
    let connection = server.connect_and_send(request).await;
    runs.until_started(1).await;
    drop(connection);
    runs.until_abandoned(1).await;
}

#[tokio::test]
async fn a_handler_is_called_as_a_function() {
    let (runs, tells) = (Runs::free(), |answer: Response| text(answer));
    let bare = charge(State(runs.clone()), Idempotency::default(), String::new().into()).await;
    assert_eq!(tells(bare).await, "charge 1 of none, attempt 1");
    let second = charge(State(runs), idempotency("k", 2), String::new().into()).await;
    assert_eq!(tells(second).await, "charge 2 of k, attempt 2");
    let steps = idempotency("k", 1);
    let step = timeout(PATIENCE, steps.step("reserve", || async { Ok::<_, StatusCode>(7) }));
    assert_eq!(step.await.expect("it asks no store"), Ok(7));
}

#[idempotent(scope = "disabled-chain", shared_scope)]
async fn forwards_twice(State(runs): State<Runs>, request: Request<Body>) -> String {
    let (parts, _) = request.into_parts();
    let inner: Router = Router::new().fallback(forwarded_to).with_state(runs);
    let send = async || {
        let copy = Request::from_parts(parts.clone(), Body::empty());
        text(inner.clone().oneshot(copy).await.expect("a router answers")).await
    };
    format!("{}, {}", send().await, send().await)
}

#[idempotent(scope = "disabled-chain", shared_scope)]
async fn forwarded_to(State(runs): State<Runs>, idempotency: Idempotency) -> String {
    format!("run {} of {:?}", runs.run().await, idempotency.key())
}

/// If nothing is claimed, no run belongs to a claim, and no run is a second one.
#[tokio::test]
async fn disabled_registry_runs_whatever_a_handler_forwards() {
    let runs = Runs::free();
    let app = Router::new().route("/", post(forwards_twice)).with_state(runs.clone());
    let app = app.layer(Registry::disabled().layer());
    assert_eq!(text(post_to(&app, "/", "k").await).await, r#"run 1 of Some("k"), run 2 of Some("k")"#);
    assert_eq!(text(post_to(&app, "/", "k").await).await, r#"run 3 of Some("k"), run 4 of Some("k")"#);
}
