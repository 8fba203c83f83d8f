//! What the store in PostgreSQL promises beyond the contract of every store.

use std::time::Duration;

use futures_util::future::join_all;
use idempotent_runtime::RecordKey;
use idempotent_runtime::store::{
    AfterCrash, Claim, Held, PostgresMigrateError, PostgresStore, Resolution, Store, StoreAdmin, StoreError,
};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::stores::{claim_request, migrated, record};
use idempotent_tests::{PATIENCE, Runs, eventually};
use sqlx::{AssertSqlSafe, PgPool, Row};

use crate::charges::{assert_all_waiters_get_one_response, send, serve};

async fn pool() -> PgPool {
    PostgresServer::shared().await.database().await.pool(4).await
}

async fn execute(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(pool).await.expect("the statement runs");
}

#[tokio::test]
async fn ten_processes_that_start_at_once_migrate_once() {
    let database = PostgresServer::shared().await.database().await;
    // Whatever isolation level the application has chosen for its pool.
    let levels = ["read committed", "repeatable read", "serializable"].into_iter().cycle().take(10);
    let pools = join_all(levels.map(|level| database.pool_of_isolation(level))).await;
    let migrations = pools.iter().map(|pool| async { PostgresStore::new(pool.clone()).migrate().await });
    let migrated_all = join_all(migrations).await;
    assert!(migrated_all.iter().all(Result::is_ok), "{migrated_all:?}");
    let pool = database.pool(1).await;
    migrated(&pool).await;
    let versions: Vec<i32> =
        sqlx::query_scalar("SELECT version FROM idempotency.schema_version").fetch_all(&pool).await.expect("the table");
    assert_eq!(versions, [4]);
}

#[tokio::test]
async fn a_store_that_is_not_migrated_says_so_and_runs_nothing() {
    let runs = Runs::free();
    let store = PostgresStore::new(pool().await);
    let error =
        store.claim(&RecordKey::new("charges", None, "k"), claim_request()).await.expect_err("there are no tables");
    let source = std::error::Error::source(&error).expect("a reason").to_string();
    assert!(source.contains("PostgresStore::migrate"), "{source}");
    assert_eq!(send(&serve(store, &runs).await, "k").await.rejection(), "store_unavailable");
    assert_eq!(runs.started(), 0);
}

#[tokio::test]
async fn a_newer_schema_and_one_without_a_version_are_left_alone() {
    let pool = pool().await;
    let store = migrated(&pool).await;
    execute(&pool, "UPDATE idempotency.schema_version SET version = 7").await;
    let error = store.migrate().await.expect_err("it is newer");
    assert!(matches!(error, PostgresMigrateError::NewerSchema { found: 7, supported: 4, .. }), "{error}");
    assert!(error.to_string().contains("update `idempotent-runtime`"), "{error}");
    execute(&pool, "DELETE FROM idempotency.schema_version").await;
    assert!(matches!(store.migrate().await, Err(PostgresMigrateError::NoVersion { .. })));
}

#[tokio::test]
async fn schemas_of_any_name_share_nothing() {
    let pool = pool().await;
    let key = RecordKey::new("charges", None, "k");
    for name in ["payments", "Odd \"name\"; DROP TABLE x", "a\nCREATE TABLE public.injected (); --"] {
        let store = PostgresStore::builder(pool.clone()).schema(name).build();
        store.migrate().await.expect("the tables are made");
        assert_eq!(store.claim(&key, claim_request()).await.expect("the store claims"), Claim::Acquired { attempt: 1 });
    }
    let injected = sqlx::query_scalar::<_, bool>("SELECT to_regclass('public.injected') IS NOT NULL");
    assert!(!injected.fetch_one(&pool).await.expect("the server answers"));
}

