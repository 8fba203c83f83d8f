//! A small number of connections that are each used for a moment.

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::store::error::StoreError;
use crate::store::sqlite::failure::store_error;
use crate::sync::{Mutex, lock};

/// This is not sqlx's own pool, which returns connections in a spawned task. That task dies with the runtime of the
/// caller.
pub(super) struct Connections {
    options: SqliteConnectOptions,
    /// The path of another file, which statements of the connections name `records`.
    attached: Option<String>,
    permits: Semaphore,
    idle: Mutex<Vec<SqliteConnection>>,
}

impl Connections {
    /// Allows at most `most` connections. There should be few, because each has a thread of its own in sqlx.
    pub(super) fn new(options: SqliteConnectOptions, most: usize) -> Self {
        Self { options, attached: None, permits: Semaphore::new(most), idle: Mutex::default() }
    }

    pub(super) fn attaching(self, path: String) -> Self {
        Self { attached: Some(path), ..self }
    }

    pub(super) async fn acquire(&self) -> Result<Acquired<'_>, StoreError> {
        let permit = self.permits.acquire().await.map_err(StoreError::unavailable)?;
        let idle = lock(&self.idle).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.connect().await.map_err(store_error)?,
        };
        Ok(Acquired { connections: self, connection, _permit: permit })
    }

    async fn connect(&self) -> Result<SqliteConnection, sqlx::Error> {
        let mut connection = self.options.connect().await?;
        if let Some(path) = &self.attached {
            sqlx::query("ATTACH ?1 AS records").bind(path).execute(&mut connection).await?;
        }
        Ok(connection)
    }

    /// Closes the idle connections.
    pub(super) async fn close(&self) {
        let idle = std::mem::take(&mut *lock(&self.idle));
        for connection in idle {
            if let Err(error) = connection.close().await {
                tracing::warn!(%error, "a connection of the SQLite store did not close cleanly; nothing is lost");
            }
        }
    }
}

/// A connection in use. It is closed if it is dropped instead of given back, because its query failed or its caller
/// went away: a statement may still run on it.
pub(super) struct Acquired<'a> {
    connections: &'a Connections,
    connection: SqliteConnection,
    _permit: SemaphorePermit<'a>,
}

impl Acquired<'_> {
    pub(super) fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.connection
    }

    pub(super) fn give_back(self) {
        lock(&self.connections.idle).push(self.connection);
    }
}
