//! The business data: who was charged and refunded, in a database of the application's own.

use std::path::Path;

use serde::Serialize;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use sqlx::{FromRow, SqlitePool};

use crate::error::ApiError;

#[derive(Clone)]
pub(crate) struct Ledger(SqlitePool);

/// A line of the ledger.
#[derive(FromRow, Serialize)]
pub(crate) struct Entry {
    pub(crate) id: i64,
    pub(crate) kind: String,
    pub(crate) user: String,
    /// In the smallest unit of the currency; negative for a refund.
    pub(crate) amount: i64,
    /// The charge that a refund or an event belongs to.
    pub(crate) charge: Option<i64>,
    /// The idempotency key of the request.
    pub(crate) key: Option<String>,
    /// The attempt that wrote this line: 2 when the process died in the first one.
    pub(crate) attempt: i64,
    /// How often the card network was asked for it.
    pub(crate) times_asked: Option<i64>,
}

/// What a handler writes.
pub(crate) struct NewEntry<'a> {
    pub(crate) kind: &'a str,
    pub(crate) user: &'a str,
    pub(crate) amount: i64,
    pub(crate) charge: Option<i64>,
    pub(crate) key: Option<&'a str>,
    pub(crate) attempt: u32,
    /// The same on every attempt of one request, so that it is entered once.
    pub(crate) reference: &'a str,
}

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS entries (
        id INTEGER PRIMARY KEY,
        kind TEXT NOT NULL,
        user TEXT NOT NULL,
        amount INTEGER NOT NULL,
        charge INTEGER,
        key TEXT,
        attempt INTEGER NOT NULL,
        reference TEXT NOT NULL UNIQUE
    ) STRICT;
    CREATE TABLE IF NOT EXISTS network_charges (
        reference TEXT PRIMARY KEY,
        amount INTEGER NOT NULL,
        approved INTEGER NOT NULL,
        times_asked INTEGER NOT NULL
    ) STRICT;
";

const SELECT: &str = "
    SELECT id, kind, user, entries.amount, charge, key, attempt, times_asked
    FROM entries LEFT JOIN network_charges USING (reference)
";

impl Ledger {
    pub(crate) async fn open(path: &Path) -> Result<Self, sqlx::Error> {
        let options =
            SqliteConnectOptions::new().filename(path).create_if_missing(true).journal_mode(SqliteJournalMode::Wal);
        let pool = SqlitePoolOptions::new().connect_with(options).await?;
        sqlx::raw_sql(SCHEMA).execute(&pool).await?;
        Ok(Self(pool))
    }

    pub(crate) fn pool(&self) -> SqlitePool {
        self.0.clone()
    }

    /// Writes the entry unless an earlier attempt has; the entry's id.
    pub(crate) async fn enter(&self, entry: NewEntry<'_>) -> Result<i64, sqlx::Error> {
        sqlx::query(
            "INSERT INTO entries (kind, user, amount, charge, key, attempt, reference) VALUES (?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT (reference) DO NOTHING",
        )
        .bind(entry.kind)
        .bind(entry.user)
        .bind(entry.amount)
        .bind(entry.charge)
        .bind(entry.key)
        .bind(entry.attempt)
        .bind(entry.reference)
        .execute(&self.0)
        .await?;
        sqlx::query_scalar("SELECT id FROM entries WHERE reference = ?").bind(entry.reference).fetch_one(&self.0).await
    }

    pub(crate) async fn charge(&self, id: i64, user: &str) -> Result<Entry, ApiError> {
        let query = format!("{SELECT} WHERE id = ? AND user = ? AND kind = 'charge'");
        let found = sqlx::query_as(sqlx::AssertSqlSafe(query)).bind(id).bind(user).fetch_optional(&self.0).await?;
        found.ok_or(ApiError::NoSuchCharge(id))
    }

    /// What is left of a charge after its refunds.
    pub(crate) async fn left_of(&self, charge: i64) -> Result<i64, sqlx::Error> {
        let sum = "SELECT coalesce(sum(amount), 0) FROM entries WHERE id = ? OR (kind = 'refund' AND charge = ?)";
        sqlx::query_scalar(sum).bind(charge).bind(charge).fetch_one(&self.0).await
    }

    pub(crate) async fn entries(&self) -> Result<Vec<Entry>, sqlx::Error> {
        sqlx::query_as(sqlx::AssertSqlSafe(format!("{SELECT} ORDER BY id"))).fetch_all(&self.0).await
    }
}
