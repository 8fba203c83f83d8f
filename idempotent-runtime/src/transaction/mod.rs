//! The handler's own transaction: its writes and the record of its response commit together, or not at all.
//!
//! ```text
//! Tx (extractor) ──joins──▶ Execution ──engine──▶ claim in a transaction ──▶ the handler writes through it
//!                                                                            └─▶ record inserted, COMMIT, response
//! ```

#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod connection;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod faults;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod open;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod slot;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod tx;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod watch;

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use self::connection::TxConnection;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) use self::open::{Begun, Doubtful, Open};
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) use self::slot::{TransactionClaim, TransactionalStore};
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub use self::tx::Tx;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) use self::watch::Failure;
use crate::policy::Isolation;
use crate::store::{BoundedStore, Claim, ClaimRequest, StoreError};
use crate::{Record, RecordKey, Refusal};

/// What the engine does with a handler's transaction, whatever its database is.
pub(crate) trait HandlerTransaction: Send + Sync {
    /// Begins it and claims the key in it; nothing is begun unless the claim is acquired.
    fn claim<'a>(
        &'a self,
        store: &'a BoundedStore,
        key: &'a RecordKey,
        request: ClaimRequest,
        isolation: Option<Isolation>,
    ) -> BoxFuture<'a, Result<Claim, TransactionError>>;

    /// Begins it for a request that has no key.
    fn begin<'a>(
        &'a self,
        store: &'a BoundedStore,
        isolation: Option<Isolation>,
    ) -> BoxFuture<'a, Result<(), TransactionError>>;

    /// Commits what the handler wrote, and the record with it, once it is proven that both are still in the transaction that
    /// was begun.
    fn commit<'a>(
        &'a self,
        store: &'a BoundedStore,
        recording: Option<&'a Recording>,
    ) -> BoxFuture<'a, Result<(), TransactionError>>;

    /// Undoes what the handler wrote.
    fn roll_back<'a>(&'a self, store: &'a BoundedStore) -> BoxFuture<'a, ()>;

    /// Whether the database has aborted it for the sake of another one. Where that was not seen, it counts as the cause of an
    /// answer that tells of a failure, in a handler that asks for isolation.
    fn met_a_conflict<'a>(&'a self, store: &'a BoundedStore, is_failure: bool) -> BoxFuture<'a, bool>;
}

/// The record of a claim that was made in a transaction.
pub(crate) struct Recording {
    pub(crate) key: RecordKey,
    pub(crate) request: ClaimRequest,
    pub(crate) record: Record,
    /// Whether somebody may be waiting for it in another process.
    #[cfg_attr(not(feature = "postgres"), allow(dead_code, reason = "SQLite has no way to tell another process"))]
    pub(crate) may_be_awaited: bool,
}

