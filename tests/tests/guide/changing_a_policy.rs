//! Two versions of one handler with one store: each row of the table in the page.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{MethodRouter, post};
use axum::{Json, Router};
use idempotent_runtime::store::{MemoryStore, SqliteStore, StoreAdmin};
use idempotent_runtime::{IdempotencyLayer, Policy, Registry, Tx, idempotent};
use idempotent_tests::sqlite::SqliteFile;
use idempotent_tests::{Answer, PATIENCE, Runs, Server, answer, sealing_key};
use sqlx::Sqlite;

/// Handlers that differ only in their policies.
macro_rules! versions {
    ($($name:ident($($policy:tt)*))*) => {$(
        #[idempotent(shared_scope, $($policy)*)]
        async fn $name(
            Path(_account): Path<String>,
            State(runs): State<Runs>,
            order: String,
        ) -> (StatusCode, String) {
            create(&runs, &order).await
        }
    )*};
}

/// Answers with the status that the order names, or with 201.
async fn create(runs: &Runs, order: &str) -> (StatusCode, String) {
    let status = order.parse().ok().and_then(|status| StatusCode::from_u16(status).ok());
    (status.unwrap_or(StatusCode::CREATED), format!("run {}", runs.run().await))
}

versions! {
    old(scope = "versions", cache = [201])
    old_and_required(scope = "versions", cache = [201], required)
    old_with_402(scope = "versions", cache = [201, 402])
    other_scope(scope = "versions-2", cache = [201])
    other_header(scope = "versions", cache = [201], header = "x-request-id")
    other_header_required(scope = "versions", cache = [201], header = "x-request-id", required)
    json_fingerprint(scope = "versions", cache = [201], fingerprint = json)
    no_fingerprint(scope = "versions", cache = [201], fingerprint = none)
}

#[idempotent(scope = "versions", shared_scope, cache = [201], caller = account)]
async fn with_caller(Path(account): Path<String>, State(runs): State<Runs>, order: String) -> (StatusCode, String) {
    let _ = account;
    create(&runs, &order).await
}

#[idempotent(scope = "versions", shared_scope, cache = [201], caller = format!("account-{account}"))]
async fn with_other_caller(
    Path(account): Path<String>,
    State(runs): State<Runs>,
    order: String,
) -> (StatusCode, String) {
    let _ = account;
    create(&runs, &order).await
}

#[idempotent(scope = "versions", shared_scope, cache = [201], key = header_of(&headers))]
async fn key_by_expression(
    Path(_account): Path<String>,
    State(runs): State<Runs>,
    headers: axum::http::HeaderMap,
    order: String,
) -> (StatusCode, String) {
    create(&runs, &order).await
}

fn header_of(headers: &axum::http::HeaderMap) -> Option<&str> {
    headers.get("idempotency-key").and_then(|key| key.to_str().ok())
}

#[idempotent(scope = "versions", shared_scope, cache = [201], key = format!("order-{order}"))]
async fn other_key(Path(_account): Path<String>, State(runs): State<Runs>, order: String) -> (StatusCode, String) {
    create(&runs, &order).await
}

#[idempotent(scope = "versions", shared_scope, cache = [201])]
async fn in_transaction(
    mut tx: Tx<Sqlite>,
    Path(_account): Path<String>,
    State(runs): State<Runs>,
    order: String,
) -> (StatusCode, String) {
    sqlx::query("SELECT 1").execute(&mut *tx).await.expect("the transaction serves");
    create(&runs, &order).await
}

#[derive(serde::Serialize)]
struct Created {
    run: usize,
}

#[idempotent(scope = "versions", shared_scope, cache = [201])]
async fn as_json(
    Path(_account): Path<String>,
    State(runs): State<Runs>,
    _order: String,
) -> (StatusCode, Json<Created>) {
    (StatusCode::CREATED, Json(Created { run: runs.run().await }))
}

async fn serve(handler: MethodRouter<Runs>, registry: &Registry, runs: &Runs) -> Server {
    let app = Router::new().route("/accounts/{account}/orders", handler.clone()).route("/v2/{account}/orders", handler);
    Server::start(app.with_state(runs.clone()).layer(registry.layer())).await
}

async fn order(server: &Server) -> Answer {
    order_of(server, "tea", &[]).await
}

async fn order_of(server: &Server, order: &'static str, headers: &[(&str, &str)]) -> Answer {
    let request = server.post("/accounts/7/orders").header("idempotency-key", "k");
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
    answer(request.body(order)).await
}

