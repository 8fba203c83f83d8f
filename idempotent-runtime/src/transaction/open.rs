//! A transaction that has begun. Its pool gets the connection back only in the state in which it was handed out.

use std::any::Any;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use sqlx::{Database, Transaction};
// sqlx does not export the trait that counts the levels of a connection's transactions.
use sqlx_core::transaction::TransactionManager as _;
use tokio::runtime::Handle;

use crate::policy::values::Isolation;
use crate::store::error::StoreError;
use crate::transaction::begun::Begun;
use crate::transaction::close_on_drop::CloseOnDrop;
use crate::transaction::error::{Ended, Silent, is};
use crate::transaction::levels::{End, Level, Levels};
use crate::transaction::watch::{Seen, Watch, silent};

/// A transaction that has begun. Dropping it rolls it back.
pub(crate) struct Open<DB: Database>(Option<Inner<DB>>);

struct Inner<DB: Database> {
    source: Source<DB>,
    seen: Seen,
    levels: Levels,
    /// The lock by which the store excludes other transactions. The lock is dropped after the transaction.
    hold: Box<dyn Any + Send + Sync>,
}

/// A connection that is in its transaction, with what the engine has observed on it.
pub(super) struct WatchedConnection<'a, DB: Database> {
    pub(super) connection: &'a mut DB::Connection,
    pub(super) watch: Watch<'a, DB>,
    pub(super) levels: &'a mut Levels,
}

const HAS_ENDED: &str = "the transaction of this handler has ended, and nothing that it writes is kept: it must await a nested \
     `begin` to its end, and must not go on after an error by which the database ends the transaction";

enum Source<DB: Database> {
    Begun(CloseOnDrop<DB>, Arc<dyn Begun<DB>>),
    /// The transaction of a unit test that calls the handler.
    Given(Transaction<'static, DB>),
}

impl<DB: Database> Open<DB> {
    pub(crate) fn new(
        connection: CloseOnDrop<DB>,
        begun: Arc<dyn Begun<DB>>,
        hold: Box<dyn Any + Send + Sync>,
    ) -> Self {
        Self(Some(Inner {
            source: Source::Begun(connection, begun),
            seen: Seen::default(),
            levels: Levels::default(),
            hold,
        }))
    }

    pub(super) fn given(transaction: Transaction<'static, DB>) -> Self {
        Self(Some(Inner {
            source: Source::Given(transaction),
            seen: Seen::default(),
            levels: Levels::default(),
            hold: Box::new(()),
        }))
    }

    /// Adds a lock that excludes other transactions.
    #[cfg_attr(not(feature = "sqlite"), allow(dead_code, reason = "PostgreSQL's transaction holds its key itself"))]
    pub(crate) fn holding(mut self, more: impl Any + Send + Sync) -> Self {
        let inner = self.inner_mut();
        let hold = std::mem::replace(&mut inner.hold, Box::new(()));
        inner.hold = Box::new((hold, more));
        self
    }

    /// Sets the isolation level of the handler's policy.
    pub(super) fn isolated(mut self, isolation: Option<Isolation>) -> Self {
        self.inner_mut().seen.isolation = isolation;
        self
    }

    pub(super) fn seen(&self) -> &Seen {
        &self.0.as_ref().expect("it has not ended").seen
    }

    /// Returns the connection for one statement of the handler, and observes the statement's error.
    ///
    /// # Errors
    ///
    /// If the transaction has ended, because the statement would then commit by itself. Also if the connection is dead.
    pub(super) fn watched(&mut self) -> Result<WatchedConnection<'_, DB>, sqlx::Error> {
        let Inner { source, seen, levels, .. } = self.inner_mut();
        if seen.is_silent() {
            return Err(silent());
        }
        let watched = match source {
            Source::Begun(connection, begun) if begun.has_ended(connection, levels.depth()) => return Err(has_ended()),
            Source::Begun(connection, begun) => WatchedConnection {
                connection: &mut **connection,
                watch: Watch { seen, begun: Some(&**begun) },
                levels,
            },
            Source::Given(transaction) => {
                WatchedConnection { connection: &mut **transaction, watch: Watch { seen, begun: None }, levels }
            }
        };
        if watched.levels.are_lost { Err(has_ended()) } else { Ok(watched) }
    }

    /// Begins a savepoint. The transaction counts as ended until the savepoint is known to have begun.
    pub(super) async fn begin_level(&mut self) -> Result<Level, sqlx::Error> {
        let WatchedConnection { connection, mut watch, levels } = self.watched()?;
        levels.are_lost = true;
        levels.were_used = true;
        watch.answer(DB::TransactionManager::begin(connection, None)).await?;
        levels.are_lost = false;
        levels.open += 1;
        Ok(Level { number: levels.open, failure: watch.seen.failure })
    }

    /// Ends the innermost savepoint. After an error of the database, the savepoint is still open.
    pub(super) async fn end_level(&mut self, level: &Level, end: End) -> Result<(), sqlx::Error> {
        let WatchedConnection { connection, mut watch, levels } = self.watched_in(level)?;
        levels.are_lost = true;
        let ended = match end {
            End::Commit => watch.answer(DB::TransactionManager::commit(connection)).await,
            End::RollBack => watch.answer(DB::TransactionManager::rollback(connection)).await,
        };
        levels.are_lost = false;
        ended?;
        levels.open -= 1;
        if let End::RollBack = end {
            watch.seen.roll_back_to(level.failure);
        }
        Ok(())
    }

