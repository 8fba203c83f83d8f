//! The card network, another company's service: slow, and itself idempotent by the reference it is given.

use std::time::Duration;

use serde::Serialize;
use sqlx::{FromRow, SqlitePool};

/// Amounts over this are declined.
const LIMIT: i64 = 100_000;

/// A line of the network's books.
#[derive(FromRow, Serialize)]
pub(crate) struct NetworkCharge {
    reference: String,
    amount: i64,
    approved: bool,
    times_asked: i64,
}

#[derive(Clone)]
pub(crate) struct CardNetwork {
    latency: Duration,
    books: SqlitePool,
}

impl CardNetwork {
    pub(crate) fn new(latency: Duration, books: SqlitePool) -> Self {
        Self { latency, books }
    }

    /// Moves the money, once per reference however often it is asked; false when the card is declined.
    ///
    /// The money moves at the beginning of the latency: a caller that dies while it waits has charged the card.
    pub(crate) async fn authorise(&self, reference: &str, amount: i64) -> Result<bool, sqlx::Error> {
        let approved = amount <= LIMIT;
        sqlx::query(
            "INSERT INTO network_charges (reference, amount, approved, times_asked) VALUES (?, ?, ?, 1)
             ON CONFLICT (reference) DO UPDATE SET times_asked = times_asked + 1",
        )
        .bind(reference)
        .bind(amount)
        .bind(approved)
        .execute(&self.books)
        .await?;
        tokio::time::sleep(self.latency).await;
        Ok(approved)
    }

    pub(crate) async fn books(&self) -> Result<Vec<NetworkCharge>, sqlx::Error> {
        sqlx::query_as("SELECT reference, amount, approved, times_asked FROM network_charges ORDER BY rowid")
            .fetch_all(&self.books)
            .await
    }
}