/// Why a handler's transaction could not be begun or committed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransactionError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "the handler takes a `Tx<{wanted}>`, but its store has {}: give the handler a store on that database",
        found.map_or_else(|| "no transactions".to_owned(), |found| format!("transactions of {found}"))
    )]
    WrongDatabase { wanted: &'static str, found: Option<&'static str> },
    #[error(
        "the handler did not give its `Tx` back: it must not outlive the handler, in another task or in the response"
    )]
    Kept,
    #[error(
        "a statement of the handler failed, so that its transaction cannot commit any more, and yet it answered with a \
         status that is recorded; let it answer with another one, or run what may fail in a savepoint: `tx.begin()`"
    )]
    Aborted,
    #[error(
        "the transaction ended while the handler ran: a handler must not send COMMIT or ROLLBACK itself, must not drop the \
         future of a nested `begin` half way, and must not go on after an error by which the database ends the transaction"
    )]
    Ended,
    #[error(
        "the handler has made its transaction read-only, so that its response cannot be recorded in it: remove `SET \
         TRANSACTION READ ONLY`"
    )]
    ReadOnly(#[source] StoreError),
    #[error("the database aborted the transaction, because it conflicts with another one")]
    Conflict(#[source] StoreError),
    #[error("another request has recorded its response under the key")]
    Overtaken,
    #[error("the transaction was rolled back")]
    RolledBack(#[source] StoreError),
    #[error("whether the transaction was committed could not be found out within {0:?}")]
    Unknown(Duration),
}

impl TransactionError {
    /// Whether the program must be changed before a retry can succeed.
    pub(crate) fn is_permanent(&self) -> bool {
        matches!(self, Self::WrongDatabase { .. } | Self::Kept | Self::Aborted | Self::Ended | Self::ReadOnly(_))
    }

    /// What the client is told.
    pub(crate) fn refusal(&self, unavailable: Refusal) -> Refusal {
        match self {
            Self::Conflict(_) => Refusal::TransactionConflict,
            error if error.is_permanent() => Refusal::TransactionFailed,
            _ => unavailable,
        }
    }
}

/// What a store answers when a statement has failed, so that the database only waits for the rollback.
#[derive(Debug, thiserror::Error)]
#[error("the transaction is aborted")]
pub(crate) struct Aborted;

/// What a store answers when the connection is not in the transaction that was begun, or not at its outermost level.
#[derive(Debug, thiserror::Error)]
#[error("the transaction has ended")]
pub(crate) struct Ended;

/// What a store answers when nothing can be written in the transaction, because the handler has said so.
#[derive(Debug, thiserror::Error)]
#[error("the transaction is read-only")]
pub(crate) struct ReadOnly(#[source] pub(crate) Box<dyn std::error::Error + Send + Sync>);

/// What a store answers when the database has aborted the transaction for the sake of another one.
#[derive(Debug, thiserror::Error)]
#[error("the transaction conflicts with another one")]
pub(crate) struct Conflict(#[source] pub(crate) Box<dyn std::error::Error + Send + Sync>);

/// The way from a store to the transactions of its database, for [`Tx`](crate::Tx); opaque.
///
/// A store that wraps one of this crate's stores hands on what that one's
/// [`Store::transactions`](crate::store::Store::transactions) returns.
#[derive(Clone)]
pub struct Transactions {
    pub(crate) database: &'static str,
    /// An `Arc<dyn TransactionalStore<DB>>`.
    pub(crate) store: Arc<dyn Any + Send + Sync>,
    pub(crate) holder: Arc<dyn Holder>,
    /// Those of a test.
    #[cfg_attr(
        not(any(feature = "postgres", feature = "sqlite")),
        allow(dead_code, reason = "there are no transactions")
    )]
    pub(crate) faults: Option<Arc<dyn TransactionFaults>>,
}

/// What a store tells of its transactions, whatever its database is.
pub(crate) trait Holder: Send + Sync {
    /// Whether a transaction holds the key: it stands in no row.
    fn holds<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<bool, StoreError>>;

    /// How many connections the pool has from which handlers get their transactions, where it is the application's own.
    fn connections(&self) -> Option<u32>;
}

/// Makes a transaction fail before a moment of its life.
pub(crate) trait TransactionFaults: Send + Sync {
    fn before(&self, moment: Moment) -> Option<StoreError>;
}

/// A moment in the life of a handler's transaction, for [`FaultyStore::fail_transactions`](crate::testing::FaultyStore::fail_transactions).
#[cfg_attr(not(feature = "testing"), allow(unreachable_pub, reason = "`testing` exports it"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Moment {
    /// Before it begins: the handler does not run.
    Begin,
    /// Before the record of its response is written: the handler has run, and nothing is kept.
    Record,
    /// Before it is committed: the handler has run, and nothing is kept.
    Commit,
}

impl fmt::Debug for Transactions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transactions").field("database", &self.database).finish_non_exhaustive()
    }
}

/// Tells whether an argument's type is a [`Tx`](crate::Tx): an inherent constant goes before that of the trait.
pub struct Argument<T>(std::marker::PhantomData<T>);

/// What holds for every other type.
pub trait OtherArgument {
    /// None.
    const DATABASE: Option<&'static str> = None;
}

impl<T> OtherArgument for Argument<T> {}

#[cfg(any(feature = "postgres", feature = "sqlite"))]
impl<DB: sqlx::Database> Argument<Tx<DB>> {
    /// As sqlx names it.
    pub const DATABASE: Option<&'static str> = Some(DB::NAME);
}
