//! What PostgreSQL says when it is full, became read-only, or ends a connection, and what the store makes of it.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use idempotent_runtime::store::{PostgresStore, StoreError};
use idempotent_runtime::{Registry, idempotent};
use idempotent_tests::postgres::PostgresServer;
use idempotent_tests::{Runs, Server, eventually};
use sqlx::{AssertSqlSafe, PgPool};

#[idempotent(scope = "answered-charges")]
async fn create_charge(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charge {}", runs.run().await))
}

#[idempotent(scope = "answered-waits", in_flight = wait("20s"))]
async fn waits(State(runs): State<Runs>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("charge {}", runs.run().await))
}

async fn store_of(pool: &PgPool) -> PostgresStore {
    let store = PostgresStore::new(pool.clone());
    store.migrate().await.expect("the tables are made");
    store
}

async fn serve(store: PostgresStore, runs: &Runs) -> Server {
    let app = Router::new().route("/charges", post(create_charge)).route("/waits", post(waits));
    Server::start(app.with_state(runs.clone()).layer(Registry::new(store).layer())).await
}

async fn execute(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(pool).await.expect("the statement runs");
}

/// Every insert fails with this SQLSTATE, as a server without room on its disk fails it.
fn fail_inserts(state: &str) -> String {
    format!(
        "CREATE OR REPLACE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN RAISE EXCEPTION 'of the test' USING ERRCODE = '{state}'; END $$;
         DROP TRIGGER IF EXISTS fail ON idempotency.records;
         CREATE TRIGGER fail BEFORE INSERT ON idempotency.records FOR EACH ROW EXECUTE FUNCTION fail()"
    )
}

#[tokio::test]
async fn only_the_state_of_a_full_disk_is_a_full_store() {
    use idempotent_runtime::store::{AfterCrash, ClaimRequest, Store as _, Token};

    let pool = PostgresServer::shared().await.database().await.pool(4).await;
    let store = store_of(&pool).await;
    let request = ClaimRequest::new(Token::unique(), "07".repeat(32).parse().expect("64 digits"))
        .with_lease(Duration::from_secs(30))
        .with_ttl(Duration::from_mins(1))
        .with_after_crash(AfterCrash::Rerun);
    // disk_full, out_of_memory, too_many_connections, query_canceled, lock_not_available, admin_shutdown
    for (state, is_full) in
        [("53100", true), ("53200", false), ("53300", false), ("57014", false), ("55P03", false), ("57P01", false)]
    {
        execute(&pool, &fail_inserts(state)).await;
        let key = idempotent_runtime::RecordKey::new("answered-charges", None, state);
        let error = store.claim(&key, request).await.expect_err("it fails");
        assert_eq!(matches!(error, StoreError::Full), is_full, "{state}: {error:?}");
        assert!(is_full || matches!(error, StoreError::Unavailable(_)), "{state}: {error:?}");
        // A client can use up what the server has, and cannot end it.
        assert_eq!(error.is_unreachable(), state == "57P01", "{state}: {error:?}");
    }
}

/// Under `AfterCrash::Reject`, a claim with an expired lease is made permanent before its retry is rejected.
#[tokio::test]
async fn claim_that_cannot_be_kept_for_conflicts_is_busy() {
    use idempotent_runtime::store::{AfterCrash, ClaimRequest, Store as _, Token};

    let pool = PostgresServer::shared().await.database().await.pool(4).await;
    let store = store_of(&pool).await;
    let claim = async |lease| {
        let request = ClaimRequest::new(Token::unique(), "07".repeat(32).parse().expect("64 digits")).with_lease(lease);
        let key = idempotent_runtime::RecordKey::new("answered-charges", None, "kept");
        let after_crash = if lease.is_zero() { AfterCrash::Rerun } else { AfterCrash::Reject };
        store.claim(&key, request.with_after_crash(after_crash)).await
    };
    claim(Duration::ZERO).await.expect("it claims");
    execute(&pool, &fail_inserts("40001").replace("BEFORE INSERT", "BEFORE UPDATE")).await;
    let error = claim(Duration::from_secs(30)).await.expect_err("it fails");
    assert!(matches!(error, StoreError::Unavailable(_)) && !error.is_unreachable(), "{error:?}");
}

