//! The card network, another company's service: slow, and itself idempotent by the reference it is given. Its books lie in
//! a database of its own, which no transaction of ours reaches.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use sqlx::{FromRow, SqlitePool};

use crate::sqlite;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS network_charges (
        reference TEXT PRIMARY KEY,
        amount INTEGER NOT NULL,
        currency TEXT NOT NULL,
        approved INTEGER NOT NULL,
        times_asked INTEGER NOT NULL
    ) STRICT;
";

/// Amounts over this are declined.
const LIMIT: i64 = 100_000;

/// A line of the network's books.
#[derive(FromRow, Serialize)]
pub struct NetworkCharge {
    /// What it recognises a repetition by.
    pub reference: String,
    /// What was moved, or would have been.
    pub amount: i64,
    /// Of the amount.
    pub currency: String,
    /// Whether it was.
    pub approved: bool,
    /// How often it was asked for this reference.
    pub times_asked: i64,
}

/// The other company's service.
#[derive(Clone)]
pub struct CardNetwork {
    latency: Duration,
    books: SqlitePool,
}

impl CardNetwork {
    /// Opens its books.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened.
    pub async fn open(books: &Path, latency: Duration) -> anyhow::Result<Self> {
        let books = sqlite::open(books).await?;
        sqlx::raw_sql(SCHEMA).execute(&books).await?;
        Ok(Self { latency, books })
    }

    /// Moves the money, once per reference however often it is asked; what the network has under this reference, which is
    /// another charge if the reference was used for another one.
    ///
    /// The money moves at the beginning of the latency: a caller that dies while it waits has charged the card.
    pub(crate) async fn authorise(
        &self,
        reference: &str,
        amount: i64,
        currency: &str,
    ) -> Result<NetworkCharge, sqlx::Error> {
        let charge = sqlx::query_as(
            "INSERT INTO network_charges (reference, amount, currency, approved, times_asked) VALUES (?, ?, ?, ?, 1)
             ON CONFLICT (reference) DO UPDATE SET times_asked = times_asked + 1
             RETURNING reference, amount, currency, approved, times_asked",
        )
        .bind(reference)
        .bind(amount)
        .bind(currency)
        .bind(amount <= LIMIT)
        .fetch_one(&self.books)
        .await?;
        tokio::time::sleep(self.latency).await;
        Ok(charge)
    }

    /// Its books, the oldest line first.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub async fn books(&self) -> Result<Vec<NetworkCharge>, sqlx::Error> {
        sqlx::query_as("SELECT * FROM network_charges ORDER BY rowid").fetch_all(&self.books).await
    }
}
