//! Opens a SQLite file that several processes share.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use sqlx::SqlitePool;
use sqlx::error::DatabaseError;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions, SqliteSynchronous};

/// How long a statement waits for the lock of another one.
const PATIENCE: Duration = Duration::from_secs(10);

/// Opens the file, or creates it.
///
/// # Errors
///
/// When the file cannot be opened.
pub async fn open(path: &Path) -> anyhow::Result<SqlitePool> {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true).busy_timeout(PATIENCE);
    let pool = SqlitePoolOptions::new().connect_lazy_with(options.synchronous(SqliteSynchronous::Full));
    let begun = Instant::now();
    loop {
        let mode = sqlx::query_scalar::<_, String>("PRAGMA journal_mode = WAL").fetch_one(&pool).await;
        match mode {
            // SQLite does not wait for the lock that this change needs. Two processes that start at the same time
            // compete for it.
            Err(error) if is_locked(&error) && begun.elapsed() < PATIENCE => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            mode => {
                mode.with_context(|| format!("{} cannot be opened", path.display()))?;
                return Ok(pool);
            }
        }
    }
}

/// Whether the error is `SQLITE_BUSY`, plain or extended.
fn is_locked(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(DatabaseError::code);
    code.and_then(|code| code.parse::<u32>().ok()).is_some_and(|code| code & 0xff == 5)
}
