//! The meaning of SQLite's errors for a caller.

use std::sync::Arc;

use crate::store::error::{StoreError, Waited};
use crate::store::shortage;

/// The primary result codes of SQLite that need an answer of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    Locked,
    ReadOnly,
    Corrupt,
    Full,
    /// There is no memory for the call, or no file can be opened or mapped.
    Short,
    CannotOpen,
    /// A value is too long, or a constraint or a trigger rejects the row. A repeated write is rejected too.
    Rejected,
    Other,
}

impl Cause {
    pub(super) fn of(error: &sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        let code = code.and_then(|code| code.parse::<i32>().ok());
        match code {
            // This code is SQLITE_IOERR_SHMSIZE: the log's index cannot grow.
            Some(4874) => return Self::Full,
            // These codes are SQLITE_IOERR_NOMEM, SQLITE_IOERR_SHMOPEN and SQLITE_IOERR_SHMMAP.
            Some(3082 | 4618 | 5386) => return Self::Short,
            // SQLite does not say why it cannot open a file.
            Some(code) if code & 0xff == 14 && shortage::lacks_files() => return Self::Short,
            _ => {}
        }
        // The extended code has the primary code in its low byte.
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

/// Converts an error. A damaged file may hide a record, so it must not count as unreachable. Otherwise a handler might
/// run unguarded.
pub(super) fn store_error(error: impl Into<Arc<sqlx::Error>>) -> StoreError {
    let error = error.into();
    match Cause::of(&error) {
        Cause::Corrupt => StoreError::damaged(error),
        // The cause is a transaction of another process, or many entries or connections. A client could cause these.
        Cause::Locked | Cause::Full | Cause::Short => StoreError::busy(error),
        _ if matches!(*error, sqlx::Error::PoolTimedOut) => StoreError::unavailable(Waited(error.into())),
        _ => StoreError::unavailable(error),
    }
}

/// The reason why one write of a batch did not take effect.
pub(super) enum Failure {
    /// The answer of the store itself. The transaction is sound and continues.
    Answer(StoreError),
    /// The error of SQLite, which may have rolled the transaction back.
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
