//! The opening of the file: options and schema.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Executor as _};

use crate::deadline::Deadline;
use crate::store::error::StoreError;
use crate::store::sqlite::bound::Bound;
use crate::store::sqlite::clock::Clock;
use crate::store::sqlite::database_file::DatabaseFile;
use crate::store::sqlite::failure::Cause;
use crate::store::sqlite::leases::Leases;
use crate::store::sqlite::leases_file;
use crate::store::sqlite::open_error::SqliteOpenError;
use crate::store::sqlite::tables;

/// The options of a [`SqliteStore`](crate::store::SqliteStore).
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `open`"]
pub struct SqliteStoreBuilder {
    path: PathBuf,
    /// The given text, if it is not a path of a file.
    pub(super) no_path: Option<PathBuf>,
    synchronous: SqliteSynchronous,
    max_bytes: Option<u64>,
    max_bytes_per_caller: Option<u64>,
    deletion_interval: Duration,
    busy_timeout: Duration,
    #[cfg(test)]
    pub(super) max_pages: Option<u32>,
    #[cfg(test)]
    pub(super) clock: Option<Clock>,
}

/// The durability that a write must have before the store answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SqliteSynchronous {
    /// The disk has the data, so a sent response survives a loss of power.
    #[default]
    Full,
    /// The operating system has the data, so a sent response survives a crash of the process. A loss of power can lose
    /// the last moments, and then a retry runs the handler again.
    Normal,
}

impl SqliteStoreBuilder {
    pub(super) fn new(path: &Path) -> Self {
        Self {
            // The path is made absolute, because readers open later, when the program may have changed its folder.
            // SQLite also gives a special meaning to relative names such as `:memory:` and `file:…`.
            path: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
            no_path: (!is_path(path)).then(|| path.to_owned()),
            synchronous: SqliteSynchronous::Full,
            max_bytes: None,
            max_bytes_per_caller: None,
            deletion_interval: Duration::from_secs(5),
            busy_timeout: Duration::from_secs(5),
            #[cfg(test)]
            max_pages: None,
            #[cfg(test)]
            clock: None,
        }
    }

    /// Sets the durability that a write must have before the store answers. The default is [`SqliteSynchronous::Full`].
    pub fn synchronous(mut self, synchronous: SqliteSynchronous) -> Self {
        self.synchronous = synchronous;
        self
    }

