//! A transaction that has begun, on a connection that its pool gets back only in the state in which it was lent.

use std::any::Any;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use sqlx::pool::PoolConnection;
use sqlx::{Database, Transaction};
// sqlx does not export what counts the levels of a connection's transactions.
use sqlx_core::transaction::TransactionManager as _;
use tokio::runtime::Handle;

use crate::policy::values::Isolation;
use crate::store::error::StoreError;
use crate::transaction::begun::{Begun, OUTERMOST};
use crate::transaction::error::Ended;
use crate::transaction::watch::{Seen, Watch};

/// A transaction that has begun. Dropping it rolls it back.
pub(crate) struct Open<DB: Database>(Option<Inner<DB>>);

struct Inner<DB: Database> {
    source: Source<DB>,
    seen: Seen,
    /// What the store keeps others out with; dropped after the transaction.
    hold: Box<dyn Any + Send + Sync>,
}

const HAS_ENDED: &str = "the transaction of this handler has ended, and nothing that it writes is kept: it must await a nested \
     `begin` to its end, and must not go on after an error by which the database ends the transaction";

enum Source<DB: Database> {
    Begun(Doubtful<DB>, Arc<dyn Begun<DB>>),
    /// Of a unit test that calls the handler.
    Given(Transaction<'static, DB>),
}

impl<DB: Database> Open<DB> {
    pub(crate) fn new(connection: Doubtful<DB>, begun: Arc<dyn Begun<DB>>, hold: Box<dyn Any + Send + Sync>) -> Self {
        Self(Some(Inner { source: Source::Begun(connection, begun), seen: Seen::default(), hold }))
    }

    pub(super) fn given(transaction: Transaction<'static, DB>) -> Self {
        Self(Some(Inner { source: Source::Given(transaction), seen: Seen::default(), hold: Box::new(()) }))
    }

    /// Adds to what keeps others out.
    pub(crate) fn holding(mut self, more: impl Any + Send + Sync) -> Self {
        let inner = self.inner_mut();
        let hold = std::mem::replace(&mut inner.hold, Box::new(()));
        inner.hold = Box::new((hold, more));
        self
    }

    /// For the handler whose policy asks for this.
    pub(super) fn isolated(mut self, isolation: Option<Isolation>) -> Self {
        self.inner_mut().seen.isolation = isolation;
        self
    }

    pub(super) fn seen(&self) -> &Seen {
        &self.0.as_ref().expect("it has not ended").seen
    }

    /// For one statement of the handler, whose error is seen.
    ///
    /// # Errors
    ///
    /// When the transaction has ended: what follows would commit by itself.
    pub(super) fn watched(&mut self) -> Result<(&mut DB::Connection, Watch<'_, DB>), sqlx::Error> {
        let Inner { source, seen, .. } = self.inner_mut();
        match source {
            Source::Begun(connection, begun) if begun.has_ended(connection) => {
                Err(sqlx::Error::InvalidArgument(HAS_ENDED.to_owned()))
            }
            Source::Begun(connection, begun) => Ok((connection, Watch { seen, begun: Some(&**begun) })),
            Source::Given(transaction) => Ok((transaction, Watch { seen, begun: None })),
        }
    }

    /// For what the handler does with the connection itself.
    pub(super) fn lend(&mut self) -> &mut DB::Connection {
        let Inner { source, seen, .. } = self.inner_mut();
        seen.lend();
        match source {
            Source::Begun(connection, begun) => {
                if connection.depth() < OUTERMOST {
                    begun.close_off(connection);
                }
                connection
            }
            Source::Given(transaction) => transaction,
        }
    }

    pub(super) async fn prove(&mut self) -> Result<(), StoreError> {
        let Inner { source: Source::Begun(connection, begun), seen, .. } = self.inner_mut() else { return Ok(()) };
        if seen.is_lent() {
            begun.catch_up(connection).await?;
        }
        connection.outermost()?;
        begun.prove(connection).await
    }

    /// On an error, nothing is known of the transaction, and its connection is closed.
    pub(crate) async fn commit(mut self) -> Result<(), StoreError> {
        match self.0.take() {
            Some(Inner { source: Source::Begun(mut connection, begun), hold, .. }) => {
                connection.outermost()?;
                let committed = begun.commit(&mut connection).await;
                if committed.is_ok() && connection.depth() == 0 {
                    connection.give_back();
                } else {
                    connection.undo_and_close(&*begun).await;
                }
                drop(hold);
                committed
            }
            Some(Inner { source: Source::Given(transaction), .. }) => {
                transaction.commit().await.map_err(StoreError::unavailable)
            }
            None => Ok(()),
        }
    }

