//! The card network, the service of another company. It is slow, and itself idempotent by the reference of a request.
//! Its books are in a separate database, which is not part of the application's transactions.

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
    /// The reference, by which the network recognises a repeated request.
    pub reference: String,
    /// The amount that was moved, or that would have been moved.
    pub amount: i64,
    /// The currency of the amount.
    pub currency: String,
    /// Whether the charge was approved.
    pub approved: bool,
    /// How often the network was asked for this reference.
    pub times_asked: i64,
}

/// The service of the card network.
#[derive(Clone)]
pub struct CardNetwork {
    latency: Duration,
    books: SqlitePool,
}

impl CardNetwork {
    /// Opens the network's books.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened.
    pub async fn open(books: &Path, latency: Duration) -> anyhow::Result<Self> {
        let books = sqlite::open(books).await?;
        sqlx::raw_sql(SCHEMA).execute(&books).await?;
        Ok(Self { latency, books })
    }

    /// Moves the money once for each reference, however often it is asked. Returns what the network has under this
    /// reference. This is another charge if the reference was used for another one.
    ///
    /// The money moves at the beginning of the latency: if a caller dies while it waits, the card is charged.
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

    /// The network's books, the oldest line first.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub async fn books(&self) -> Result<Vec<NetworkCharge>, sqlx::Error> {
        sqlx::query_as("SELECT * FROM network_charges ORDER BY rowid").fetch_all(&self.books).await
    }
}
