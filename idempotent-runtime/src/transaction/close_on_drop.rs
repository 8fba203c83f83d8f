//! A connection that must not return to its pool in its current state.

use std::ops::{Deref, DerefMut};

use sqlx::Database;
use sqlx::pool::PoolConnection;
// sqlx does not export the trait that counts the levels of a connection's transactions.
use sqlx_core::transaction::TransactionManager as _;
use tokio::runtime::Handle;

use crate::store::error::StoreError;
use crate::transaction::begun::{Begun, OUTERMOST};
use crate::transaction::error::Ended;

/// A connection in a state in which it must not return to its pool. The connection is closed when this value is
/// dropped, unless the connection was given back.
pub(crate) struct CloseOnDrop<DB: Database>(Option<PoolConnection<DB>>);

impl<DB: Database> CloseOnDrop<DB> {
    pub(crate) fn new(connection: PoolConnection<DB>) -> Self {
        Self(Some(connection))
    }

    pub(super) fn give_back(mut self, begun: &dyn Begun<DB>) {
        if let Some(connection) = self.0.take() {
            begun.give_back(connection);
        }
    }

    /// Closes the connection without a termination message, because that message could not be sent. The pool may open
    /// another connection at once.
    pub(super) fn abandon(mut self) {
        drop(self.0.take().map(PoolConnection::detach));
    }

    pub(super) async fn close(mut self) {
        if let Some(connection) = self.0.take() {
            // The work on this connection has already ended, so an error is irrelevant.
            let _ = connection.close().await;
        }
    }

    /// Rolls back before closing: a pooler would keep the server's connection, with its open transaction, for other
    /// clients.
    pub(super) async fn undo_and_close(mut self, begun: &dyn Begun<DB>) -> Result<(), StoreError> {
        let undone = begun.roll_back(&mut self).await;
        self.close().await;
        undone
    }

    pub(super) fn depth(&self) -> usize {
        DB::TransactionManager::get_transaction_depth(self)
    }

    /// Checks that the engine's own transaction is the innermost level. sqlx counts the levels of its transactions. If
    /// a nested `begin` is dropped while it runs, its future rolls back the enclosing level, which is the engine's
    /// transaction. If a nested transaction is leaked, the engine's COMMIT would only end a savepoint.
    pub(super) fn outermost(&self) -> Result<(), StoreError> {
        if self.depth() == OUTERMOST { Ok(()) } else { Err(StoreError::unavailable(Ended)) }
    }
}

impl<DB: Database> Deref for CloseOnDrop<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        self.0.as_ref().expect("it is neither given back nor closed")
    }
}

impl<DB: Database> DerefMut for CloseOnDrop<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        self.0.as_mut().expect("it is neither given back nor closed")
    }
}

impl<DB: Database> Drop for CloseOnDrop<DB> {
    fn drop(&mut self) {
        let Some(mut connection) = self.0.take() else { return };
        if Handle::try_current().is_ok() {
            connection.close_on_drop();
        } else {
            drop(connection.detach());
        }
    }
}
