//! The business data in the database of the application: who was charged and refunded.

mod database;

use serde::Serialize;
use sqlx::{FromRow, PgPool, SqlitePool};
use utoipa::ToSchema;

pub(crate) use self::database::LedgerDatabase;
use crate::error::ApiError;

/// The ledger, in SQLite or in PostgreSQL.
#[derive(Clone)]
pub enum Ledger {
    /// In a SQLite file: the ledger's own file, or the store's.
    Sqlite(SqlitePool),
    /// In the store's PostgreSQL database.
    Postgres(PgPool),
}

/// A line of the ledger.
#[derive(FromRow, Serialize, ToSchema)]
pub struct Entry {
    /// The number of the line, counted from 1.
    pub id: i64,
    /// The kind of the entry, such as `charge`.
    pub kind: String,
    /// The user whose entry it is.
    pub user: String,
    /// The amount, in the smallest unit of the currency; negative for a refund.
    pub amount: i64,
    /// The currency of a charge or of a refund.
    pub currency: Option<String>,
    /// What is left of a charge after its refunds, including refunds whose outcome is unknown.
    pub refundable: i64,
    /// The charge that a refund or an event belongs to.
    pub charge: Option<i64>,
    /// The idempotency key of the request.
    pub key: Option<String>,
    /// The attempt that wrote this line: 2 if the process died in the first one.
    pub attempt: i64,
    /// Whether the card network has answered. An operator must look into a refund that stays unsettled.
    pub settled: bool,
    /// The reference, by which the card network knows the entry.
    pub reference: String,
}

/// An entry that a handler writes.
pub(crate) struct NewEntry<'a> {
    pub(crate) kind: &'a str,
    pub(crate) user: &'a str,
    pub(crate) amount: i64,
    pub(crate) currency: Option<&'a str>,
    pub(crate) charge: Option<i64>,
    pub(crate) key: Option<&'a str>,
    pub(crate) attempt: u32,
    /// The same on every attempt of one request, so that the request is entered once.
    pub(crate) reference: &'a str,
}

/// A refund of a charge.
pub(crate) struct NewRefund<'a> {
    pub(crate) user: &'a str,
    /// The amount, greater than 0.
    pub(crate) amount: i64,
    pub(crate) currency: &'a str,
    pub(crate) charge: i64,
    pub(crate) key: Option<&'a str>,
    pub(crate) attempt: u32,
    /// The same on every attempt of one request, so that the request is entered once.
    pub(crate) reference: &'a str,
}

/// Runs the same code on either database.
macro_rules! on_pool {
    ($ledger:expr, $pool:ident => $does:expr) => {
        match $ledger {
            Ledger::Sqlite($pool) => $does,
            Ledger::Postgres($pool) => $does,
        }
    };
}

impl Ledger {
    /// Creates the tables if they do not exist. Several processes may call it at the same time.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn migrate(&self) -> Result<(), sqlx::Error> {
        on_pool!(self, pool => LedgerDatabase::migrate(pool).await)
    }

    /// Writes a settled entry unless an earlier attempt has written it. Returns the entry's id.
    pub(crate) async fn enter_once(&self, entry: NewEntry<'_>) -> Result<i64, sqlx::Error> {
        on_pool!(self, pool => LedgerDatabase::enter_once(pool, entry).await)
    }

    /// Writes an unsettled refund unless an earlier attempt has written it. Returns the entry's id, or `None` if the
    /// rest of the charge is too small.
    pub(crate) async fn reserve(&self, refund: NewRefund<'_>) -> Result<Option<i64>, sqlx::Error> {
        on_pool!(self, pool => LedgerDatabase::reserve(pool, refund).await)
    }

    /// Marks the entry as settled: the card network has answered.
    pub(crate) async fn settle(&self, id: i64) -> Result<(), sqlx::Error> {
        let settle = "UPDATE entries SET settled = TRUE WHERE id = $1";
        on_pool!(self, pool => sqlx::query(settle).bind(id).execute(pool).await.map(drop))
    }

    pub(crate) async fn charge(&self, id: i64, user: &str) -> Result<Entry, ApiError> {
        let charge = r#"SELECT * FROM entries WHERE id = $1 AND "user" = $2 AND kind = 'charge'"#;
        let found = on_pool!(self, pool => {
            sqlx::query_as(charge).bind(id).bind(user).fetch_optional(pool).await?
        });
        found.ok_or(ApiError::NoSuchCharge(id))
    }

    /// All lines, the oldest first.
    ///
    /// # Errors
    ///
    /// When the database fails.
    pub async fn entries(&self) -> Result<Vec<Entry>, sqlx::Error> {
        let entries = "SELECT * FROM entries ORDER BY id";
        on_pool!(self, pool => sqlx::query_as(entries).fetch_all(pool).await)
    }
}