#[tokio::test]
async fn a_full_disk_rejects_new_keys_and_replays_old_ones() {
    let pool = PostgresServer::shared().await.database().await.pool(4).await;
    let runs = Runs::free();
    let server = serve(store_of(&pool).await, &runs).await;
    assert_eq!(server.post_with_key("/charges", "old").await.text(), "charge 1");
    execute(&pool, &fail_inserts("53100")).await;
    assert_eq!(server.post_with_key("/charges", "new").await.rejection(), "store_unavailable");
    assert!(server.post_with_key("/charges", "old").await.is_replay());
    execute(&pool, "DROP TRIGGER fail ON idempotency.records").await;
    assert_eq!(server.post_with_key("/charges", "new").await.text(), "charge 2");
}

/// As when the application still holds connections to what is a standby by now.
#[tokio::test]
async fn read_only_server_runs_nothing_until_it_is_writable() {
    let server = PostgresServer::start(&[]).await;
    let database = server.database().await;
    let (pool, runs) = (database.pool(4).await, Runs::free());
    let app = serve(store_of(&pool).await, &runs).await;
    assert_eq!(app.post_with_key("/charges", "old").await.text(), "charge 1");
    for (read_only, rejected) in [("on", true), ("off", false)] {
        execute(&pool, &format!("ALTER SYSTEM SET default_transaction_read_only = {read_only}")).await;
        execute(&pool, "SELECT pg_reload_conf()").await;
        let shown = async || {
            let shown = sqlx::query_scalar::<_, String>("SHOW default_transaction_read_only").fetch_one(&pool).await;
            shown.expect("the server answers")
        };
        eventually(shown, |shown| shown == read_only).await;
        if rejected {
            let rejected = app.post_with_key("/charges", "new").await;
            assert_eq!(rejected.rejection(), "store_unavailable");
            assert_eq!(runs.started(), 1);
        }
    }
    let after = async || app.post_with_key("/charges", "new").await;
    let after = eventually(after, |answer| answer.status == StatusCode::CREATED).await;
    assert_eq!(after.text(), "charge 2");
    assert!(app.post_with_key("/charges", "old").await.is_replay());
}

#[tokio::test]
async fn a_listener_whose_connection_was_ended_listens_again() {
    let server = PostgresServer::start(&[]).await;
    let database = server.database().await;
    let (pool, runs) = (database.pool(8).await, Runs::held());
    let first = serve(store_of(&pool).await, &runs).await;
    let second = serve(store_of(&database.pool(8).await).await, &runs).await;
    let listening = async || {
        let query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'";
        sqlx::query_scalar::<_, i32>(query).fetch_all(&pool).await.expect("the server answers")
    };
    let (running, waited) = tokio::join!(first.post_with_key("/waits", "k"), async {
        runs.until_started(1).await;
        let waiting = second.post_with_key("/waits", "k");
        let ending = async {
            // The process that waits listens.
            let before = eventually(listening, |listeners| listeners.len() == 1).await;
            execute(&pool, &format!("SELECT pg_terminate_backend(pid) FROM unnest(ARRAY{before:?}) pid")).await;
            let are_others = |after: &Vec<i32>| after.len() == 1 && after.iter().all(|pid| !before.contains(pid));
            eventually(listening, are_others).await;
            runs.let_finish(1);
        };
        tokio::join!(waiting, ending).0
    });
    assert_eq!((running.text(), waited.text(), waited.is_replay()), ("charge 1", "charge 1", true));
    assert_eq!(runs.started(), 1);
}
