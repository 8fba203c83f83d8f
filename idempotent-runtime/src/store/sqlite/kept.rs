//! The connection of handlers' transactions between two transactions.

use sqlx::pool::PoolConnection;
use sqlx::sqlite::Sqlite;

use crate::sync::{Mutex, lock};

/// The connection, unless the pool has it, or a transaction.
#[derive(Default)]
pub(super) struct Kept(Mutex<State>);

#[derive(Default)]
struct State {
    connection: Option<PoolConnection<Sqlite>>,
    is_closed: bool,
}

impl Kept {
    pub(super) fn take(&self) -> Option<PoolConnection<Sqlite>> {
        lock(&self.0).connection.take()
    }

    /// Keeps the connection. After [`close`](Self::close), returns it to its pool.
    pub(super) fn put(&self, connection: PoolConnection<Sqlite>) {
        let mut state = lock(&self.0);
        let returned = if state.is_closed { Some(connection) } else { state.connection.replace(connection) };
        // The pool's code must not run under the lock.
        drop(state);
        drop(returned);
    }

    /// Returns the connection to its pool, which waits for all its connections when it closes.
    pub(super) fn close(&self) {
        let mut state = lock(&self.0);
        state.is_closed = true;
        let returned = state.connection.take();
        drop(state);
        drop(returned);
    }
}
