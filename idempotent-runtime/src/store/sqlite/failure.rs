//! What SQLite's errors mean to a caller.

use std::sync::Arc;

use crate::store::error::{StoreError, Waited};
use crate::store::shortage;

/// The primary result codes of SQLite that have an answer of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    Locked,
    ReadOnly,
    Corrupt,
    Full,
    /// There is no memory for the call, or no file can be opened or mapped.
    Short,
    CannotOpen,
    /// A value is too long, or a constraint or a trigger rejects the row: it does so however often it is asked.
    Rejected,
    Other,
}

impl Cause {
    pub(super) fn of(error: &sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        let code = code.and_then(|code| code.parse::<i32>().ok());
        match code {
            // SQLITE_IOERR_SHMSIZE: the log's index cannot grow.
            Some(4874) => return Self::Full,
            // SQLITE_IOERR_NOMEM, SQLITE_IOERR_SHMOPEN, SQLITE_IOERR_SHMMAP
            Some(3082 | 4618 | 5386) => return Self::Short,
            // SQLite does not say why it cannot open a file.
            Some(code) if code & 0xff == 14 && shortage::lacks_files() => return Self::Short,
            _ => {}
        }
        // The extended code carries the primary one in its low byte.
        match code.map(|code| code & 0xff) {
            Some(5 | 6) => Self::Locked,
            Some(7) => Self::Short,
            Some(8) => Self::ReadOnly,
            Some(11 | 26) => Self::Corrupt,
            Some(13) => Self::Full,
            Some(14) => Self::CannotOpen,
            Some(18..=20) => Self::Rejected,
            _ => Self::Other,
        }
    }
}

/// A damaged file may hide a record: it must not count as unreachable, or a handler might run unguarded.
pub(super) fn store_error(error: impl Into<Arc<sqlx::Error>>) -> StoreError {
    let error = error.into();
    match Cause::of(&error) {
        Cause::Corrupt => StoreError::damaged(error),
        // By a transaction of another process, or by many entries or connections, as a client could bring about.
        Cause::Locked | Cause::Full | Cause::Short => StoreError::busy(error),
        _ if matches!(*error, sqlx::Error::PoolTimedOut) => StoreError::unavailable(Waited(error.into())),
        _ => StoreError::unavailable(error),
    }
}

/// Why one write of a batch did not take effect.
pub(super) enum Failure {
    /// The store's own answer; the transaction is sound and goes on.
    Answer(StoreError),
    /// SQLite's; it may have rolled the transaction back.
    Sqlite(sqlx::Error),
}

impl Failure {
    pub(super) fn into_error(self) -> StoreError {
        match self {
            Self::Answer(error) => error,
            Self::Sqlite(error) => store_error(error),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Answer(error)
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::Sqlite(error)
    }
}

#[cfg(test)]
mod tests {
    use sqlx::Connection as _;
    use sqlx::sqlite::SqliteConnection;

    use super::*;

    #[tokio::test]
    async fn value_that_is_too_long_is_rejected() {
        let mut connection = SqliteConnection::connect("sqlite::memory:").await.expect("it opens");
        let error = sqlx::query("SELECT zeroblob(2000000000)").fetch_one(&mut connection).await;
        assert_eq!(Cause::of(&error.expect_err("SQLite takes a billion bytes")), Cause::Rejected);
    }
}
