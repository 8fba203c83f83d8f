//! Opens a store: its file, its connections and the thread that writes.

use std::path::Path;
use std::sync::Arc;

use crate::store::sqlite::connections::Connections;
use crate::store::sqlite::handler_transactions::{HandlerTransactions, Turn};
use crate::store::sqlite::open::{Opened, SqliteStoreBuilder};
use crate::store::sqlite::open_error::SqliteOpenError;
use crate::store::sqlite::store::{Inner, SqliteStore};
use crate::store::sqlite::writer::{Others, Writer};

const READERS: usize = 4;

impl SqliteStoreBuilder {
    /// Opens the file, and creates it if it does not exist.
    ///
    /// # Errors
    ///
    /// [`SqliteOpenError`] names the path and what to do.
    ///
    /// # Cancel safety
    ///
    /// The store's own thread opens the file, so the file may exist after the future is dropped. Its tables are created or updated
    /// in one transaction. The thread then ends.
    pub async fn open(self) -> Result<SqliteStore, SqliteOpenError> {
        if let Some(path) = self.no_path {
            return Err(SqliteOpenError::NoPath { path });
        }
        let reading = self.connect_options().create_if_missing(false).pragma("query_only", "ON");
        let readers = Arc::new(Connections::new(reading, READERS));
        let turn = Turn::default();
        let transactions = HandlerTransactions::new(self.connect_options(), Arc::clone(&turn));
        let others = Others { readers: Arc::clone(&readers), transactions: transactions.connection() };
        let (writer, Opened { synchronous, clock, leases, file }) = Writer::start(self.clone(), turn, others).await?;
        let given_back = Arc::default();
        Ok(SqliteStore(Arc::new(Inner {
            options: self,
            synchronous,
            clock,
            file,
            readers,
            leases,
            transactions,
            writer,
            given_back,
        })))
    }
}

impl SqliteStore {
    /// Opens the file with the default options, and creates it if it does not exist.
    ///
    /// # Errors
    ///
    /// [`SqliteOpenError`] names the path and what to do.
    ///
    /// # Cancel safety
    ///
    /// The same as that of [`SqliteStoreBuilder::open`].
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, SqliteOpenError> {
        Self::builder(path).open().await
    }

    /// Returns a builder for a store in this file.
    pub fn builder(path: impl AsRef<Path>) -> SqliteStoreBuilder {
        SqliteStoreBuilder::new(path.as_ref())
    }
}