    /// Sets the bytes that the content of the file can take before new claims are rejected, including other tables in
    /// it. The default is no limit.
    ///
    /// A live entry is never evicted, and the record of a granted claim is always accepted. So the responses of the
    /// requests in flight can exceed the limit.
    ///
    /// One caller takes at most its [share](Self::max_bytes_per_caller). All processes that share the file should have
    /// the same limits, because the rows that a process without a limit writes count for no caller.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = Some(bytes);
        self
    }

    /// Sets the bytes that the rows of one caller can take, in all scopes together. The default is half of
    /// [`max_bytes`](Self::max_bytes). Without `max_bytes` it has no effect.
    ///
    /// A caller that has used up its bytes gets 503 for new keys, until some of its rows have expired. Its records are
    /// still replayed, and other callers are served. The record of a granted claim is always accepted. A row counts for
    /// about the bytes that it takes in the file.
    ///
    /// If no caller is named, the credentials of the request count as the caller: see [`Owner`](crate::store::Owner). A
    /// client that can vary its credentials, for example by another cookie, has as many shares. All requests with
    /// neither a caller nor credentials count as one caller.
    pub fn max_bytes_per_caller(mut self, bytes: u64) -> Self {
        self.max_bytes_per_caller = Some(bytes);
        self
    }

    /// Sets the time for which expired rows can stay if the store is not used. The default is 5 seconds.
    pub fn delete_expired_every(mut self, interval: Duration) -> Self {
        self.deletion_interval = interval.max(Duration::from_millis(1));
        self
    }

    /// Sets the time that a write waits for another process that writes to the same file. The default is 5 seconds.
    pub fn busy_timeout(mut self, timeout: Duration) -> Self {
        // SQLite's own type has this limit.
        self.busy_timeout = timeout.min(Duration::from_millis(i32::MAX as u64));
        self
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn bound(&self) -> Option<Bound> {
        let max_bytes = self.max_bytes?;
        Some(Bound { max_bytes, per_owner: self.max_bytes_per_caller.unwrap_or(max_bytes / 2) })
    }

    pub(super) fn deletion_interval(&self) -> Duration {
        self.deletion_interval
    }

    /// Opens the connection that writes, on a file that has the tables.
    pub(super) async fn connect(&self) -> Result<(SqliteConnection, Opened), SqliteOpenError> {
        let deadline = Deadline::after(self.busy_timeout);
        loop {
            match self.try_connect().await {
                // SQLite does not wait for the lock that a change to WAL needs. Two processes that start together both
                // need it.
                Err(Obstacle::Sqlite(error) | Obstacle::Leases(_, error))
                    if Cause::of(&error) == Cause::Locked && !deadline.is_over() =>
                {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Err(obstacle) => return Err(self.explain(obstacle)),
                Ok((connection, opened)) => {
                    let failed = |error: StoreError| SqliteOpenError::Failed {
                        path: leases_file::path(&self.path.display().to_string()).into(),
                        source: error.into(),
                    };
                    opened.leases.connect().await.map_err(failed)?;
                    return Ok((connection, opened));
                }
            }
        }
    }

    async fn try_connect(&self) -> Result<(SqliteConnection, Opened), Obstacle> {
        create_private(&self.path);
        let mut connection = self.connect_options().create_if_missing(true).connect().await?;
        #[cfg(test)]
        if let Some(pages) = self.max_pages {
            sqlx::raw_sql(sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {pages}")))
                .execute(&mut connection)
                .await?;
        }
        let mode: String = sqlx::query_scalar("PRAGMA journal_mode = WAL").fetch_one(&mut connection).await?;
        if mode != "wal" {
            return Err(Obstacle::NoWal);
        }
        let (database, clock) = self.migrate(&mut connection).await?;
        let synchronous = match sqlx::query_scalar("PRAGMA synchronous").fetch_one(&mut connection).await? {
            2_i64 | 3 => SqliteSynchronous::Full,
            _ => SqliteSynchronous::Normal,
        };
        let options = self.leases_options(&leases_file::path(&database));
        let leases = Arc::new(Leases::new(options, &database, clock, self.busy_timeout));
        Ok((connection, Opened { synchronous, clock, leases, file: Arc::new(DatabaseFile::new(&database)) }))
    }

    /// Creates or updates the tables. Returns the path of the database and its clock. If the connection is dropped
    /// halfway, SQLite rolls back.
    async fn migrate(&self, connection: &mut SqliteConnection) -> Result<(String, Clock), Obstacle> {
        connection.execute("BEGIN IMMEDIATE").await?;
        if sqlx::query(tables::EXISTS).fetch_optional(&mut *connection).await?.is_none() {
            execute_all(connection, tables::CREATE).await?;
        } else {
            match sqlx::query_scalar::<_, i64>(tables::STORED_VERSION).fetch_optional(&mut *connection).await? {
                Some(tables::VERSION) => connection.execute(tables::TOUCH).await.map(drop)?,
                Some(1) => execute_all(connection, tables::FROM_1).await?,
                Some(version) if version > tables::VERSION => return Err(Obstacle::NewerSchema(version)),
                Some(_) | None => return Err(Obstacle::NoVersion),
            }
        }
        let clock = Clock::of_file(connection).await?;
        #[cfg(test)]
        let clock = self.clock.unwrap_or(clock);
        let database = leases_file::path_of_database(connection).await?;
        let path = leases_file::path(&database);
        let settled = leases_file::settle(connection, &database, self.leases_options(&path), clock).await;
        settled.map_err(|error| Obstacle::Leases(path.into(), error))?;
        connection.execute("COMMIT").await?;
        Ok((database, clock))
    }

    /// Returns the options of the file of leases. Leases need not survive a loss of power, because the processes that
    /// hold them do not survive it either.
    fn leases_options(&self, path: &str) -> SqliteConnectOptions {
        let options = self.connect_options().filename(path).create_if_missing(false);
        options.synchronous(sqlx::sqlite::SqliteSynchronous::Normal).pragma("fullfsync", "OFF")
    }

    pub(super) fn connect_options(&self) -> SqliteConnectOptions {
        let full = self.synchronous == SqliteSynchronous::Full;
        SqliteConnectOptions::new()
            .filename(&self.path)
            .busy_timeout(self.busy_timeout)
            .synchronous(if full {
                sqlx::sqlite::SqliteSynchronous::Full
            } else {
                sqlx::sqlite::SqliteSynchronous::Normal
            })
            // On macOS, `fsync` alone leaves the data in the disk's own cache. On other systems this does nothing.
            .pragma("fullfsync", if full { "ON" } else { "OFF" })
            // After a burst of large bodies, the log must shrink again.
            .pragma("journal_size_limit", "67108864")
            .thread_name(|id| format!("idempotent-sqlite-{id}"))
            .disable_statement_logging()
    }

    fn explain(&self, obstacle: Obstacle) -> SqliteOpenError {
        let (path, error) = match obstacle {
            Obstacle::NewerSchema(found) => {
                let path = self.path.clone();
                return SqliteOpenError::NewerSchema { path, found, supported: tables::VERSION };
            }
            Obstacle::NoVersion => {
                let source = "idempotency_schema names no version".into();
                return SqliteOpenError::Damaged { path: self.path.clone(), source };
            }
            Obstacle::NoWal => return SqliteOpenError::NoWriteAheadLog { path: self.path.clone() },
            Obstacle::Leases(path, error) if Cause::of(&error) == Cause::Corrupt => {
                return SqliteOpenError::DamagedLeases { path, source: error.into() };
            }
            Obstacle::Leases(path, error) => (path, error),
            Obstacle::Sqlite(error) => (self.path.clone(), error),
        };
        let cause = Cause::of(&error);
        let source = error.into();
        match cause {
            Cause::Corrupt => SqliteOpenError::Damaged { path, source },
            Cause::Full => SqliteOpenError::Full { path, source },
            Cause::Locked => SqliteOpenError::Locked { path, waited: self.busy_timeout, source },
            Cause::ReadOnly => SqliteOpenError::ReadOnly { path, source },
            Cause::CannotOpen if path.is_dir() => SqliteOpenError::Folder { path },
            Cause::CannotOpen => match path.parent() {
                Some(folder) if !folder.is_dir() => SqliteOpenError::MissingFolder { folder: folder.to_owned(), path },
                _ => match access(&path) {
                    Some(source) => SqliteOpenError::ReadOnly { path, source: source.into() },
                    None => SqliteOpenError::Failed { path, source },
                },
            },
            Cause::Short | Cause::Rejected | Cause::Other => SqliteOpenError::Failed { path, source },
        }
    }
}

/// The values that are known after the file was opened.
pub(super) struct Opened {
    pub(super) synchronous: SqliteSynchronous,
    pub(super) clock: Clock,
    pub(super) leases: Arc<Leases>,
    pub(super) file: Arc<DatabaseFile>,
}

async fn execute_all(connection: &mut SqliteConnection, texts: [&'static str; 2]) -> Result<(), sqlx::Error> {
    for text in texts {
        connection.execute(sqlx::raw_sql(text)).await?;
    }
    Ok(())
}

/// Returns whether the text is neither a URL such as `sqlite://idempotency.db` nor a name of a database in memory. Such
/// a text would become the name of a file.
fn is_path(path: &Path) -> bool {
    let text = path.to_string_lossy();
    !(text.is_empty() || text == ":memory:" || ["sqlite:", "file:"].iter().any(|scheme| text.starts_with(scheme)))
}

enum Obstacle {
    Sqlite(sqlx::Error),
    /// The file of leases at this path failed.
    Leases(PathBuf, sqlx::Error),
    NewerSchema(i64),
    NoVersion,
    NoWal,
}

impl From<sqlx::Error> for Obstacle {
    fn from(error: sqlx::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// Creates the file before SQLite does, for its owner alone. The files beside it get its rights.
#[cfg(unix)]
fn create_private(path: &Path) {
    use std::os::unix::fs::OpenOptionsExt as _;

    // If the file cannot be created, SQLite reports the reason. An existing file is not opened, for the reason given in
    // `access`.
    let _ = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
}

#[cfg(not(unix))]
fn create_private(_: &Path) {}

/// Returns the error if this process lacks the right to open the file.
fn access(path: &Path) -> Option<io::Error> {
    // An existing database is not opened: closing it would release the locks of all connections that this process has
    // on it.
    let error = if path.exists() {
        // This distinguishes a missing right from other causes, such as too many open files.
        path.parent().and_then(|folder| fs::read_dir(folder).err()).unwrap_or(io::ErrorKind::PermissionDenied.into())
    } else {
        match fs::OpenOptions::new().write(true).create_new(true).open(path) {
            Ok(_) => {
                let _ = fs::remove_file(path);
                return None;
            }
            Err(error) => error,
        }
    };
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem).then_some(error)
}
