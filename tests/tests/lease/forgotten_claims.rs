//! The store forgets the claim of a handler that runs: its time to live is over, an operator purges it, or the store was
//! away for longer than that. The key stays claimed in the handler's process, and its response is recorded unless another
//! process took the key.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::store::{EntryState, Held, MemoryStore, SqliteStore, Store, StoreAdmin};
use idempotent_runtime::{Idempotency, RecordKey, Registry, Tx, idempotent};
use idempotent_tests::sqlite::{SqliteFile, claim_request};
use idempotent_tests::{Answer, Fault, FaultyStore, Logs, Runs, Server, answer, eventually};
use sqlx::Sqlite;
use tokio::task::JoinHandle;
use tower_http::catch_panic::CatchPanicLayer;

type Charged = (StatusCode, String);

async fn charge(runs: &Runs, idempotency: &Idempotency, body: &str) -> Charged {
    runs.run().await;
    (StatusCode::CREATED, format!("{body} of attempt {}", idempotency.attempt()))
}

#[idempotent(scope = "brief", ttl = "1s", lease = "1s")]
async fn brief(State(runs): State<Runs>, idempotency: Idempotency, body: String) -> Charged {
    charge(&runs, &idempotency, &body).await
}

#[idempotent(scope = "outage", ttl = "1s", lease = "200ms")]
async fn outage(State(runs): State<Runs>, idempotency: Idempotency, body: String) -> Charged {
    charge(&runs, &idempotency, &body).await
}

#[idempotent(scope = "forgotten-blocks", ttl = "1s", lease = "1s")]
async fn blocks(State(runs): State<Runs>, idempotency: Idempotency, body: String) -> Charged {
    let charged = charge(&runs, &idempotency, &body).await;
    // For longer than the claim is remembered.
    std::thread::sleep(Duration::from_millis(2_200));
    charged
}

#[idempotent(scope = "purged", lease = "300ms")]
async fn purged(State(runs): State<Runs>, idempotency: Idempotency, body: String) -> Charged {
    charge(&runs, &idempotency, &body).await
}

#[idempotent(scope = "sent", lease = "1s")]
async fn sent(State(runs): State<Runs>, idempotency: Idempotency, body: String) -> Charged {
    charge(&runs, &idempotency, &body).await
}

#[idempotent(scope = "sent-once", lease = "1s", after_crash = "reject")]
async fn sent_once(State(runs): State<Runs>, idempotency: Idempotency, body: String) -> Charged {
    charge(&runs, &idempotency, &body).await
}

#[idempotent(scope = "panics", lease = "300ms", after_crash = "reject")]
async fn panics(State(runs): State<Runs>) {
    runs.run().await;
    panic!("always");
}

#[idempotent(scope = "fails", lease = "300ms")]
async fn fails(State(runs): State<Runs>, idempotency: Idempotency) -> Charged {
    runs.run().await;
    (StatusCode::BAD_GATEWAY, format!("attempt {}", idempotency.attempt()))
}

#[idempotent(scope = "unguarded", on_store_error = "run")]
async fn unguarded(State(runs): State<Runs>, idempotency: Idempotency, body: String) -> Charged {
    charge(&runs, &idempotency, &body).await
}

#[idempotent(scope = "both", shared_scope, lease = "300ms")]
async fn plain(State(runs): State<Runs>) {
    runs.run().await;
}

#[idempotent(scope = "both", shared_scope)]
async fn in_transaction(_tx: Tx<Sqlite>, State(runs): State<Runs>) {
    runs.run().await;
}

/// One process.
async fn serve(runs: &Runs, store: &FaultyStore<impl StoreAdmin>) -> Server {
    serve_within(Duration::from_millis(100), runs, store).await
}

