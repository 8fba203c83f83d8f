//! Erases deleted rows from the files.
//!
//! With `PRAGMA secure_delete`, SQLite overwrites a deleted row in the database with zeros. The write-ahead log still
//! has the row until the log is truncated. The writer truncates it after an operator's deletion, before it answers, and
//! after the deletion of expired rows. It never waits for readers or other processes: it tries again later.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sqlx::AssertSqlSafe;
use sqlx::sqlite::SqliteConnection;

/// Whether the log has rows that this process has deleted.
pub(super) struct Erasure {
    is_due: AtomicBool,
    is_urgent: AtomicBool,
    busy_timeout: Duration,
}

impl Erasure {
    /// Takes the time that the connection that writes waits for other processes.
    pub(super) fn new(busy_timeout: Duration) -> Self {
        Self { is_due: AtomicBool::new(false), is_urgent: AtomicBool::new(false), busy_timeout }
    }

    /// Makes the writer truncate the log after the next deletion of expired rows. Must be called by the holder of the
    /// write lock, so that the log is not truncated before the commit.
    pub(super) fn mark_due(&self) {
        self.is_due.store(true, Ordering::Relaxed);
    }

    /// Makes the writer truncate the log after this batch, because an operator deletes rows.
    pub(super) fn mark_urgent(&self) {
        self.mark_due();
        self.is_urgent.store(true, Ordering::Relaxed);
    }

    pub(super) async fn truncate_if_urgent(&self, connection: &mut SqliteConnection) {
        if self.is_urgent.swap(false, Ordering::Relaxed) {
            self.truncate_if_due(connection).await;
        }
    }

    pub(super) async fn truncate_if_due(&self, connection: &mut SqliteConnection) {
        if !self.is_due.swap(false, Ordering::Relaxed) {
            return;
        }
        let truncated = truncate(connection).await;
        let restored = set_busy_timeout(connection, self.busy_timeout).await;
        let error = match truncated.and_then(|is_truncated| restored.map(|()| is_truncated)) {
            Ok(true) => return,
            Ok(false) => None,
            Err(error) => Some(error),
        };
        self.mark_due();
        tracing::debug!(
            error = error.as_ref().map(|error| error as &dyn std::error::Error),
            "the log of the SQLite store cannot be truncated, so deleted rows stay in it: this is tried again"
        );
    }
}

/// Returns false if a reader or another process uses the log.
async fn truncate(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    set_busy_timeout(connection, Duration::ZERO).await?;
    let is_busy: bool = sqlx::query_scalar("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(connection).await?;
    Ok(!is_busy)
}

async fn set_busy_timeout(connection: &mut SqliteConnection, timeout: Duration) -> Result<(), sqlx::Error> {
    let pragma = AssertSqlSafe(format!("PRAGMA busy_timeout = {}", timeout.as_millis()));
    sqlx::raw_sql(pragma).execute(connection).await.map(drop)
}
