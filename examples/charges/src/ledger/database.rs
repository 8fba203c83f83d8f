//! The ledger's operations on a database. The statements are the same for both databases; the types and the tables
//! differ.

use sqlx::{Database, Pool, Postgres, Sqlite};

use super::{NewEntry, NewRefund};

pub(crate) trait LedgerDatabase: Database {
    /// Creates the tables if they do not exist. Several processes may call it at the same time.
    fn migrate(pool: &Pool<Self>) -> impl Future<Output = Result<(), sqlx::Error>> + Send;

    /// Writes a settled entry and returns its id. Fails if an entry with this reference exists.
    fn enter(
        connection: &mut Self::Connection,
        entry: NewEntry<'_>,
    ) -> impl Future<Output = Result<i64, sqlx::Error>> + Send;

    /// Writes a settled entry unless an earlier attempt has written it. Returns its id.
    fn enter_once(pool: &Pool<Self>, entry: NewEntry<'_>) -> impl Future<Output = Result<i64, sqlx::Error>> + Send;

    /// Reserves the money from the rest of the charge, unless an earlier attempt has reserved it. Does nothing if the
    /// rest is too small.
    fn reserve(
        pool: &Pool<Self>,
        refund: NewRefund<'_>,
    ) -> impl Future<Output = Result<Option<i64>, sqlx::Error>> + Send;
}

macro_rules! insert_entry {
    () => {
        r#"INSERT INTO entries (kind, "user", amount, refundable, charge, key, attempt, settled, reference, currency)
           VALUES ($1, $2, $3, $3, $4, $5, $6, TRUE, $7, $8) "#
    };
}

/// A macro, because a query that returns rows has another type than a query that returns none.
macro_rules! values_of {
    ($insert:expr, $entry:expr) => {
        $insert
            .bind($entry.kind)
            .bind($entry.user)
            .bind($entry.amount)
            .bind($entry.charge)
            .bind($entry.key)
            .bind(i64::from($entry.attempt))
            .bind($entry.reference)
            .bind($entry.currency)
    };
}

macro_rules! ledger_database {
    ($database:ty, $schema:literal) => {
        impl LedgerDatabase for $database {
            async fn migrate(pool: &Pool<Self>) -> Result<(), sqlx::Error> {
                sqlx::raw_sql($schema).execute(pool).await.map(drop)
            }

            async fn enter(connection: &mut Self::Connection, entry: NewEntry<'_>) -> Result<i64, sqlx::Error> {
                let insert = sqlx::query_scalar(concat!(insert_entry!(), "RETURNING id"));
                values_of!(insert, entry).fetch_one(connection).await
            }

            async fn enter_once(pool: &Pool<Self>, entry: NewEntry<'_>) -> Result<i64, sqlx::Error> {
                let insert = sqlx::query(concat!(insert_entry!(), "ON CONFLICT (reference) DO NOTHING"));
                values_of!(insert, entry).execute(pool).await?;
                let id = sqlx::query_scalar("SELECT id FROM entries WHERE reference = $1").bind(entry.reference);
                id.fetch_one(pool).await
            }

            async fn reserve(pool: &Pool<Self>, refund: NewRefund<'_>) -> Result<Option<i64>, sqlx::Error> {
                let mut transaction = pool.begin().await?;
                let inserted = sqlx::query_scalar(
                    r#"INSERT INTO entries (kind, "user", amount, refundable, charge, key, attempt, settled, reference, currency)
                       VALUES ('refund', $1, $2, 0, $3, $4, $5, FALSE, $6, $7)
                       ON CONFLICT (reference) DO NOTHING
                       RETURNING id"#,
                )
                .bind(refund.user)
                .bind(-refund.amount)
                .bind(refund.charge)
                .bind(refund.key)
                .bind(i64::from(refund.attempt))
                .bind(refund.reference)
                .bind(refund.currency)
                .fetch_optional(&mut *transaction)
                .await?;
                let Some(id) = inserted else {
                    let id = sqlx::query_scalar("SELECT id FROM entries WHERE reference = $1").bind(refund.reference);
                    return id.fetch_one(&mut *transaction).await.map(Some);
                };
                // The check and the update are one statement: otherwise another refund could see the same money in
                // between. It is the last statement, because other refunds of this charge wait until it is committed.
                let taken =
                    sqlx::query("UPDATE entries SET refundable = refundable - $1 WHERE id = $2 AND refundable >= $1")
                        .bind(refund.amount)
                        .bind(refund.charge)
                        .execute(&mut *transaction)
                        .await?;
                if taken.rows_affected() == 0 {
                    transaction.rollback().await?;
                    return Ok(None);
                }
                transaction.commit().await?;
                Ok(Some(id))
            }
        }
    };
}

ledger_database!(
    Sqlite,
    r#"
    CREATE TABLE IF NOT EXISTS entries (
        id INTEGER PRIMARY KEY,
        kind TEXT NOT NULL,
        "user" TEXT NOT NULL,
        amount INTEGER NOT NULL,
        currency TEXT,
        refundable INTEGER NOT NULL,
        charge INTEGER,
        key TEXT,
        attempt INTEGER NOT NULL,
        settled INTEGER NOT NULL,
        reference TEXT NOT NULL UNIQUE
    ) STRICT;
    "#
);

// If two processes create a table at the same time, PostgreSQL fails one of them, even with IF NOT EXISTS.
ledger_database!(
    Postgres,
    r#"
    BEGIN;
    SELECT pg_advisory_xact_lock(3000);
    CREATE TABLE IF NOT EXISTS entries (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        kind text NOT NULL,
        "user" text NOT NULL,
        amount bigint NOT NULL,
        currency text,
        refundable bigint NOT NULL,
        charge bigint,
        key text,
        attempt bigint NOT NULL,
        settled boolean NOT NULL,
        reference text NOT NULL UNIQUE
    );
    COMMIT;
    "#
);