async fn serve_within(limit: Duration, runs: &Runs, store: &FaultyStore<impl StoreAdmin>) -> Server {
    let registry = Registry::builder(store.clone()).store_timeout(limit).build();
    let app = Router::new()
        .route("/brief", post(brief))
        .route("/outage", post(outage))
        .route("/blocks", post(blocks))
        .route("/purged", post(purged))
        .route("/sent", post(sent))
        .route("/sent-once", post(sent_once))
        .route("/panics", post(panics))
        .route("/fails", post(fails))
        .route("/unguarded", post(unguarded))
        .route("/plain", post(plain))
        .route("/in-transaction", post(in_transaction));
    Server::start(app.with_state(runs.clone()).layer(registry.layer()).layer(CatchPanicLayer::new())).await
}

/// A request that is under way.
fn begin(server: &Server, path: &str, body: &'static str) -> JoinHandle<Answer> {
    tokio::spawn(answer(server.post(path).header("idempotency-key", "k").body(body)))
}

async fn end(request: JoinHandle<Answer>) -> Answer {
    request.await.expect("the request runs")
}

/// What a second request gets that must not be executed.
async fn rejection(server: &Server, path: &str, body: &'static str, runs: &Runs) -> String {
    let before = runs.started();
    tokio::select! {
        answer = end(begin(server, path, body)) => answer.rejection(),
        () = runs.until_started(before + 1) => panic!("{body} is executed"),
    }
}

fn key(scope: &str) -> RecordKey {
    RecordKey::new(scope, None, "k")
}

async fn state(store: &FaultyStore<impl StoreAdmin>, scope: &str) -> Option<EntryState> {
    store.inner().get(&key(scope)).await.expect("the store answers").map(|entry| entry.state)
}

async fn purge(store: &FaultyStore<impl StoreAdmin>, scope: &str) {
    assert!(store.purge(&key(scope)).await.expect("the store answers"));
}

#[tokio::test]
async fn a_duplicate_of_a_forgotten_claim_is_not_executed() {
    let (runs, store, logs) = (Runs::held(), FaultyStore::new(), Logs::collect());
    let server = serve(&runs, &store).await;
    let first = begin(&server, "/brief", "tea");
    runs.until_started(1).await;
    store.on_renew(Fault::Unreachable);
    eventually(async || state(&store, "brief").await, Option::is_none).await;

    assert_eq!(rejection(&server, "/brief", "ham", &runs).await, "key_reused");
    assert_eq!(rejection(&server, "/brief", "tea", &runs).await, "in_flight");
    assert!(logs.of_level("WARN").iter().any(|line| line.contains("it keeps its key")), "{:?}", logs.of_level("WARN"));
    runs.let_finish(1);
    assert_eq!(end(first).await.text(), "tea of attempt 1");
    assert_eq!(runs.started(), 1);
}

#[tokio::test]
async fn a_claim_outlives_a_lease_as_long_as_its_ttl() {
    let (runs, store) = (Runs::held(), FaultyStore::new());
    let (server, another_process) = (serve(&runs, &store).await, serve(&runs, &store).await);
    let first = begin(&server, "/brief", "tea");
    runs.until_started(1).await;
    store.on_renew(Fault::Unreachable);
    let second = loop {
        let mut second = begin(&another_process, "/brief", "tea");
        tokio::select! {
            answer = &mut second => assert_eq!(answer.expect("the request runs").rejection(), "in_flight"),
            () = runs.until_started(2) => break second,
        }
    };
    store.on_renew(Fault::None);
    runs.let_finish(2);
    assert_eq!(end(first).await.rejection(), "claim_lost");
    assert_eq!(end(second).await.text(), "tea of attempt 2", "the claim was remembered when its lease was over");
}