/// If the request runs instead, it waits for the test: the time limit makes this a failure.
async fn rejected_soon(request: impl Future<Output = Answer>) -> Answer {
    tokio::time::timeout(PATIENCE / 2, request).await.expect("it is rejected, and does not run")
}

/// Sends a request to the old version, then to the new one with the same store. Returns the second response.
async fn across(old: MethodRouter<Runs>, new: MethodRouter<Runs>) -> Answer {
    let registry = Registry::new(MemoryStore::new());
    across_registries(&registry, old, &registry, new).await
}

async fn across_registries(
    one: &Registry,
    old: MethodRouter<Runs>,
    other: &Registry,
    new: MethodRouter<Runs>,
) -> Answer {
    let runs = Runs::free();
    let (old, new) = (serve(old, one, &runs).await, serve(new, other, &runs).await);
    assert_eq!(order(&old).await.text(), "run 1");
    let across = order(&new).await;
    let has_run_again = across.text() == "run 2";
    assert_eq!(runs.started(), 1 + usize::from(has_run_again));
    assert!(order(&old).await.is_replay(), "the old version behaves as before");
    across
}

fn assert_runs_again(answer: &Answer) {
    assert_eq!((answer.status, answer.text(), answer.is_replay()), (StatusCode::CREATED, "run 2", false));
}

fn assert_replays(answer: &Answer) {
    assert_eq!((answer.status, answer.text(), answer.is_replay()), (StatusCode::CREATED, "run 1", true));
}

#[tokio::test]
async fn other_scope_runs_again() {
    assert_runs_again(&across(post(old), post(other_scope)).await);
}

#[tokio::test]
async fn caller_added_removed_or_changed_runs_again() {
    assert_runs_again(&across(post(old), post(with_caller)).await);
    assert_runs_again(&across(post(with_caller), post(old)).await);
    assert_runs_again(&across(post(with_caller), post(with_other_caller)).await);
}

#[tokio::test]
async fn key_expression_of_the_same_value_replays() {
    assert_replays(&across(post(old), post(key_by_expression)).await);
}

#[tokio::test]
async fn key_expression_of_another_value_runs_again() {
    assert_runs_again(&across(post(old), post(other_key)).await);
}

#[tokio::test]
async fn other_header_runs_unguarded_unless_required() {
    assert_runs_again(&across(post(old), post(other_header)).await);
    let rejected = across(post(old_and_required), post(other_header_required)).await;
    assert_eq!(rejected.rejection(), "missing_key");
}

#[tokio::test]
async fn other_header_sent_beside_the_old_one_replays() {
    let (runs, registry) = (Runs::free(), Registry::new(MemoryStore::new()));
    let (old, new) = (serve(post(old), &registry, &runs).await, serve(post(other_header), &registry, &runs).await);
    let both = [("x-request-id", "k")];
    order_of(&old, "tea", &both).await;
    assert_replays(&order_of(&new, "tea", &both).await);
}

#[tokio::test]
async fn other_fingerprint_rejects_and_runs_nothing() {
    assert_eq!(across(post(old), post(no_fingerprint)).await.rejection(), "key_reused");
    assert_eq!(across(post(no_fingerprint), post(old)).await.rejection(), "key_reused");
}