    /// Queues the rollback of the innermost savepoint, which runs before the next statement.
    pub(super) fn drop_level(&mut self, level: &Level) {
        if let Ok(WatchedConnection { connection, watch, levels }) = self.watched_in(level) {
            DB::TransactionManager::start_rollback(connection);
            levels.open -= 1;
            watch.seen.roll_back_to(level.failure);
        }
    }

    /// Like [`watched`](Self::watched), for a savepoint. If the savepoint is not the innermost one, the transaction
    /// counts as ended.
    fn watched_in(&mut self, level: &Level) -> Result<WatchedConnection<'_, DB>, sqlx::Error> {
        let is_innermost = self.inner_mut().levels.open == level.number;
        if !is_innermost || self.watched().is_err() {
            self.inner_mut().levels.are_lost = true;
        }
        self.watched()
    }

    /// Returns the connection itself for the handler's use. The engine does not see errors of statements on this
    /// connection.
    pub(super) fn connection_mut(&mut self) -> &mut DB::Connection {
        let Inner { source, seen, levels, .. } = self.inner_mut();
        seen.note_direct_use();
        match source {
            Source::Begun(connection, begun) => {
                begun.note_direct_use();
                levels.are_lost |= connection.depth() < levels.depth();
                if levels.are_lost {
                    begun.close_off(connection);
                }
                connection
            }
            Source::Given(transaction) => transaction,
        }
    }

    pub(super) async fn prove(&mut self) -> Result<(), StoreError> {
        let inner = self.inner_mut();
        inner.catch_up().await?;
        let Inner { source: Source::Begun(connection, begun), levels, .. } = inner else { return Ok(()) };
        let proven = begun.prove(connection).await;
        levels.are_lost |= proven.as_ref().is_err_and(is::<Ended>);
        proven
    }

    /// Commits the transaction. After an error, its outcome is unknown, and its connection is closed.
    pub(crate) async fn commit(mut self) -> Result<(), StoreError> {
        match self.0.take() {
            Some(Inner { source: Source::Begun(mut connection, begun), hold, .. }) => {
                connection.outermost()?;
                let committed = begun.commit(&mut connection).await;
                if committed.is_ok() && begun.is_over(&connection) {
                    connection.give_back(&*begun);
                } else {
                    let _ = connection.undo_and_close(&*begun).await;
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

    /// Ends this value after the store has committed the transaction.
    pub(super) async fn committed(mut self) {
        let Some(Inner { source: Source::Begun(connection, begun), hold, .. }) = self.0.take() else { return };
        if begun.is_over(&connection) {
            connection.give_back(&*begun);
        } else {
            connection.close().await;
        }
        drop(hold);
    }

    /// Rolls the transaction back. If the rollback fails, the connection is closed, which rolls the transaction back
    /// too.
    pub(crate) async fn roll_back(mut self) -> Result<(), StoreError> {
        match self.0.take() {
            Some(inner) => inner.roll_back().await,
            None => Ok(()),
        }
    }

    fn inner_mut(&mut self) -> &mut Inner<DB> {
        self.0.as_mut().expect("it has not ended")
    }
}

fn has_ended() -> sqlx::Error {
    sqlx::Error::InvalidArgument(HAS_ENDED.to_owned())
}

impl<DB: Database> Inner<DB> {
    /// Waits until everything that the handler has queued is done. Fails if the handler has lost its transaction, as
    /// far as sqlx's count of the levels shows.
    async fn catch_up(&mut self) -> Result<(), StoreError> {
        let Self { source: Source::Begun(connection, begun), seen, levels, .. } = self else { return Ok(()) };
        if seen.is_silent() {
            return Err(StoreError::unavailable(Silent));
        }
        if seen.is_used_directly() || levels.were_used {
            begun.catch_up(connection).await?;
        }
        if levels.are_lost { Err(StoreError::unavailable(Ended)) } else { connection.outermost() }
    }

    async fn roll_back(mut self) -> Result<(), StoreError> {
        let caught_up = self.catch_up().await;
        let Self { source, seen, hold, .. } = self;
        let (mut connection, begun) = match source {
            Source::Begun(connection, begun) => (connection, begun),
            Source::Given(transaction) => return transaction.rollback().await.map_err(StoreError::unavailable),
        };
        if seen.is_silent() {
            connection.abandon();
            let found_out = begun.find_out().await;
            drop(hold);
            return found_out;
        }
        let undone = match caught_up {
            Ok(()) => begun.roll_back(&mut connection).await,
            Err(ended) => {
                let undone = connection.undo_and_close(&*begun).await;
                drop(hold);
                return undone.and(Err(ended));
            }
        };
        match undone {
            Ok(()) => connection.give_back(&*begun),
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
        // Without a runtime, the connection is closed when `inner` is dropped.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(inner.roll_back());
        }
    }
}