#[tokio::test]
async fn completion_repeated_during_its_commit_loses_no_claim() {
    let pool = pool().await;
    let (store, key, claim) = (migrated(&pool).await, RecordKey::new("charges", None, "k"), claim_request());
    let _ = store.claim(&key, claim).await.expect("the store claims");
    // The first one was cut off, and its statement is not committed yet.
    let mut first = pool.begin().await.expect("a transaction");
    let completed = "UPDATE idempotency.records SET state = 'completed', lease_until = NULL, recorded_at = now(), \
         status = 201, headers = '[]', body = 'paid'";
    sqlx::query(completed).execute(&mut *first).await.expect("the row is there");
    let second = tokio::spawn({
        let (store, key) = (store.clone(), key.clone());
        async move { store.complete(&key, claim.token, record("paid"), claim.ttl).await }
    });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let waiting = async || sqlx::query_scalar::<_, i64>(waits).fetch_one(&pool).await.expect("the server answers");
    eventually(waiting, |&waiting| waiting == 1).await;
    first.commit().await.expect("it commits");
    assert_eq!(second.await.expect("the task runs").expect("the store answers"), Held::Yes);
}

#[tokio::test]
async fn the_sql_can_be_run_by_migrations_of_ones_own() {
    let pool = pool().await;
    let store = PostgresStore::new(pool.clone());
    execute(&pool, &store.sql()).await;
    let claimed = store.claim(&RecordKey::new("charges", None, "k"), claim_request()).await;
    assert_eq!(claimed.expect("the store claims"), Claim::Acquired { attempt: 1 });
    store.migrate().await.expect("nothing is left to do");
}

#[tokio::test]
async fn rows_can_be_read_by_a_person() {
    let pool = pool().await;
    let server = serve(migrated(&pool).await, &Runs::free()).await;
    send(&server, "8e03978e").await;
    let row = sqlx::query(
        "SELECT key, state, status, headers #>> '{1,1}' AS charge, convert_from(body, 'UTF8') AS body, \
         recorded_at BETWEEN now() - interval '1 minute' AND now() AS recorded_now, \
         expires_at > now() + interval '23 hours' AS kept FROM idempotency.records",
    );
    let row = row.fetch_one(&pool).await.expect("one row");
    assert_eq!(row.get::<&str, _>("key"), RecordKey::new("charges", None, "8e03978e").as_str());
    assert_eq!((row.get::<&str, _>("state"), row.get::<i32, _>("status")), ("completed", 200));
    assert_eq!((row.get::<&str, _>("charge"), row.get::<&str, _>("body")), ("1", "charge 1"));
    assert!(row.get::<bool, _>("recorded_now") && row.get::<bool, _>("kept"));
}

#[tokio::test]
async fn a_replay_is_one_statement_and_a_first_execution_two() {
    let server = PostgresServer::start(&["shared_preload_libraries=pg_stat_statements"]).await;
    let pool = server.database().await.pool(4).await;
    execute(&pool, "CREATE EXTENSION pg_stat_statements").await;
    let server = serve(migrated(&pool).await, &Runs::free()).await;
    let statements = async || {
        let calls = "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements WHERE dbid = \
             (SELECT oid FROM pg_database WHERE datname = current_database()) AND query NOT LIKE '%pg_stat_statements%'";
        sqlx::query_scalar::<_, i64>(calls).fetch_one(&pool).await.expect("the extension answers")
    };
    // The first call of a process looks for a pooler.
    assert!(!send(&server, "first").await.is_replay());
    let before = statements().await;
    assert!(!send(&server, "k").await.is_replay());
    let after_first = statements().await;
    assert!(send(&server, "k").await.is_replay());
    assert_eq!((after_first - before, statements().await - after_first), (2, 1));
}

#[tokio::test]
async fn a_damaged_row_is_rejected_and_never_run_again() {
    let pool = pool().await;
    let runs = Runs::free();
    let server = serve(migrated(&pool).await, &runs).await;
    let damages = [
        "state = 'odd'",
        "status = 99999",
        "status = NULL",
        "headers = '{\"x\": 1}'",
        "headers = NULL",
        "fingerprint = 'xyz'",
        "recorded_at = NULL",
        "state = 'claimed', token = 'xyz'",
        "state = 'claimed', lease_until = NULL",
    ];
    for (number, damage) in damages.iter().enumerate() {
        let key = format!("k{number}");
        send(&server, &key).await;
        execute(&pool, &format!("UPDATE idempotency.records SET {damage} WHERE key LIKE '%{key}'")).await;
        assert_eq!(send(&server, &key).await.rejection(), "store_unavailable", "{damage}");
    }
    assert_eq!(runs.started(), damages.len());
    let store = PostgresStore::new(pool);
    let error = store.get(&RecordKey::new("charges", None, "k0")).await.expect_err("it is damaged");
    assert!(matches!(&error, StoreError::Damaged(reason) if reason.contains("row 1 ")), "{error}");
}