    /// What cannot be rolled back is so when its connection closes.
    pub(crate) async fn roll_back(mut self) -> Result<(), StoreError> {
        match self.0.take() {
            Some(inner) => inner.roll_back().await,
            None => Ok(()),
        }
    }

    /// The connection is closed: no other request may meet it in the state in which it is.
    pub(super) async fn discard(mut self) {
        if let Some(Inner { source: Source::Begun(connection, begun), hold, .. }) = self.0.take() {
            connection.undo_and_close(&*begun).await;
            drop(hold);
        }
    }

    fn inner_mut(&mut self) -> &mut Inner<DB> {
        self.0.as_mut().expect("it has not ended")
    }
}

impl<DB: Database> Inner<DB> {
    async fn roll_back(self) -> Result<(), StoreError> {
        let Self { source, seen, hold } = self;
        let (mut connection, begun) = match source {
            Source::Begun(connection, begun) => (connection, begun),
            Source::Given(transaction) => return transaction.rollback().await.map_err(StoreError::unavailable),
        };
        let caught_up = if seen.is_lent() { begun.catch_up(&mut connection).await } else { Ok(()) };
        let undone = match caught_up.and_then(|()| connection.outermost()) {
            Ok(()) => begun.roll_back(&mut connection).await,
            Err(ended) => {
                connection.undo_and_close(&*begun).await;
                drop(hold);
                return Err(ended);
            }
        };
        match undone {
            Ok(()) => connection.give_back(),
            Err(_) => connection.close().await,
        }
        drop(hold);
        undone
    }
}

impl<DB: Database> Deref for Open<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        match &self.0.as_ref().expect("it has not ended").source {
            Source::Begun(connection, _) => connection,
            Source::Given(transaction) => transaction,
        }
    }
}

impl<DB: Database> DerefMut for Open<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        match &mut self.inner_mut().source {
            Source::Begun(connection, _) => connection,
            Source::Given(transaction) => transaction,
        }
    }
}

impl<DB: Database> Drop for Open<DB> {
    fn drop(&mut self) {
        let Some(inner) = self.0.take_if(|inner| matches!(inner.source, Source::Begun(..))) else { return };
        // Without a runtime, the connection closes with `inner`.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(inner.roll_back());
        }
    }
}

/// A connection in a state that its pool must not get: unless it is given back, it is closed.
pub(crate) struct Doubtful<DB: Database>(Option<PoolConnection<DB>>);

impl<DB: Database> Doubtful<DB> {
    pub(crate) fn new(connection: PoolConnection<DB>) -> Self {
        Self(Some(connection))
    }

    pub(crate) fn give_back(mut self) {
        drop(self.0.take());
    }

    async fn close(mut self) {
        if let Some(connection) = self.0.take() {
            // What it was used for has ended in one way or another.
            let _ = connection.close().await;
        }
    }

    /// Closing it would be enough, but for a pooler between: it keeps the connection to the server, in the state in which it
    /// is, for others.
    async fn undo_and_close(mut self, begun: &dyn Begun<DB>) {
        let _ = begun.roll_back(&mut self).await;
        self.close().await;
    }

    fn depth(&self) -> usize {
        DB::TransactionManager::get_transaction_depth(self)
    }

    /// sqlx counts the levels of its own transactions. A future of a nested `begin` that is dropped half way rolls back the
    /// level around it, which is ours; one that is forgotten would make a COMMIT of ours the end of a savepoint.
    fn outermost(&self) -> Result<(), StoreError> {
        if self.depth() == OUTERMOST { Ok(()) } else { Err(StoreError::unavailable(Ended)) }
    }
}

impl<DB: Database> Deref for Doubtful<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        self.0.as_ref().expect("it is neither given back nor closed")
    }
}

impl<DB: Database> DerefMut for Doubtful<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        self.0.as_mut().expect("it is neither given back nor closed")
    }
}

impl<DB: Database> Drop for Doubtful<DB> {
    fn drop(&mut self) {
        let Some(mut connection) = self.0.take() else { return };
        if Handle::try_current().is_ok() {
            connection.close_on_drop();
        } else {
            drop(connection.detach());
        }
    }
}
