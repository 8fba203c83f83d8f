//! Batches whose answer, server or callers are lost.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::future::join_all;
use idempotent_runtime::store::{AfterCrash, Claim, Held, PostgresStore, Store, StoreAdmin, StoreError};
use idempotent_runtime::{Registry, idempotent};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::stores::{claim_request, migrated};
use idempotent_tests::{Mode, Runs, Server, eventually};
use sqlx::pool::PoolConnection;
use sqlx::{PgPool, Postgres};

use super::{CALLERS, answers, claim_all, count, execute, is_first_attempt, key, requests};

/// A claim waits in its statement as long as another session has the lock 44.
pub(super) const GATE: &str = "CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN WHILE NOT pg_try_advisory_xact_lock_shared(44) LOOP PERFORM pg_sleep(0.01); END LOOP; RETURN NEW; END';
    CREATE TRIGGER wait_at_gate BEFORE INSERT ON idempotency.records FOR EACH ROW
    WHEN (NEW.state = 'claimed') EXECUTE FUNCTION wait_at_gate();";

/// How many claims have taken the lock of their key, so that they are in a statement.
pub(super) const SENT: &str = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock' \
     AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// How many statements have claims in them.
const STATEMENTS: &str = "SELECT count(DISTINCT pid) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock' \
     AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// The session that has the lock 44.
pub(super) struct Gate(PoolConnection<Postgres>);

impl Gate {
    pub(super) async fn closed(pool: &PgPool) -> Self {
        let mut holder = pool.acquire().await.expect("a connection");
        sqlx::query("SELECT pg_advisory_lock(44)").execute(&mut *holder).await.expect("the lock is free");
        Self(holder)
    }

    pub(super) async fn open(mut self) {
        sqlx::query("SELECT pg_advisory_unlock(44)").execute(&mut *self.0).await.expect("the lock is held");
    }
}

/// The answers are lost, and the server has all claims. Those that may run again after a crash are sent again, and get theirs.
#[tokio::test]
async fn lost_answer_of_a_batch_may_have_taken_effect() {
    let database = PostgresServer::shared().await.database().await;
    let (pool, proxy) = (database.pool(2).await, database.proxy());
    migrated(&pool).await;
    execute(&pool, GATE).await;
    let store = PostgresStore::new(database.pool_over(&proxy).await);
    for (after_crash, name) in [(AfterCrash::Reject, "rejected"), (AfterCrash::Rerun, "rerun")] {
        let requests = requests(after_crash);
        let gate = Gate::closed(&pool).await;
        let claims = claim_all(&store, name, &requests);
        eventually(async || count(&pool, SENT).await, |&sent| sent == 64).await;
        proxy.set(Mode::LosesAnswers);
        gate.open().await;
        let arrived = "SELECT count(*) FROM idempotency.records WHERE state = 'claimed' AND attempt = 1 AND key LIKE ";
        let arrived = format!("{arrived} '%{name}%'");
        eventually(async || count(&pool, &arrived).await, |&arrived| arrived == 64).await;
        // The proxy may not have read the last answers yet. They are lost with their connections.
        proxy.break_open();
        proxy.set(Mode::Passes);
        for claim in answers(claims).await {
            match after_crash {
                AfterCrash::Reject => assert!(matches!(claim, Err(StoreError::Unavailable(_))), "{claim:?}"),
                _ => assert!(is_first_attempt(&claim), "{claim:?}"),
            }
        }
        // The same claims, and others.
        let again = answers(claim_all(&store, name, &requests)).await;
        assert!(again.iter().all(is_first_attempt), "{again:?}");
        let others = answers(claim_all(&store, name, &self::requests(after_crash))).await;
        assert!(others.iter().all(|claim| matches!(claim, Ok(Claim::InFlight { .. }))), "{others:?}");
    }
}

/// The server is killed in the middle of a batch, which then has no effect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_killed_in_a_batch_answers_all_and_claims_once() {
    let server = PostgresServer::start(&[]).await;
    let database = server.database().await;
    let pool = database.pool(2).await;
    let store = migrated(&database.pool(2).await).await;
    let started: String =
        sqlx::query_scalar("SELECT pg_postmaster_start_time()::text").fetch_one(&pool).await.expect("it answers");
    let stand_still = format!(
        "CREATE FUNCTION stand_still() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_sleep(60); RETURN NEW; END';
         CREATE TRIGGER stand_still BEFORE INSERT ON idempotency.records FOR EACH ROW
         WHEN (NEW.key LIKE '%killed1' AND pg_postmaster_start_time() = '{started}') EXECUTE FUNCTION stand_still();"
    );
    execute(&pool, &stand_still).await;
    let claims = claim_all(&store, "killed", &requests(AfterCrash::Reject));
    let asleep = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";
    eventually(async || count(&pool, asleep).await, |&asleep| asleep == 1).await;
    server.restart().await;
    let first = answers(claims).await;
    assert!(first[1].is_err(), "{first:?}");
    let mut acquired: Vec<usize> = first.iter().map(|claim| usize::from(is_first_attempt(claim))).collect();
    // Other requests for the same keys, until the store has left its broken connections.
    let retry = async || {
        let claims = answers(claim_all(&store, "killed", &requests(AfterCrash::Reject))).await;
        for (acquired, claim) in acquired.iter_mut().zip(&claims) {
            *acquired += usize::from(is_first_attempt(claim));
        }
        claims
    };
    eventually(retry, |claims| claims.iter().all(Result::is_ok)).await;
    assert!(acquired[1] == 1 && acquired.iter().all(|&acquired| acquired <= 1), "{acquired:?}");
}

