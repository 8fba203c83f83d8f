//! Connections that the server ends, roles that are replaced, and updates that touch no index.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::post;
use idempotent_runtime::store::{
    AfterCrash, Claim, ClaimRequest, Held, PostgresStore, Renewal, Store, StoreAdmin, Token,
};
use idempotent_runtime::{Fingerprint, RecordKey, Registry, idempotent};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::stores::record;
use idempotent_tests::{PATIENCE, Runs, Server, eventually};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgPool};

#[idempotent(scope = "rotated-waits", in_flight = wait("20s"))]
async fn waits(State(runs): State<Runs>) -> String {
    format!("charge {}", runs.run().await)
}

fn request(after_crash: AfterCrash) -> ClaimRequest {
    ClaimRequest::new(Token::unique(), Fingerprint::from_bytes([1; 32]))
        .with_lease(Duration::from_mins(1))
        .with_ttl(Duration::from_hours(24))
        .with_after_crash(after_crash)
}

async fn execute(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(pool).await.expect("the statement runs");
}

async fn end_all_others(administrator: &PgPool) {
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
         WHERE datname = current_database() AND pid <> pg_backend_pid()";
    execute(administrator, end).await;
    let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    let others = async || sqlx::query_scalar::<_, i64>(others).fetch_one(administrator).await.expect("it answers");
    eventually(others, |&others| others == 0).await;
}

#[tokio::test]
async fn connections_ended_while_free_cost_no_call() {
    let database = PostgresServer::shared().await.database().await;
    let administrator = database.pool(1).await;
    for tests in [true, false] {
        let options = PgPoolOptions::new().max_connections(3).test_before_acquire(tests);
        let store = PostgresStore::new(options.connect(&database.url()).await.expect("the server answers"));
        store.migrate().await.expect("the tables are made");
        for after_crash in [AfterCrash::Rerun, AfterCrash::Reject] {
            let key = RecordKey::new("charges", None, &format!("{after_crash:?}-{tests}"));
            let claim = request(after_crash);
            let _ = store.get(&key).await.expect("it looks");
            end_all_others(&administrator).await;
            let claimed = store.claim(&key, claim).await.expect("it claims");
            assert_eq!(claimed, Claim::Acquired { attempt: 1 });
            end_all_others(&administrator).await;
            assert_eq!(store.renew(&key, claim.token, claim.lease).await.expect("it renews"), Held::Yes);
            end_all_others(&administrator).await;
            let completed = store.complete(&key, claim.token, record("paid"), claim.ttl).await;
            assert_eq!(completed.expect("it records"), Held::Yes);
        }
    }
}

/// The application replaces the credentials of its pool, and the server takes the old ones no more.
#[tokio::test]
async fn replaced_credentials_serve_claims_and_waiters() {
    let database = PostgresServer::shared().await.database().await;
    let administrator = database.pool(1).await;
    execute(
        &administrator,
        "DROP ROLE IF EXISTS before_rotation, after_rotation; CREATE ROLE before_rotation LOGIN SUPERUSER; \
         CREATE ROLE after_rotation LOGIN SUPERUSER",
    )
    .await;
    let connect = async || {
        let options = database.options_of("before_rotation");
        PgPoolOptions::new().max_connections(4).connect_with(options).await.expect("the server answers")
    };
    let pools = [connect().await, connect().await];
    let runs = Runs::held();
    let serve = async |pool: &PgPool| {
        let store = PostgresStore::new(pool.clone());
        store.migrate().await.expect("the tables are made");
        let app = Router::new().route("/waits", post(waits)).with_state(runs.clone());
        Server::start(app.layer(Registry::new(store).layer())).await
    };
    let (first, second) = (serve(&pools[0]).await, serve(&pools[1]).await);
    let listeners = "SELECT count(*) FROM pg_stat_activity \
         WHERE datname = current_database() AND usename = $1 AND query LIKE 'LISTEN%'";
    let listeners = async |role: &str| {
        sqlx::query_scalar::<_, i64>(listeners).bind(role).fetch_one(&administrator).await.expect("it answers")
    };
    let both = async |key: &str, role: &str| {
        let before = runs.started();
        let (running, waited) = tokio::join!(first.post_with_key("/waits", key), async {
            runs.until_started(before + 1).await;
            let ending = async {
                eventually(async || listeners(role).await, |&listeners| listeners == 1).await;
                runs.let_finish(1);
            };
            tokio::join!(second.post_with_key("/waits", key), ending).0
        });
        assert_eq!(running.text(), waited.text());
        assert!(waited.is_replay());
    };
    both("before", "before_rotation").await;
    execute(&administrator, "ALTER ROLE before_rotation NOLOGIN").await;
    for pool in &pools {
        pool.set_connect_options(database.options_of("after_rotation"));
    }
    end_all_others(&administrator).await;
    both("after", "after_rotation").await;
}