#[tokio::test]
async fn an_outage_longer_than_the_ttl_executes_nothing_twice() {
    let (runs, store) = (Runs::held(), FaultyStore::new());
    let server = serve(&runs, &store).await;
    let first = begin(&server, "/outage", "tea");
    runs.until_started(1).await;
    for set in [FaultyStore::on_claim, FaultyStore::on_renew, FaultyStore::on_complete] {
        set(&store, Fault::Unreachable);
    }
    eventually(async || state(&store, "outage").await, Option::is_none).await;
    store.on_claim(Fault::None);
    assert_eq!(rejection(&server, "/outage", "tea", &runs).await, "in_flight");
    store.on_renew(Fault::None);
    store.on_complete(Fault::None);
    runs.let_finish(1);
    assert_eq!(end(first).await.text(), "tea of attempt 1");
    let retry = end(begin(&server, "/outage", "tea")).await;
    assert_eq!((retry.text(), retry.is_replay(), runs.started()), ("tea of attempt 1", true, 1));
}

#[tokio::test]
async fn a_blocking_handler_without_successor_is_recorded() {
    let (runs, store) = (Runs::free(), FaultyStore::new());
    let server = serve(&runs, &store).await;
    let first = end(begin(&server, "/blocks", "tea")).await;
    assert_eq!((first.status, first.text()), (StatusCode::CREATED, "tea of attempt 1"));
}

#[tokio::test]
async fn a_purged_key_is_claimed_again_by_its_handler() {
    let (runs, store) = (Runs::held(), FaultyStore::new());
    let (server, another_process) = (serve(&runs, &store).await, serve(&runs, &store).await);
    let first = begin(&server, "/purged", "tea");
    runs.until_started(1).await;
    purge(&store, "purged").await;
    eventually(async || state(&store, "purged").await, Option::is_some).await;

    assert_eq!(rejection(&another_process, "/purged", "tea", &runs).await, "in_flight");
    runs.let_finish(1);
    assert_eq!(end(first).await.text(), "tea of attempt 1");
    assert!(end(begin(&another_process, "/purged", "tea")).await.is_replay());
}

#[tokio::test]
async fn a_purged_key_stays_claimed_in_its_process() {
    for other in ["tea", "ham"] {
        let (runs, store) = (Runs::held(), FaultyStore::new());
        let (server, another_process) = (serve(&runs, &store).await, serve(&runs, &store).await);
        let first = begin(&server, "/purged", "tea");
        runs.until_started(1).await;
        store.on_renew(Fault::Unreachable);
        purge(&store, "purged").await;

        let expected = if other == "tea" { "in_flight" } else { "key_reused" };
        assert_eq!(rejection(&server, "/purged", other, &runs).await, expected);
        assert_eq!(rejection(&server, "/purged", "tea", &runs).await, "in_flight");
        runs.let_finish(1);
        assert_eq!(end(first).await.text(), "tea of attempt 1");
        for process in [&server, &another_process] {
            assert!(end(begin(process, "/purged", "tea")).await.is_replay());
            assert_eq!(rejection(process, "/purged", "ham", &runs).await, "key_reused");
        }
    }
}

#[tokio::test]
async fn a_key_reused_after_a_purge_stays_with_its_first_request() {
    let (runs, store) = (Runs::held(), FaultyStore::new());
    let (server, another_process) = (serve(&runs, &store).await, serve(&runs, &store).await);
    let first = begin(&server, "/purged", "tea");
    runs.until_started(1).await;
    purge(&store, "purged").await;
    assert_eq!(rejection(&server, "/purged", "ham", &runs).await, "key_reused");

    // The store knows the key as that of the handler's own request again.
    let tea_elsewhere = async || rejection(&another_process, "/purged", "tea", &runs).await;
    eventually(tea_elsewhere, |rejection| rejection == "in_flight").await;
    assert_eq!(rejection(&another_process, "/purged", "ham", &runs).await, "key_reused");
    runs.let_finish(1);
    assert_eq!(end(first).await.text(), "tea of attempt 1");
}