#[idempotent(scope = "queued", on_store_error = "run")]
async fn runs_unguarded(State(runs): State<Runs>) -> String {
    format!("run {}", runs.run().await)
}

/// The one connection of the store stands still. What waits for it is withdrawn: nothing arrives later, nothing has to be given
/// back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_that_time_out_in_the_queue_are_never_sent() {
    let database = PostgresServer::shared().await.database().await;
    let (pool, proxy) = (database.pool(1).await, database.proxy());
    migrated(&pool).await;
    let store = PostgresStore::new(database.untested_pool_of(1, &proxy).await);
    let registry = Registry::builder(store).store_timeout(Duration::from_millis(500)).build();
    let runs = Runs::free();
    let app = Router::new().route("/", post(runs_unguarded)).with_state(runs.clone()).layer(registry.layer());
    let server = Server::start(app).await;
    assert_eq!(server.post_with_key("/", "first").await.text(), "run 1");
    proxy.set(Mode::Stops);
    let keys: Vec<_> = (0..CALLERS).map(|n| format!("k{n}")).collect();
    let answered = join_all(keys.iter().map(|key| server.post_with_key("/", key))).await;
    let unguarded = answered.iter().filter(|answer| answer.status == StatusCode::OK).count();
    assert_eq!(runs.started(), 1 + unguarded);
    proxy.set(Mode::Passes);
    // One was sent. Its claim is given back, or is kept from arriving.
    let left = "SELECT count(*) FROM idempotency.records WHERE state = 'claimed'";
    eventually(async || count(&pool, left).await, |&left| left == 0).await;
    let again =
        eventually(async || server.post_with_key("/", "later").await, |again| again.status == StatusCode::OK).await;
    assert!(!again.is_replay());
    let marks = "SELECT count(*) FROM idempotency.records WHERE state = 'given back'";
    assert!(count(&pool, marks).await <= 1);
}

/// Callers that are gone before their batch goes out have no claim; those of the same burst that wait get theirs. The release of a
/// claim whose caller is gone keeps it from staying.
#[tokio::test]
async fn cancelled_callers_leave_no_claim_after_their_release() {
    let store = migrated(&PostgresServer::shared().await.database().await.pool(4).await).await;
    let requests = requests(AfterCrash::Reject);
    let claiming = claim_all(&store, "cancelled", &requests);
    tokio::task::yield_now().await;
    for (number, claim) in claiming.into_iter().enumerate() {
        if number % 2 == 0 {
            claim.abort();
            let _ = claim.await;
            let _ = store.release(&key("cancelled", number), requests[number].token).await.expect("it releases");
        } else {
            assert!(is_first_attempt(&claim.await.expect("the task runs")));
        }
    }
    let left = async || store.list(None, 100).await.expect("it lists").entries.len();
    assert_eq!(eventually(left, |&left| left == CALLERS / 2).await, CALLERS / 2);
    assert!(store.claim(&key("cancelled", 0), claim_request()).await.is_ok_and(|claim| is_first_attempt(&Ok(claim))));
}

/// Callers that are gone while their batch is under way get no claim that stays, and the others get theirs.
#[tokio::test]
async fn callers_gone_during_their_batch_leave_no_claim() {
    let database = PostgresServer::shared().await.database().await;
    let pool = database.pool(4).await;
    migrated(&pool).await;
    execute(&pool, GATE).await;
    let store = PostgresStore::new(database.pool(4).await);
    let (gate, requests) = (Gate::closed(&pool).await, requests(AfterCrash::Reject));
    let claiming = claim_all(&store, "gone", &requests);
    eventually(async || count(&pool, SENT).await, |&sent| sent == 64).await;
    let (gone, waiting): (Vec<_>, Vec<_>) = claiming.into_iter().enumerate().partition(|(number, _)| number % 2 == 0);
    for (_, claim) in &gone {
        claim.abort();
    }
    // All connections of the store wait at the gate.
    let another = PostgresStore::new(database.pool(2).await);
    for (number, claim) in gone {
        assert!(claim.await.is_err_and(|error| error.is_cancelled()));
        assert_eq!(another.release(&key("gone", number), requests[number].token).await.expect("it releases"), Held::No);
    }
    gate.open().await;
    let claims = answers(waiting.into_iter().map(|(_, claim)| claim).collect()).await;
    assert!(claims.iter().all(is_first_attempt), "{claims:?}");
    assert_eq!(store.list(None, 100).await.expect("it lists").entries.len(), CALLERS / 2);
}

