//! Operations of many callers go out in one statement, and each gets its own answer.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use futures_util::future::join_all;
use idempotent_runtime::store::{
    AfterCrash, Claim, ClaimRequest, Held, PostgresStore, Store, StoreAdmin, StoreError, Token,
};
use idempotent_runtime::{RecordKey, Registry, idempotent};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::stores::{claim_request, migrated, record};
use idempotent_tests::{Mode, PATIENCE, Runs, Server, eventually};
use sqlx::{AssertSqlSafe, PgPool};
use tokio::task::JoinHandle;

/// More than one statement takes.
const CALLERS: usize = 64;

fn key(name: &str, number: usize) -> RecordKey {
    RecordKey::new("batches", None, &format!("{name}{number}"))
}

fn requests(after_crash: AfterCrash) -> Vec<ClaimRequest> {
    (0..CALLERS).map(|_| claim_request().with_after_crash(after_crash)).collect()
}

/// Each in a task of its own, as requests are.
fn claim_all(
    store: &PostgresStore,
    name: &str,
    requests: &[ClaimRequest],
) -> Vec<JoinHandle<Result<Claim, StoreError>>> {
    let claim = |(number, request): (usize, &ClaimRequest)| {
        let (store, key, request) = (store.clone(), key(name, number), *request);
        tokio::spawn(async move { store.claim(&key, request).await })
    };
    requests.iter().enumerate().map(claim).collect()
}

async fn answers<T>(calls: Vec<JoinHandle<T>>) -> Vec<T> {
    let answered = tokio::time::timeout(PATIENCE, join_all(calls)).await.expect("every caller is answered");
    answered.into_iter().map(|answer| answer.expect("the task runs")).collect()
}

fn is_first_attempt(claim: &Result<Claim, StoreError>) -> bool {
    matches!(claim, Ok(Claim::Acquired { attempt: 1 }))
}

async fn execute(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(pool).await.expect("the statement runs");
}

async fn count(pool: &PgPool, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(pool).await.expect("the server answers")
}

#[tokio::test]
async fn many_callers_share_statements_and_no_answers() {
    let server = PostgresServer::start(&["shared_preload_libraries=pg_stat_statements"]).await;
    let database = server.database().await;
    let pool = database.pool(4).await;
    execute(&pool, "CREATE EXTENSION pg_stat_statements").await;
    migrated(&pool).await;
    let statements = "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements WHERE dbid = \
         (SELECT oid FROM pg_database WHERE datname = current_database()) AND query NOT LIKE '%pg_stat_statements%'";
    for is_pooled in [false, true] {
        let builder = PostgresStore::builder(database.pool(4).await);
        let store = if is_pooled { builder.pooled() } else { builder }.build();
        let name = format!("pooled-{is_pooled}-");
        // The first call of a process looks for a pooler.
        assert_eq!(store.release(&key(&name, 0), Token::unique()).await.expect("it answers"), Held::No);
        let requests = requests(AfterCrash::Rerun);
        let before = count(&pool, statements).await;
        assert!(answers(claim_all(&store, &name, &requests)).await.iter().all(is_first_attempt));
        let complete = |n: usize| {
            let (store, key, request) = (store.clone(), key(&name, n), requests[n]);
            tokio::spawn(
                async move { store.complete(&key, request.token, record(format!("paid {n}")), request.ttl).await },
            )
        };
        let completed = answers((0..CALLERS).map(complete).collect()).await;
        assert!(completed.iter().all(|held| matches!(held, Ok(Held::Yes))), "{completed:?}");
        let replays = answers(claim_all(&store, &name, &self::requests(AfterCrash::Rerun))).await;
        for (number, replay) in replays.into_iter().enumerate() {
            let Ok(Claim::Completed(found)) = replay else { panic!("{replay:?}") };
            assert_eq!(found.body, record(format!("paid {number}")).body);
        }
        let took = count(&pool, statements).await - before;
        assert!(took < 64, "{took} statements for 192 operations");
    }
}