#[tokio::test]
async fn a_purged_key_that_another_process_took_is_lost() {
    for other in ["tea", "ham"] {
        let (runs, store) = (Runs::held(), FaultyStore::new());
        let (server, another_process) = (serve(&runs, &store).await, serve(&runs, &store).await);
        let first = begin(&server, "/purged", "tea");
        runs.until_started(1).await;
        store.on_renew(Fault::Unreachable);
        purge(&store, "purged").await;
        let second = begin(&another_process, "/purged", other);
        runs.until_started(2).await;
        store.on_renew(Fault::None);
        assert_eq!(rejection(&server, "/purged", "tea", &runs).await, "in_flight");

        runs.let_finish(2);
        assert_eq!(end(first).await.rejection(), "claim_lost");
        let second = end(second).await;
        assert_eq!((second.status, second.text().starts_with(other)), (StatusCode::CREATED, true));
        let retry = end(begin(&server, "/purged", other)).await;
        assert_eq!((retry.text(), retry.is_replay(), runs.started()), (second.text(), true, 2));
    }
}

/// A handler runs whose claim is forgotten, and a duplicate in its process has got the key without knowing it yet.
async fn forgotten_and_taken(scope: &str, other: &'static str) -> (Runs, FaultyStore, Server, [JoinHandle<Answer>; 2]) {
    let (runs, store, path) = (Runs::held(), FaultyStore::new(), format!("/{scope}"));
    let server = serve_within(Duration::from_secs(10), &runs, &store).await;
    let first = begin(&server, &path, "tea");
    runs.until_started(1).await;
    store.on_renew(Fault::Unreachable);
    purge(&store, scope).await;
    store.on_claim(Fault::AnswerIsLate);
    let duplicate = begin(&server, &path, other);
    eventually(async || state(&store, scope).await, Option::is_some).await;
    store.on_claim(Fault::None);
    store.on_renew(Fault::None);
    (runs, store, server, [first, duplicate])
}

#[tokio::test]
async fn an_end_waits_for_a_duplicate_that_got_its_key() {
    for (other, expected) in [("tea", "in_flight"), ("ham", "key_reused")] {
        let (runs, store, server, [first, duplicate]) = forgotten_and_taken("purged", other).await;
        runs.let_finish(1);
        eventually(async || store.completions(), |completions| *completions > 0).await;
        store.let_through();
        tokio::select! {
            duplicate = end(duplicate) => assert_eq!(duplicate.rejection(), expected),
            () = runs.until_started(2) => panic!("{other} is executed beside tea"),
        }
        assert_eq!(end(first).await.text(), "tea of attempt 1");
        assert!(end(begin(&server, "/purged", "tea")).await.is_replay());
    }
}