#[tokio::test]
async fn json_fingerprint_rejects_retries_of_json_only() {
    assert_replays(&across(post(old), post(json_fingerprint)).await);
    let (runs, registry) = (Runs::free(), Registry::new(MemoryStore::new()));
    let (old, new) = (serve(post(old), &registry, &runs).await, serve(post(json_fingerprint), &registry, &runs).await);
    let json = [("content-type", "application/json")];
    order_of(&old, r#"{"item": "tea"}"#, &json).await;
    assert_eq!(order_of(&new, r#"{"item": "tea"}"#, &json).await.rejection(), "key_reused");
    assert_eq!(runs.started(), 1);
}

#[tokio::test]
async fn other_path_rejects_and_runs_nothing() {
    let (runs, registry) = (Runs::free(), Registry::new(MemoryStore::new()));
    let server = serve(post(old), &registry, &runs).await;
    order(&server).await;
    let moved = answer(server.post("/v2/7/orders").header("idempotency-key", "k").body("tea")).await;
    assert_eq!((moved.rejection().as_str(), runs.started()), ("key_reused", 1));
}

#[tokio::test]
async fn transaction_added_or_removed_replays() {
    let file = SqliteFile::new();
    let registry = Registry::new(SqliteStore::open(file.path()).await.expect("the store opens"));
    assert_replays(&across_registries(&registry, post(old), &registry, post(in_transaction)).await);
    let file = SqliteFile::new();
    let registry = Registry::new(SqliteStore::open(file.path()).await.expect("the store opens"));
    assert_replays(&across_registries(&registry, post(in_transaction), &registry, post(old)).await);
}

#[tokio::test]
async fn transaction_added_or_removed_rejects_while_it_runs() {
    for (one, other) in [(post(old), post(in_transaction)), (post(in_transaction), post(old))] {
        let (file, runs) = (SqliteFile::new(), Runs::held());
        let registry = Registry::new(SqliteStore::open(file.path()).await.expect("the store opens"));
        let (one, other) = (serve(one, &registry, &runs).await, serve(other, &registry, &runs).await);
        let (first, meanwhile) = tokio::join!(order(&one), async {
            runs.until_started(1).await;
            let meanwhile = rejected_soon(order(&other)).await;
            runs.let_finish(1);
            meanwhile
        });
        assert_eq!((first.text(), meanwhile.rejection().as_str(), runs.started()), ("run 1", "in_flight", 1));
    }
}

#[tokio::test]
async fn other_response_type_replays_the_old_response() {
    let replay = across(post(old), post(as_json)).await;
    assert_replays(&replay);
    assert_eq!(replay.headers["content-type"], "text/plain; charset=utf-8");
}

#[tokio::test]
async fn statuses_that_are_recorded_replay_under_a_shorter_list() {
    let (runs, registry) = (Runs::free(), Registry::new(MemoryStore::new()));
    let (more, fewer) = (serve(post(old_with_402), &registry, &runs).await, serve(post(old), &registry, &runs).await);
    assert_eq!(order_of(&more, "402", &[]).await.text(), "run 1");
    assert!(order_of(&fewer, "402", &[]).await.is_replay());
}

#[tokio::test]
async fn statuses_that_are_not_recorded_run_again_under_a_longer_list() {
    let (runs, registry) = (Runs::free(), Registry::new(MemoryStore::new()));
    let (fewer, more) = (serve(post(old), &registry, &runs).await, serve(post(old_with_402), &registry, &runs).await);
    assert_eq!(order_of(&fewer, "402", &[]).await.text(), "run 1");
    assert_eq!(order_of(&more, "402", &[]).await.text(), "run 2");
    assert!(order_of(&more, "402", &[]).await.is_replay());
}

/// A registry for each version, with one store.
fn registries(
    one: impl FnOnce(Arc<MemoryStore>) -> Registry,
    other: impl FnOnce(Arc<MemoryStore>) -> Registry,
) -> (Registry, Registry) {
    let store = Arc::new(MemoryStore::new());
    (one(Arc::clone(&store)), other(store))
}

fn digesting(store: impl StoreAdmin) -> Registry {
    Registry::builder(store).digest_keys().build()
}

fn sealing(store: impl StoreAdmin) -> Registry {
    Registry::builder(store).seal_with(sealing_key(7)).build()
}

#[tokio::test]
async fn digested_keys_run_again_either_way() {
    let (plain, digested) = registries(Registry::new, digesting);
    assert_runs_again(&across_registries(&plain, post(old), &digested, post(old)).await);
    let (plain, digested) = registries(Registry::new, digesting);
    assert_runs_again(&across_registries(&digested, post(old), &plain, post(old)).await);
}

fn sealing_since_today(store: impl StoreAdmin) -> Registry {
    let tomorrow = SystemTime::now() + Duration::from_hours(24);
    Registry::builder(store).seal_with(sealing_key(7)).accept_unsealed_until(tomorrow).build()
}

#[tokio::test]
async fn keyed_digests_run_again_either_way() {
    let keyed = |store| Registry::builder(store).digest_keys().digest_with(sealing_key(7)).build();
    let (plain, keyed_too) = registries(digesting, keyed);
    assert_runs_again(&across_registries(&plain, post(old), &keyed_too, post(old)).await);
    let (plain, keyed_too) = registries(digesting, keyed);
    assert_runs_again(&across_registries(&keyed_too, post(old), &plain, post(old)).await);
}

#[tokio::test]
async fn sealing_that_is_added_replays_until_its_date() {
    let (plain, sealed) = registries(Registry::new, sealing_since_today);
    assert_replays(&across_registries(&plain, post(old), &sealed, post(old)).await);
    let (plain, sealed) = registries(Registry::new, sealing);
    let rejected = across_registries(&plain, post(old), &sealed, post(old)).await;
    assert_eq!(rejected.rejection(), "store_unavailable");
}

#[tokio::test]
async fn sealing_that_is_removed_rejects_and_runs_nothing() {
    let (plain, sealed) = registries(Registry::new, sealing);
    let rejected = across_registries(&sealed, post(old), &plain, post(old)).await;
    assert_eq!(
        (rejected.status, rejected.rejection().as_str()),
        (StatusCode::SERVICE_UNAVAILABLE, "store_unavailable")
    );
}

#[tokio::test]
async fn other_store_runs_again() {
    let (one, other) = (Registry::new(MemoryStore::new()), Registry::new(MemoryStore::new()));
    assert_runs_again(&across_registries(&one, post(old), &other, post(old)).await);
}

fn bridge() -> IdempotencyLayer {
    IdempotencyLayer::new(Policy::builder("versions").cache([201]).build().expect("the policy is valid"))
}

#[tokio::test]
async fn bridge_replays_what_the_old_version_recorded() {
    assert_replays(&across(post(old), post(with_caller).layer(bridge())).await);
    assert_replays(&across(post(old), post(other_scope).layer(bridge())).await);
    assert_replays(&across(post(old), post(other_key).layer(bridge())).await);
}

#[tokio::test]
async fn bridge_leaves_new_keys_to_the_new_policy() {
    let (runs, registry) = (Runs::free(), Registry::new(MemoryStore::new()));
    let bridged = serve(post(with_caller).layer(bridge()), &registry, &runs).await;
    let after = serve(post(with_caller), &registry, &runs).await;
    assert_eq!(order(&bridged).await.text(), "run 1");
    assert_replays(&order(&bridged).await);
    assert_replays(&order(&after).await);
}

#[tokio::test]
async fn bridge_rejects_what_the_old_version_still_runs() {
    let (runs, registry) = (Runs::held(), Registry::new(MemoryStore::new()));
    let bridged = serve(post(with_caller).layer(bridge()), &registry, &runs).await;
    let old = serve(post(old), &registry, &runs).await;
    let (first, meanwhile) = tokio::join!(order(&old), async {
        runs.until_started(1).await;
        let meanwhile = rejected_soon(order(&bridged)).await;
        runs.let_finish(1);
        meanwhile
    });
    assert_eq!((first.text(), meanwhile.rejection().as_str(), runs.started()), ("run 1", "in_flight", 1));
}

#[tokio::test]
async fn bridge_does_not_carry_keys_back_to_the_old_version() {
    let (runs, registry) = (Runs::free(), Registry::new(MemoryStore::new()));
    let bridged = serve(post(with_caller).layer(bridge()), &registry, &runs).await;
    let old = serve(post(old), &registry, &runs).await;
    assert_eq!(order(&bridged).await.text(), "run 1");
    assert_runs_again(&order(&old).await);
}

/// The four versions of a rolling deploy in three steps: old, old with the new policy around it, new with the old
/// policy around it, new.
fn steps_of_a_rolling_deploy() -> [MethodRouter<Runs>; 4] {
    let new_policy = Policy::builder("versions-2").cache([201]).build().expect("the policy is valid");
    let prepared = post(old).layer(IdempotencyLayer::new(new_policy));
    [post(old), prepared, post(other_scope).layer(bridge()), post(other_scope)]
}

#[tokio::test]
async fn rolling_deploy_in_three_steps_replays_in_both_directions() {
    for step in 0..3 {
        for (first, then) in [(step, step + 1), (step + 1, step)] {
            let mut versions = steps_of_a_rolling_deploy().map(Some);
            let mut version = |number: usize| versions[number].take().expect("each is used once");
            assert_replays(&across(version(first), version(then)).await);
        }
    }
}

#[tokio::test]
async fn rolling_deploy_in_three_steps_rejects_while_it_runs() {
    for step in 0..3 {
        for (first, then) in [(step, step + 1), (step + 1, step)] {
            let (runs, registry) = (Runs::held(), Registry::new(MemoryStore::new()));
            let mut versions = steps_of_a_rolling_deploy().map(Some);
            let first = serve(versions[first].take().expect("it is used once"), &registry, &runs).await;
            let then = serve(versions[then].take().expect("it is used once"), &registry, &runs).await;
            let (answered, meanwhile) = tokio::join!(order(&first), async {
                runs.until_started(1).await;
                let meanwhile = rejected_soon(order(&then)).await;
                runs.let_finish(1);
                meanwhile
            });
            assert_eq!((answered.text(), meanwhile.rejection().as_str()), ("run 1", "in_flight"));
            assert_replays(&order(&then).await);
            assert_eq!(runs.started(), 1);
        }
    }
}
