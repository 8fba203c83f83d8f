//! The connections that only read.

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::store::error::StoreError;
use crate::store::sqlite::failure::store_error;
use crate::sync::{Mutex, lock};

/// Each has a thread of its own in sqlx, so there are few.
const READERS: usize = 4;

/// Not sqlx's own pool: that one gives connections back in a spawned task, which dies with the runtime of the caller.
pub(super) struct Readers {
    options: SqliteConnectOptions,
    permits: Semaphore,
    idle: Mutex<Vec<SqliteConnection>>,
}

impl Readers {
    pub(super) fn new(options: SqliteConnectOptions) -> Self {
        Self { options, permits: Semaphore::new(READERS), idle: Mutex::default() }
    }

    pub(super) async fn acquire(&self) -> Result<Reader<'_>, StoreError> {
        let permit = self.permits.acquire().await.map_err(StoreError::unavailable)?;
        let idle = lock(&self.idle).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.options.connect().await.map_err(store_error)?,
        };
        Ok(Reader { readers: self, connection, _permit: permit })
    }

    pub(super) async fn close(&self) {
        let idle = std::mem::take(&mut *lock(&self.idle));
        for connection in idle {
            if let Err(error) = connection.close().await {
                tracing::warn!(%error, "a reader of the SQLite store did not close cleanly");
            }
        }
    }
}

/// A connection on loan. One that is dropped instead of given back, because its query failed or its caller went away,
/// is closed: it may be in the middle of something.
pub(super) struct Reader<'a> {
    readers: &'a Readers,
    connection: SqliteConnection,
    _permit: SemaphorePermit<'a>,
}

impl Reader<'_> {
    pub(super) fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.connection
    }

    pub(super) fn give_back(self) {
        lock(&self.readers.idle).push(self.connection);
    }
}