#[tokio::test]
async fn an_unknown_outcome_waits_for_a_duplicate_with_its_key() {
    let (runs, store, server, [first, duplicate]) = forgotten_and_taken("panics", "tea").await;
    runs.let_finish(1);
    eventually(async || store.ends(), |ends| *ends > 0).await;
    store.let_through();
    tokio::select! {
        duplicate = end(duplicate) => assert_eq!(duplicate.rejection(), "in_flight"),
        () = runs.until_started(2) => panic!("it is executed again"),
    }
    assert_eq!(end(first).await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(rejection(&server, "/panics", "tea", &runs).await, "outcome_unknown");
}

#[tokio::test]
async fn a_renewal_after_a_lost_end_leaves_no_claim() {
    let (runs, store) = (Runs::held(), FaultyStore::new());
    let server = serve_within(Duration::from_secs(10), &runs, &store).await;
    let first = begin(&server, "/purged", "tea");
    runs.until_started(1).await;
    let claims = store.claims();
    store.on_claim(Fault::ArrivesLate);
    purge(&store, "purged").await;
    eventually(async || store.claims(), |more| *more > claims).await;
    store.on_claim(Fault::None);

    // Another process gets the key, and frees it after the end.
    let other = claim_request();
    store.inner().claim(&key("purged"), other).await.expect("the store answers");
    runs.let_finish(1);
    assert_eq!(end(first).await.rejection(), "claim_lost");
    assert_eq!(store.inner().release(&key("purged"), other.token).await.expect("the store answers"), Held::Yes);
    store.let_through();
    eventually(async || store.ends(), |ends| *ends > 0).await;
    assert_eq!(state(&store, "purged").await, None);
}

#[tokio::test]
async fn a_panic_after_a_purge_is_not_forgotten_under_reject() {
    let (runs, store) = (Runs::held(), FaultyStore::new());
    let server = serve(&runs, &store).await;
    let first = begin(&server, "/panics", "");
    runs.until_started(1).await;
    purge(&store, "panics").await;
    runs.let_finish(1);
    assert_eq!(end(first).await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(rejection(&server, "/panics", "", &runs).await, "outcome_unknown");
}

#[tokio::test]
async fn a_failure_after_a_purge_frees_the_key() {
    let (runs, store, logs) = (Runs::held(), FaultyStore::new(), Logs::collect());
    let server = serve(&runs, &store).await;
    let first = begin(&server, "/fails", "");
    runs.until_started(1).await;
    store.on_renew(Fault::Unreachable);
    purge(&store, "fails").await;
    runs.let_finish(2);
    assert_eq!(end(first).await.text(), "attempt 1");
    assert_eq!(end(begin(&server, "/fails", "")).await.text(), "attempt 1");
    assert!(logs.of_level("ERROR").is_empty(), "no claim was lost: {:?}", logs.of_level("ERROR"));
}

#[tokio::test]
async fn on_store_error_run_does_not_run_beside_another_request() {
    let (runs, store) = (Runs::held(), FaultyStore::new());
    let server = serve(&runs, &store).await;
    let first = begin(&server, "/unguarded", "tea");
    runs.until_started(1).await;
    store.on_claim(Fault::Unreachable);
    assert_eq!(rejection(&server, "/unguarded", "ham", &runs).await, "key_reused");
    assert_eq!(rejection(&server, "/unguarded", "tea", &runs).await, "store_unavailable");
    runs.let_finish(1);
    assert_eq!(end(first).await.text(), "tea of attempt 1");
}

#[tokio::test]
async fn a_tx_handler_does_not_run_beside_a_forgotten_claim() {
    let (runs, file) = (Runs::held(), SqliteFile::new());
    let store = FaultyStore::around(SqliteStore::open(file.path()).await.expect("the file can be opened"));
    let server = serve(&runs, &store).await;
    let first = begin(&server, "/plain", "");
    runs.until_started(1).await;
    store.on_renew(Fault::Unreachable);
    purge(&store, "both").await;
    // The path is part of the fingerprint.
    assert_eq!(rejection(&server, "/in-transaction", "", &runs).await, "key_reused");
    runs.let_finish(1);
    assert_eq!(end(first).await.status, StatusCode::OK);
}

/// Two processes, each with a line of its own to the same store.
async fn two_lines(runs: &Runs) -> ([FaultyStore; 2], [Server; 2]) {
    let memory = MemoryStore::new();
    let stores = [FaultyStore::around(memory.clone()), FaultyStore::around(memory)];
    let servers = [serve(runs, &stores[0]).await, serve(runs, &stores[1]).await];
    (stores, servers)
}

fn cut(store: &FaultyStore) {
    for set in [FaultyStore::on_claim, FaultyStore::on_renew, FaultyStore::on_complete] {
        set(store, Fault::Unreachable);
    }
}

fn restore(store: &FaultyStore) {
    for set in [FaultyStore::on_claim, FaultyStore::on_renew, FaultyStore::on_complete] {
        set(store, Fault::None);
    }
}

async fn until_the_lease_is_over(store: &FaultyStore, scope: &str) {
    let is_over = async || matches!(state(store, scope).await, Some(EntryState::Claimed { lease: None, .. }));
    eventually(is_over, |over| *over).await;
}

#[tokio::test]
async fn a_response_after_its_lease_is_no_second_success() {
    let runs = Runs::held();
    let (stores, [cut_off, other]) = two_lines(&runs).await;
    let first = begin(&cut_off, "/purged", "tea");
    runs.until_started(1).await;
    cut(&stores[0]);
    until_the_lease_is_over(&stores[0], "purged").await;
    let second = begin(&other, "/purged", "tea");
    runs.until_started(2).await;

    runs.let_finish(2);
    let second = end(second).await;
    assert_eq!(second.text(), "tea of attempt 2");
    let first = end(first).await;
    assert_eq!(
        (first.status, first.rejection().as_str()),
        (StatusCode::CONFLICT, "claim_lost"),
        "one key has one success"
    );
    assert_eq!(first.headers["retry-after"], "1");
    restore(&stores[0]);
    let retry = end(begin(&cut_off, "/purged", "tea")).await;
    assert_eq!((retry.text(), retry.is_replay(), runs.started()), (second.text(), true, 2));
}

#[tokio::test]
async fn a_response_after_its_lease_is_recorded_for_the_retry() {
    let (runs, logs) = (Runs::held(), Logs::collect());
    let (stores, [cut_off, other]) = two_lines(&runs).await;
    let first = begin(&cut_off, "/purged", "tea");
    runs.until_started(1).await;
    cut(&stores[0]);
    until_the_lease_is_over(&stores[0], "purged").await;
    runs.let_finish(1);
    let first = end(first).await;
    assert_eq!((first.status, first.rejection().as_str()), (StatusCode::CONFLICT, "claim_lost"));
    assert!(
        logs.of_level("ERROR").iter().any(|line| line.contains("its lease is over")),
        "{:?}",
        logs.of_level("ERROR")
    );

    restore(&stores[0]);
    let is_recorded = async || matches!(state(&stores[0], "purged").await, Some(EntryState::Completed { .. }));
    eventually(is_recorded, |recorded| *recorded).await;
    for process in [&cut_off, &other] {
        let retry = end(begin(process, "/purged", "tea")).await;
        assert_eq!((retry.text(), retry.is_replay(), runs.started()), ("tea of attempt 1", true, 1));
    }
}

/// The line to the store is cut before the record, and the client gets its response while the lease lasts, which then ends.
async fn sent_before_the_lease_was_over(runs: &Runs, scope: &str) -> ([FaultyStore; 2], [Server; 2]) {
    let (stores, [cut_off, other]) = two_lines(runs).await;
    let first = begin(&cut_off, &format!("/{scope}"), "tea");
    runs.until_started(1).await;
    cut(&stores[0]);
    runs.let_finish(1);
    assert_eq!(end(first).await.text(), "tea of attempt 1");
    until_the_lease_is_over(&stores[0], scope).await;
    (stores, [cut_off, other])
}

#[tokio::test]
async fn a_sent_response_gets_a_second_one_after_a_longer_outage() {
    let runs = Runs::held();
    let (stores, [cut_off, other]) = sent_before_the_lease_was_over(&runs, "sent").await;
    runs.let_finish(1);
    let second = end(begin(&other, "/sent", "tea")).await;
    assert_eq!((second.text(), second.is_replay()), ("tea of attempt 2", false));
    restore(&stores[0]);
    for process in [&cut_off, &other] {
        assert_eq!(end(begin(process, "/sent", "tea")).await.text(), "tea of attempt 2");
    }
    assert_eq!(runs.started(), 2);
}

#[tokio::test]
async fn a_sent_response_is_unknown_until_recorded_under_reject() {
    let runs = Runs::held();
    let (stores, [cut_off, other]) = sent_before_the_lease_was_over(&runs, "sent-once").await;
    assert_eq!(rejection(&other, "/sent-once", "tea", &runs).await, "outcome_unknown");
    restore(&stores[0]);
    let is_recorded = async || matches!(state(&stores[0], "sent-once").await, Some(EntryState::Completed { .. }));
    eventually(is_recorded, |recorded| *recorded).await;
    for process in [&cut_off, &other] {
        assert_eq!(end(begin(process, "/sent-once", "tea")).await.text(), "tea of attempt 1");
    }
    assert_eq!(runs.started(), 1);
}
