//! The errors of opening a store, with remedies.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::error_text::with_causes;

/// The reason why a [`SqliteStore`](crate::store::SqliteStore) could not be opened.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum SqliteOpenError {
    /// A newer version of this library has written the file.
    #[error(
        "`{path}` has schema version {found}, this library knows {supported}: update `idempotent-runtime`, or give \
         this program a file of its own"
    )]
    #[non_exhaustive]
    NewerSchema {
        /// The path of the file.
        path: PathBuf,
        /// The schema version of the file.
        found: i64,
        /// The newest schema version that this version of the library knows.
        supported: i64,
    },
    /// The file is not a database, or is damaged.
    #[error(
        "`{path}` is no SQLite database, or a damaged one: restore it from a backup; moving it away starts a store \
         that has forgotten every recorded response"
    )]
    #[non_exhaustive]
    Damaged {
        /// The path of the file.
        path: PathBuf,
        /// The error of SQLite.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The file of leases is not a database, or is damaged.
    #[error(
        "`{path}` is no SQLite database, or a damaged one: stop the processes that use it and delete it; it holds leases, \
         no record is lost"
    )]
    #[non_exhaustive]
    DamagedLeases {
        /// The path of the file of leases.
        path: PathBuf,
        /// The error of SQLite.
        source: Box<dyn Error + Send + Sync>,
    },
    /// This process may not write the file.
    #[error(
        "`{path}` cannot be written: let this process write to the file and to its folder, where SQLite keeps its log \
         beside it"
    )]
    #[non_exhaustive]
    ReadOnly {
        /// The path of the file.
        path: PathBuf,
        /// The error of SQLite or of the operating system.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The path is a URL, a name that SQLite has for a database in memory, or empty.
    #[error(
        "`{path}` is no path of a file: write the path alone, such as `idempotency.db`, without `sqlite:`; a store in memory is \
         `MemoryStore`"
    )]
    #[non_exhaustive]
    NoPath {
        /// The given text.
        path: PathBuf,
    },
    /// The folder of the file does not exist.
    #[error("`{folder}` is not a folder: create it before `{path}` is opened")]
    #[non_exhaustive]
    MissingFolder {
        /// The path of the folder.
        folder: PathBuf,
        /// The path of the file.
        path: PathBuf,
    },
    /// The path is a folder.
    #[error("`{path}` is a folder: name a file in it, such as `{}`", path.join("idempotency.db").display())]
    #[non_exhaustive]
    Folder {
        /// The path of the folder.
        path: PathBuf,
    },
    /// The disk has no room for the file.
    #[error("no space is left for `{path}`: free some, or choose another disk")]
    #[non_exhaustive]
    Full {
        /// The path of the file.
        path: PathBuf,
        /// The error of SQLite.
        source: Box<dyn Error + Send + Sync>,
    },
    /// Another process kept the file locked.
    #[error("`{path}` stayed locked for {waited:?}: end what holds it, such as an open transaction of another program")]
    #[non_exhaustive]
    Locked {
        /// The path of the file.
        path: PathBuf,
        /// The time that the store has waited.
        waited: Duration,
        /// The error of SQLite.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The file system of the file cannot keep a write-ahead log.
    #[error("`{path}` lies on a file system without shared memory for SQLite's write-ahead log: choose a local disk")]
    #[non_exhaustive]
    NoWriteAheadLog {
        /// The path of the file.
        path: PathBuf,
    },
    /// The file cannot be opened for another reason.
    #[error("`{path}` cannot be opened")]
    #[non_exhaustive]
    Failed {
        /// The path of the file.
        path: PathBuf,
        /// The error of SQLite or of the operating system.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl fmt::Debug for SqliteOpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        with_causes(self, f)
    }
}
