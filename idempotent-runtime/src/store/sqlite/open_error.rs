//! Why a store cannot be opened, and what to do.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::error_text::with_causes;

/// Why a [`SqliteStore`](crate::store::SqliteStore) could not be opened.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum SqliteOpenError {
    /// A newer version of this library has written it.
    #[error(
        "`{path}` has schema version {found}, this library knows {supported}: update `idempotent-runtime`, or give \
         this program a file of its own"
    )]
    #[non_exhaustive]
    NewerSchema {
        /// The file.
        path: PathBuf,
        /// What the file has.
        found: i64,
        /// The newest that this version of the library knows.
        supported: i64,
    },
    /// It is no database, or a damaged one.
    #[error(
        "`{path}` is no SQLite database, or a damaged one: restore it from a backup; moving it away starts a store \
         that has forgotten every recorded response"
    )]
    #[non_exhaustive]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The file of leases beside it is no database, or a damaged one.
    #[error(
        "`{path}` is no SQLite database, or a damaged one: stop the processes that use it and delete it; it holds leases, \
         no record is lost"
    )]
    #[non_exhaustive]
    DamagedLeases {
        /// The file of leases.
        path: PathBuf,
        /// What SQLite says.
        source: Box<dyn Error + Send + Sync>,
    },
    /// This process may not write it.
    #[error(
        "`{path}` cannot be written: let this process write to the file and to its folder, where SQLite keeps its log \
         beside it"
    )]
    #[non_exhaustive]
    ReadOnly {
        /// The file.
        path: PathBuf,
        /// What SQLite or the operating system says.
        source: Box<dyn Error + Send + Sync>,
    },
    /// It is a URL, a name that SQLite has for a database in memory, or empty.
    #[error(
        "`{path}` is no path of a file: write the path alone, such as `idempotency.db`, without `sqlite:`; a store in memory is \
         `MemoryStore`"
    )]
    #[non_exhaustive]
    NoPath {
        /// The text.
        path: PathBuf,
    },
    /// Its folder does not exist.
    #[error("`{folder}` is not a folder: create it before `{path}` is opened")]
    #[non_exhaustive]
    MissingFolder {
        /// The folder.
        folder: PathBuf,
        /// The file.
        path: PathBuf,
    },
    /// It is a folder.
    #[error("`{path}` is a folder: name a file in it, such as `{}`", path.join("idempotency.db").display())]
    #[non_exhaustive]
    Folder {
        /// The folder.
        path: PathBuf,
    },
    /// There is no room for it.
    #[error("no space is left for `{path}`: free some, or choose another disk")]
    #[non_exhaustive]
    Full {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        source: Box<dyn Error + Send + Sync>,
    },
    /// Another process kept it locked.
    #[error("`{path}` stayed locked for {waited:?}: end what holds it, such as an open transaction of another program")]
    #[non_exhaustive]
    Locked {
        /// The file.
        path: PathBuf,
        /// How long it was waited for.
        waited: Duration,
        /// What SQLite says.
        source: Box<dyn Error + Send + Sync>,
    },
    /// Its file system cannot keep a write-ahead log.
    #[error("`{path}` lies on a file system without shared memory for SQLite's write-ahead log: choose a local disk")]
    #[non_exhaustive]
    NoWriteAheadLog {
        /// The file.
        path: PathBuf,
    },
    /// Anything else.
    #[error("`{path}` cannot be opened")]
    #[non_exhaustive]
    Failed {
        /// The file.
        path: PathBuf,
        /// What SQLite or the operating system says.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl fmt::Debug for SqliteOpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        with_causes(self, f)
    }
}