/// Operators' queries have connections of their own.
#[tokio::test]
async fn listing_is_answered_while_claims_hold_all_others() {
    let database = PostgresServer::shared().await.database().await;
    let administrator = database.pool(2).await;
    let store = PostgresStore::new(database.pool(1).await);
    store.migrate().await.expect("the tables are made");
    let stand_still = "CREATE FUNCTION stand_still() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_advisory_lock(44); PERFORM pg_advisory_unlock(44); RETURN NEW; END';
        CREATE TRIGGER stand_still BEFORE INSERT ON idempotency.records FOR EACH ROW EXECUTE FUNCTION stand_still();";
    execute(&administrator, stand_still).await;
    let mut holder = administrator.acquire().await.expect("a connection");
    sqlx::query("SELECT pg_advisory_lock(44)").execute(&mut *holder).await.expect("the lock is free");
    let claiming = tokio::spawn({
        let store = store.clone();
        async move { store.claim(&RecordKey::new("charges", None, "k"), request(AfterCrash::Rerun)).await }
    });
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = 44 \
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let waiting = async || sqlx::query_scalar::<_, i64>(waits).fetch_one(&administrator).await.expect("it answers");
    eventually(waiting, |&waiting| waiting == 1).await;
    let looking = async {
        assert_eq!(store.list(None, 10).await.expect("it lists").entries, []);
        assert!(store.unknown_outcomes().await.expect("it counts").is_empty());
        assert_eq!(store.delete_expired().await.expect("it deletes"), 0);
    };
    tokio::time::timeout(PATIENCE, looking).await.expect("no claim is in the way");
    sqlx::query("SELECT pg_advisory_unlock(44)").execute(&mut *holder).await.expect("the lock is held");
    let claimed = claiming.await.expect("the task runs").expect("it claims");
    assert_eq!(claimed, Claim::Acquired { attempt: 1 });
}

/// Of renewals and completions, PostgreSQL changes no index.
#[tokio::test]
async fn renewals_and_completions_are_hot_updates() {
    let database = PostgresServer::start(&[]).await;
    let pool = database.database().await.pool(4).await;
    let store = PostgresStore::new(pool.clone());
    store.migrate().await.expect("the tables are made");
    for number in 0..200 {
        let (key, claim) = (RecordKey::new("charges", None, &format!("k{number}")), request(AfterCrash::Rerun));
        let _ = store.claim(&key, claim).await.expect("it claims");
        let _ = store.renew(&key, claim.token, claim.lease).await.expect("it renews");
        let renewed = store.renew_many(&[Renewal::new(key.clone(), claim.token, claim.lease)]).await;
        assert!(matches!(renewed[..], [Ok(Held::Yes)]), "{renewed:?}");
        let _ = store.complete(&key, claim.token, record("paid"), claim.ttl).await.expect("it records");
    }
    let counts = async || {
        // Before version 15, an idle connection keeps its last counts to itself.
        let _ = store.get(&RecordKey::new("charges", None, "k0")).await.expect("it looks");
        let counts = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'records'";
        sqlx::query_as::<_, (i64, i64)>(counts).fetch_one(&pool).await.expect("the counts are read")
    };
    // Of 600.
    let (updates, hot) = eventually(counts, |&(updates, _)| updates >= 100).await;
    assert!(hot * 10 >= updates * 8, "{hot} of {updates}");
}

const RECORDS: &str = "INSERT INTO idempotency.records (digest, key, state, fingerprint, token, attempt, claim_ttl, expires_at, \
     delete_after, recorded_at, status, headers, body) SELECT sha256(convert_to(key, 'UTF8')), key, 'completed', repeat('01', 32), \
     repeat('0', 32), 1, 86400000, now() + interval '1 day', now() + interval '1 day', now(), 201, '[]', 'paid' \
     FROM (SELECT 'charges//r' || number AS key FROM generate_series(1, 100000) AS number) AS keys";

/// The claims are the first row, which the deletion of expired rows marks, and the last one, which is found by its number.
#[tokio::test]
async fn claims_among_100_000_records_are_found_without_a_scan() {
    let server = PostgresServer::start(&["autovacuum=off"]).await;
    let pool = server.database().await.pool(4).await;
    let store = PostgresStore::new(pool.clone());
    store.migrate().await.expect("the tables are made");
    let keys = ["first", "last"].map(|key| RecordKey::new("charges", None, key));
    let claim = async |key| store.claim(key, request(AfterCrash::Rerun)).await.expect("it claims");
    assert_eq!(claim(&keys[0]).await, Claim::Acquired { attempt: 1 });
    execute(&pool, RECORDS).await;
    execute(&pool, "ANALYZE idempotency.records").await;
    assert_eq!(claim(&keys[1]).await, Claim::Acquired { attempt: 1 });
    let counts = async || {
        // Before version 15, an idle connection keeps its last counts to itself.
        let _ = store.claims(None, 1).await.expect("it lists");
        let counts = "SELECT seq_tup_read, idx_scan FROM pg_stat_user_tables WHERE relname = 'records'";
        sqlx::query_as::<_, (i64, i64)>(counts).fetch_one(&pool).await.expect("the counts are read")
    };
    // What was done before has been counted.
    let (_, scans) = eventually(counts, |&(_, scans)| scans > 0).await;
    let mut found = Vec::new();
    for _ in 0..2 {
        let page = store.claims(None, 1).await.expect("it lists").expect("there is an index");
        let next = store.claims(page.next.clone(), 10).await.expect("it lists").expect("there is an index");
        found = [page.entries, next.entries].concat().into_iter().map(|entry| entry.key).collect();
    }
    found.sort();
    assert_eq!(found, keys);
    let (before, _) = counts().await;
    // The looks between the counts are scans of the index too.
    let (read, _) = eventually(counts, |&(_, now)| now > scans + 20).await;
    assert!(read < before + 10_000, "{read} rows were read one after the other");
}