#[idempotent(scope = "batch-disconnects", after_crash = "reject")]
async fn never_again(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("run {}", runs.run().await))
}

#[idempotent(scope = "batch-answers", after_crash = "rerun")]
async fn again(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("run {}", runs.run().await))
}

/// The answers to statements with the claims of many requests are lost, although the claims have arrived. No handler runs twice: a
/// request either gets its own claim, because the store sends it again, or it is rejected, and its retry is executed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_answers_to_claims_of_requests_run_nothing_twice() {
    let database = PostgresServer::shared().await.database().await;
    let (pool, proxy) = (database.pool(4).await, database.proxy());
    migrated(&pool).await;
    execute(&pool, GATE).await;
    let store = PostgresStore::new(database.pool_over(&proxy).await);
    // Longer than the gate is closed on a busy machine.
    let registry = Registry::builder(store).store_timeout(Duration::from_mins(1)).build();
    for (path, name) in [("/never-again", "kept"), ("/again", "rerun")] {
        let runs = Runs::free();
        let app = Router::new().route("/never-again", post(never_again)).route("/again", post(again));
        let server = Server::start(app.with_state(runs.clone()).layer(registry.layer())).await;
        let keys: Vec<_> = (0..CALLERS).map(|n| format!("{name}{n}")).collect();
        let gate = Gate::closed(&pool).await;
        let posting = join_all(keys.iter().map(|key| server.post_with_key(path, key)));
        let losing = async {
            // All connections of the store. What is not in their statements waits for one.
            eventually(async || count(&pool, STATEMENTS).await, |&statements| statements == 4).await;
            proxy.set(Mode::LosesAnswers);
            gate.open().await;
            eventually(async || count(&pool, STATEMENTS).await, |&statements| statements == 0).await;
            let lost =
                count(&pool, &format!("SELECT count(*) FROM idempotency.records WHERE key LIKE '%{name}%'")).await;
            proxy.break_open();
            proxy.set(Mode::Passes);
            lost
        };
        let (answers, lost) = tokio::join!(posting, losing);
        let rejected = answers.iter().filter(|answer| answer.status != StatusCode::CREATED);
        let rejected = rejected.inspect(|answer| assert_eq!(answer.rejection(), "store_unavailable")).count();
        assert_eq!(i64::try_from(rejected), Ok(if path == "/again" { 0 } else { lost }), "{lost} of 64 claims");
        for key in &keys {
            let retry = async || server.post_with_key(path, key).await;
            eventually(retry, |answer| answer.status == StatusCode::CREATED).await;
            assert!(server.post_with_key(path, key).await.is_replay());
        }
        assert_eq!(runs.started(), CALLERS, "{path}");
    }
}

/// Clients leave while the claims of their requests are under way in batches. Each retry is executed or replayed, and each key runs
/// once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_gone_during_their_batch_can_retry() {
    let database = PostgresServer::shared().await.database().await;
    let pool = database.pool(4).await;
    migrated(&pool).await;
    execute(&pool, GATE).await;
    let registry = Registry::builder(PostgresStore::new(database.pool(4).await)).build();
    let runs = Runs::free();
    let app = Router::new().route("/", post(never_again)).with_state(runs.clone()).layer(registry.layer());
    let server = Server::start(app).await;
    let gate = Gate::closed(&pool).await;
    let mut clients = Vec::new();
    for number in 0..CALLERS {
        let head = format!("POST / HTTP/1.1\r\nhost: {}\r\nidempotency-key: k{number}\r\n", server.address());
        let request = format!("{head}content-length: 0\r\n\r\n");
        clients.push(server.connect_and_send(request.as_bytes()).await);
    }
    // The store has four connections, so at least one statement is a batch. Its size depends on the pace of the clients.
    eventually(async || count(&pool, SENT).await, |&sent| sent > 4).await;
    drop(clients);
    gate.open().await;
    for number in 0..CALLERS {
        let retry = async || server.post_with_key("/", &format!("k{number}")).await;
        eventually(retry, |answer| answer.status == StatusCode::CREATED).await;
    }
    assert_eq!(runs.started(), CALLERS);
}
