//! The tables of PostgreSQL. Each migration made a new version of them.

use idempotent_runtime::store::{AfterCrash, PostgresStore, Store, StoreAdmin};
use idempotent_tests::postgres::PostgresServer;
use sqlx::{AssertSqlSafe, PgPool};

use super::{LAPSED, key, read, request, write};

/// The migration to each version, and rows that a program of that version writes.
const VERSIONS: [(&str, &str); 4] = [
    (include_str!("postgres-1.sql"), include_str!("postgres-1-rows.sql")),
    (include_str!("postgres-2.sql"), include_str!("postgres-2-rows.sql")),
    (include_str!("postgres-3.sql"), include_str!("postgres-3-rows.sql")),
    // Programs of version 4 write the same rows as programs of version 3.
    (include_str!("postgres-4.sql"), include_str!("postgres-3-rows.sql")),
];

async fn execute(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(pool).await.expect("the statements run");
}

async fn pool() -> PgPool {
    PostgresServer::shared().await.database().await.pool(2).await
}

async fn texts(pool: &PgPool, query: &'static str) -> Vec<String> {
    sqlx::query_scalar(query).fetch_all(pool).await.expect("the tables are read")
}

/// Selects all columns but the times that differ between runs.
const ROWS: &str = "SELECT concat_ws(' ', encode(digest, 'hex'), key, state, fingerprint, token, attempt, claim_ttl, awaited, \
     lease_until < now(), isfinite(expires_at), isfinite(delete_after), guards_token, extract(epoch FROM recorded_at), status, \
     headers, encode(body, 'hex')) FROM idempotency.records ORDER BY key";

const TABLES: &str = "SELECT concat_ws(' ', table_name, column_name, data_type, is_nullable, column_default) \
     FROM information_schema.columns WHERE table_schema = 'idempotency' \
     UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'idempotency' ORDER BY 1";

async fn tables_of(version: usize) -> PgPool {
    let pool = pool().await;
    for (tables, _) in &VERSIONS[..version] {
        execute(&pool, tables).await;
    }
    pool
}

#[tokio::test]
async fn postgres_tables_of_each_version_are_migrated_and_read() {
    let new = pool().await;
    let store = PostgresStore::new(new.clone());
    store.migrate().await.expect("the tables are made");
    write(&store).await;
    let (tables, rows) = (texts(&new, TABLES).await, texts(&new, ROWS).await);
    for (number, (_, old_rows)) in VERSIONS.iter().enumerate() {
        let version = number + 1;
        let old = tables_of(version).await;
        execute(&old, old_rows).await;
        let store = PostgresStore::new(old.clone());
        store.migrate().await.expect("the tables are migrated");
        assert_eq!(texts(&old, TABLES).await, tables, "{version}: a change of the tables needs a migration");
        let written: Vec<_> = texts(&old, ROWS).await.into_iter().filter(|row| !row.contains("given back")).collect();
        assert_eq!(written, rows, "{version}");
        read(&store, LAPSED).await;
        assert_eq!(store.unknown_outcomes().await.expect("it counts"), [("formats".to_owned(), 1)].into());
        let error = store.claim(&key("late"), request(5, AfterCrash::Reject)).await;
        assert!(version == 1 || error.is_err(), "{version}: it was given back: {error:?}");
    }
}

/// In a rolling deploy, the first process of the new version migrates while processes of the old version still run.
#[tokio::test]
async fn postgres_rows_of_older_programs_in_new_tables_are_read() {
    for (number, (_, old_rows)) in VERSIONS.iter().enumerate() {
        let pool = tables_of(VERSIONS.len()).await;
        execute(&pool, old_rows).await;
        let store = PostgresStore::new(pool);
        assert_eq!(store.delete_expired().await.expect("it deletes"), 0, "{number}: no row has expired");
        read(&store, LAPSED).await;
    }
}