#[tokio::test]
async fn waiter_elsewhere_is_notified_and_holds_no_connection() {
    let database = PostgresServer::shared().await.database().await;
    let (here, there) = (migrated(&database.pool(1).await).await, PostgresStore::new(database.pool(1).await));
    // The first time, the waiter may be woken because the listener has just come; later on only a notification wakes it.
    for (number, ends) in ["releases", "completes", "releases"].into_iter().enumerate() {
        let (key, claim) = (RecordKey::new("charges", None, &number.to_string()), claim_request());
        let _ = here.claim(&key, claim).await.expect("the store claims");
        // It never looks by itself: only a notification wakes it.
        let waiters = join_all((0..20).map(|_| there.changed(&key)));
        let end = Box::pin(async {
            // With the waiters' wish in the row, and the only connection free again.
            let awaited = "SELECT awaited FROM idempotency.records WHERE key = $1";
            let awaited = async || sqlx::query_scalar(awaited).bind(key.as_str()).fetch_one(here.pool()).await;
            eventually(async || awaited().await.expect("the row is there"), |&awaited: &bool| awaited).await;
            eventually(async || there.pool().try_acquire().is_some(), |&is_free| is_free).await;
            let held = match ends {
                "completes" => here.complete(&key, claim.token, record("paid"), claim.ttl).await,
                _ => here.release(&key, claim.token).await,
            };
            assert_eq!(held.expect("the store answers"), Held::Yes);
        });
        let waited = tokio::time::timeout(PATIENCE, async { tokio::join!(waiters, end) }).await;
        assert!(waited.is_ok(), "the waiters are woken when the holder {ends}");
    }
}

#[tokio::test]
async fn waiters_of_two_processes_get_one_response() {
    let database = PostgresServer::shared().await.database().await;
    let runs = Runs::held();
    let first = serve(migrated(&database.pool(2).await).await, &runs).await;
    let second = serve(PostgresStore::new(database.pool(2).await), &runs).await;
    assert_all_waiters_get_one_response(&[first, second], &runs).await;
}

#[tokio::test]
async fn expired_rows_go_in_batches_without_anyone_asking() {
    let pool = pool().await;
    migrated(&pool).await;
    let store = PostgresStore::builder(pool.clone()).delete_expired_every(Duration::from_millis(20)).build();
    let many = "INSERT INTO idempotency.records (digest, key, state, fingerprint, token, attempt, claim_ttl, expires_at) \
         SELECT int8send(n), 'k' || n, 'claimed', '', '', 1, 1, now() - interval '1 second' FROM generate_series(1, 1200) n";
    let left = async || {
        let count = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM idempotency.records").fetch_one(&pool).await;
        count.expect("the table is read")
    };
    execute(&pool, many).await;
    let idle = PostgresStore::builder(pool.clone()).build();
    assert_eq!(idle.delete_expired().await.expect("it deletes expired rows"), 500, "a batch is bounded");
    assert_eq!(left().await, 700);
    // The first claim starts the deletion.
    let _ = store.claim(&RecordKey::new("charges", None, "k"), claim_request()).await.expect("the store claims");
    eventually(left, |&left| left == 1).await;
}

#[tokio::test]
async fn one_of_many_claims_under_every_isolation_level() {
    let database = PostgresServer::shared().await.database().await;
    migrated(&database.pool(1).await).await;
    for level in ["read committed", "repeatable read", "serializable"] {
        let store = PostgresStore::new(database.pool_of_isolation(level).await);
        for number in 0..30 {
            let key = RecordKey::new(level, None, &format!("k{number}"));
            let claims = join_all((0..20).map(|_| store.claim(&key, claim_request()))).await;
            let acquired = claims.iter().filter(|claim| matches!(claim, Ok(Claim::Acquired { attempt: 1 }))).count();
            let in_flight = claims.iter().filter(|claim| matches!(claim, Ok(Claim::InFlight { .. }))).count();
            assert_eq!((acquired, in_flight), (1, 19), "{level}: {claims:?}");
        }
    }
}

