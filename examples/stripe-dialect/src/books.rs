//! The payment intents, in the SQLite file of the application.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::types::Json;

use crate::accounts::Account;
use crate::payment_intents::PaymentIntent;

/// The books: who paid what.
#[derive(Clone)]
pub struct Books(SqlitePool);

impl Books {
    /// Opens the books in this file, and creates the file if it does not exist.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened.
    pub async fn open(path: &Path) -> anyhow::Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(10));
        let pool = SqlitePoolOptions::new().connect_with(options).await;
        let pool = pool.with_context(|| format!("{} cannot be opened", path.display()))?;
        let table = "CREATE TABLE IF NOT EXISTS payment_intents (
            id TEXT PRIMARY KEY, account TEXT NOT NULL, reference TEXT NOT NULL UNIQUE, object TEXT NOT NULL
        ) STRICT";
        sqlx::query(table).execute(&pool).await?;
        Ok(Self(pool))
    }

    /// The number of payment intents.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub async fn count(&self) -> anyhow::Result<i64> {
        Ok(sqlx::query_scalar("SELECT count(*) FROM payment_intents").fetch_one(&self.0).await?)
    }

    /// Writes the payment intent unless an earlier attempt of the same request has written it. Returns the written one.
    pub(crate) async fn enter_once(
        &self,
        account: &Account,
        reference: &str,
        intent: PaymentIntent,
    ) -> Result<PaymentIntent, sqlx::Error> {
        let insert = "INSERT INTO payment_intents (id, account, reference, object) VALUES (?, ?, ?, ?)
            ON CONFLICT (reference) DO UPDATE SET reference = reference RETURNING object";
        let insert = sqlx::query_scalar(insert).bind(&intent.id).bind(&account.id).bind(reference);
        let Json(stored) = insert.bind(Json(&intent)).fetch_one(&self.0).await?;
        Ok(stored)
    }

    pub(crate) async fn find(&self, account: &Account, id: &str) -> Result<Option<PaymentIntent>, sqlx::Error> {
        let select = "SELECT object FROM payment_intents WHERE id = ? AND account = ?";
        let found = sqlx::query_scalar(select).bind(id).bind(&account.id).fetch_optional(&self.0).await?;
        Ok(found.map(|Json(intent)| intent))
    }
}

/// An id in Stripe's format: the prefix, such as `pi`, `_`, and 24 letters and digits.
pub(crate) fn unique(prefix: &str) -> String {
    let id: String = std::iter::repeat_with(fastrand::alphanumeric).take(24).collect();
    format!("{prefix}_{id}")
}