#[tokio::test]
async fn lone_callers_send_statements_of_their_own() {
    let server = PostgresServer::start(&["shared_preload_libraries=pg_stat_statements"]).await;
    let pool = server.database().await.pool(4).await;
    execute(&pool, "CREATE EXTENSION pg_stat_statements").await;
    let store = migrated(&pool).await;
    for number in 0..3 {
        let (key, request) = (key("lone", number), claim_request());
        assert!(is_first_attempt(&store.claim(&key, request).await));
        assert_eq!(
            store.complete(&key, request.token, record("paid"), request.ttl).await.expect("it records"),
            Held::Yes
        );
    }
    let of = async |what: &str| {
        let calls = "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements WHERE query LIKE ";
        count(&pool, &format!("{calls} '%{what}%'")).await
    };
    assert_eq!((of("turn AS MATERIALIZED").await, of("unnest").await), (3, 0));
}

/// A trigger rejects one row of many, and a constraint one record.
#[tokio::test]
async fn rejected_entry_fails_no_other_of_its_batch() {
    let pool = PostgresServer::shared().await.database().await.pool(4).await;
    let store = migrated(&pool).await;
    let reject = "CREATE FUNCTION reject() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN RAISE 'of the test' USING ERRCODE = '53100'; END $$;
         CREATE TRIGGER reject_claim BEFORE INSERT ON idempotency.records FOR EACH ROW
         WHEN (NEW.key LIKE '%poison7') EXECUTE FUNCTION reject();
         ALTER TABLE idempotency.records ADD CHECK (convert_from(body, 'UTF8') <> 'paid 9');";
    execute(&pool, reject).await;
    let requests = requests(AfterCrash::Reject);
    for (number, claim) in answers(claim_all(&store, "poison", &requests)).await.iter().enumerate() {
        match claim {
            Err(StoreError::Full) => assert_eq!(number, 7),
            claim => assert!(number != 7 && is_first_attempt(claim), "{number}: {claim:?}"),
        }
    }
    let complete = |n: usize| {
        let (store, key, request) = (store.clone(), key("poison", n), requests[n]);
        tokio::spawn(async move { store.complete(&key, request.token, record(format!("paid {n}")), request.ttl).await })
    };
    for (number, held) in answers((0..CALLERS).map(complete).collect()).await.iter().enumerate() {
        match held {
            Ok(Held::No) => assert_eq!(number, 7),
            Err(StoreError::RecordRejected(_)) => assert_eq!(number, 9),
            held => assert!(![7, 9].contains(&number) && matches!(held, Ok(Held::Yes)), "{number}: {held:?}"),
        }
    }
    assert_eq!(store.release(&key("poison", 9), requests[9].token).await.expect("it releases"), Held::Yes);
}

/// A pooler answers so when it has lost the server's connection: the batch may have been run, and no claim of it is sent again.
#[tokio::test]
async fn lost_connection_behind_a_pooler_sends_no_claim_again() {
    let pool = PostgresServer::shared().await.database().await.pool(4).await;
    let store = migrated(&pool).await;
    let lose = "CREATE SEQUENCE sent;
         CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN PERFORM nextval('sent'); RAISE 'of the test' USING ERRCODE = '08006'; END $$;
         CREATE TRIGGER lose_claim BEFORE INSERT ON idempotency.records FOR EACH ROW
         WHEN (NEW.key LIKE '%behind7') EXECUTE FUNCTION lose();";
    execute(&pool, lose).await;
    let claims = answers(claim_all(&store, "behind", &requests(AfterCrash::Reject))).await;
    let unavailable = claims.iter().filter(|claim| matches!(claim, Err(StoreError::Unavailable(_)))).count();
    let acquired = claims.iter().filter(|claim| is_first_attempt(claim)).count();
    assert!(claims[7].is_err() && unavailable > 1 && unavailable + acquired == CALLERS, "{claims:?}");
    assert_eq!(count(&pool, "SELECT last_value FROM sent").await, 1);
}

/// One claim of each key, and the others of one burst learn that it is in flight.
#[tokio::test]
async fn claims_of_one_key_in_a_burst_get_it_once() {
    let store = migrated(&PostgresServer::shared().await.database().await.pool(4).await).await;
    let keys: Vec<_> = (0..100).map(|n| key("burst", n % 10)).collect();
    let claims = join_all(keys.iter().map(|key| store.claim(key, claim_request()))).await;
    for name in 0..10 {
        let of_key = || (0..100).filter(|n| n % 10 == name).map(|n| &claims[n]);
        let acquired = of_key().filter(|claim| is_first_attempt(claim)).count();
        let in_flight = of_key().filter(|claim| matches!(claim, Ok(Claim::InFlight { .. }))).count();
        assert_eq!((acquired, in_flight), (1, 9));
    }
}