#[tokio::test]
async fn long_callers_have_keys_of_their_own() {
    let pool = pool().await;
    let store = migrated(&pool).await;
    for last in ["a", "b"] {
        let caller = "c".repeat(20_000) + last;
        let key = RecordKey::new("charges", Some(&caller), "k");
        assert_eq!(store.claim(&key, claim_request()).await.expect("the store claims"), Claim::Acquired { attempt: 1 });
    }
}

#[tokio::test]
async fn one_process_deletes_expired_rows_at_a_time() {
    let database = PostgresServer::shared().await.database().await;
    let (pool, other) = (database.pool(4).await, database.pool(1).await);
    let (store, elsewhere) = (migrated(&pool).await, PostgresStore::new(other));
    // More than one batch. The deletion of the first batch waits until lock 42 is free.
    execute(
        &pool,
        "INSERT INTO idempotency.records (digest, key, state, fingerprint, token, attempt, claim_ttl, expires_at)
         SELECT int8send(n), 'k' || n, 'claimed', '', '', 1, 1, now() - interval '1 second' FROM generate_series(1, 1200) n;
         CREATE FUNCTION stand_still() RETURNS trigger LANGUAGE plpgsql AS
         'BEGIN PERFORM pg_advisory_lock(42); PERFORM pg_advisory_unlock(42); RETURN OLD; END';
         CREATE TRIGGER stand_still BEFORE DELETE ON idempotency.records FOR EACH ROW EXECUTE FUNCTION stand_still();",
    )
    .await;
    let mut holder = pool.acquire().await.expect("a connection");
    sqlx::query("SELECT pg_advisory_lock(42)").execute(&mut *holder).await.expect("the lock is free");
    let first = tokio::spawn(async move { store.delete_expired().await });
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = 42";
    let waiting = async || sqlx::query_scalar::<_, i64>(waits).fetch_one(&pool).await.expect("the server answers");
    eventually(waiting, |&waiting| waiting == 1).await;
    let second =
        tokio::time::timeout(PATIENCE, elsewhere.delete_expired()).await.expect("it does not wait for the first one");
    assert_eq!(second.expect("it answers"), 0);
    sqlx::query("SELECT pg_advisory_unlock(42)").execute(&mut *holder).await.expect("the lock is given back");
    assert_eq!(first.await.expect("the task runs").expect("it deletes expired rows"), 500);
    assert_eq!(elsewhere.delete_expired().await.expect("it deletes expired rows"), 500);
}

/// Under `reject`, a retry pins the claim that it is rejected for: that must not take a connection beside the one it has.
#[tokio::test]
async fn rejected_retries_on_all_connections_are_answered() {
    let store = migrated(&pool().await).await;
    let keys = ["a", "b", "c", "d"].map(|key| RecordKey::new("charges", None, key));
    for key in &keys {
        let request = claim_request();
        let _ = store.claim(key, request).await.expect("the store claims");
        assert_eq!(store.renew(key, request.token, Duration::ZERO).await.expect("the store renews"), Held::Yes);
    }
    let retry = || claim_request().with_after_crash(AfterCrash::Reject);
    let retries = join_all(keys.iter().map(|key| store.claim(key, retry())));
    for answer in tokio::time::timeout(PATIENCE, retries).await.expect("no retry waits for another one") {
        assert!(matches!(answer, Ok(Claim::Lapsed { .. })), "{answer:?}");
    }
}

#[tokio::test]
async fn resolution_that_postgres_rejects_for_good_is_told() {
    let pool = PostgresServer::shared().await.database().await.pool(4).await;
    let store = PostgresStore::new(pool.clone());
    store.migrate().await.expect("the tables are made");
    let limit = "ALTER TABLE idempotency.records ADD CHECK (length(body) < 1000)";
    let _ = sqlx::raw_sql(limit).execute(&pool).await.expect("an administrator may");
    let (key, request) = (RecordKey::new("charges", None, "k"), claim_request().with_lease(Duration::ZERO));
    let _ = store.claim(&key, request).await.expect("the store claims");
    let resolution = Resolution::executed(record("x".repeat(1000)), Duration::from_mins(1));
    let rejected = store.resolve(&key, request.token, resolution).await;
    assert!(matches!(rejected, Err(StoreError::RecordRejected(_))), "{rejected:?}");
}