/// Another transaction has locked one row. The others of its batch do not wait for its end.
#[tokio::test]
async fn locked_row_holds_up_no_other_of_its_batch() {
    let pool = PostgresServer::shared().await.database().await.pool(4).await;
    let store = migrated(&pool).await;
    let requests = requests(AfterCrash::Rerun);
    assert!(answers(claim_all(&store, "locked", &requests)).await.iter().all(is_first_attempt));
    let mut holder = pool.begin().await.expect("a transaction");
    let lock = "SELECT FROM idempotency.records WHERE key LIKE '%locked3' FOR UPDATE";
    sqlx::query(lock).execute(&mut *holder).await.expect("the row is there");
    let complete = |n: usize| {
        let (store, key, request) = (store.clone(), key("locked", n), requests[n]);
        tokio::spawn(async move { store.complete(&key, request.token, record("paid"), request.ttl).await })
    };
    let mut completions: Vec<_> = (0..CALLERS).map(complete).collect();
    let locked = completions.remove(3);
    let others = answers(completions).await;
    assert!(others.iter().all(|held| matches!(held, Ok(Held::Yes))), "{others:?}");
    assert!(!locked.is_finished());
    holder.rollback().await.expect("it ends");
    assert_eq!(locked.await.expect("the task runs").expect("it records"), Held::Yes);
}

/// Two stores, as two processes have them, claim the same keys at once, in reverse orders.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_in_reverse_orders_do_not_deadlock() {
    let database = PostgresServer::shared().await.database().await;
    let pool = database.pool(1).await;
    migrated(&pool).await;
    let stores = [PostgresStore::new(database.pool(4).await), PostgresStore::new(database.pool(4).await)];
    for round in 0..20 {
        let claim = |store: &PostgresStore, numbers: Vec<usize>| {
            let claim = |n: usize| {
                let (store, key) = (store.clone(), key(&format!("reverse{round}-"), n));
                tokio::spawn(async move { store.claim(&key, claim_request()).await.expect("it claims") })
            };
            answers(numbers.into_iter().map(claim).collect())
        };
        let numbers: Vec<usize> = (0..CALLERS).collect();
        let reversed = numbers.iter().rev().copied().collect();
        let (one, other) = tokio::join!(claim(&stores[0], numbers), claim(&stores[1], reversed));
        for (one, other) in one.iter().zip(other.iter().rev()) {
            let acquired = [one, other].iter().filter(|claim| matches!(claim, Claim::Acquired { attempt: 1 })).count();
            assert_eq!(acquired, 1, "{one:?}, {other:?}");
        }
    }
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(count(&pool, deadlocks).await, 0);
}

/// A claim waits in its statement as long as another session has the lock 44.
const GATE: &str = "CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN WHILE NOT pg_try_advisory_xact_lock_shared(44) LOOP PERFORM pg_sleep(0.01); END LOOP; RETURN NEW; END';
    CREATE TRIGGER wait_at_gate BEFORE INSERT ON idempotency.records FOR EACH ROW
    WHEN (NEW.state = 'claimed') EXECUTE FUNCTION wait_at_gate();";

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
        let mut holder = pool.acquire().await.expect("a connection");
        sqlx::query("SELECT pg_advisory_lock(44)").execute(&mut *holder).await.expect("the lock is free");
        let claims = claim_all(&store, name, &requests);
        // Each claim has taken the lock of its key.
        let sent = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock' \
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        eventually(async || count(&pool, sent).await, |&sent| sent == 64).await;
        proxy.set(Mode::LosesAnswers);
        sqlx::query("SELECT pg_advisory_unlock(44)").execute(&mut *holder).await.expect("the lock is held");
        drop(holder);
        let arrived = "SELECT count(*) FROM idempotency.records WHERE state = 'claimed' AND attempt = 1 AND key LIKE ";
        let arrived = format!("{arrived} '%{name}%'");
        eventually(async || count(&pool, &arrived).await, |&arrived| arrived == 64).await;
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
