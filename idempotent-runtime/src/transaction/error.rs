//! Why a handler's transaction could not be begun or committed.

use std::time::Duration;

use crate::rejection::problem::Rejection;
use crate::store::error::StoreError;

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
        "a statement of the handler failed, so its transaction cannot commit, but the handler answered with a recorded \
         status: answer with another status, or run a statement that may fail in a savepoint, `tx.begin()`"
    )]
    Aborted,
    #[error(
        "the transaction ended while the handler ran: a handler must not send COMMIT or ROLLBACK itself, must not drop the \
         future of a nested `begin` before it ends, and must not continue after an error that ends the transaction"
    )]
    Ended,
    #[error(
        "the handler has made its transaction read-only, so its response cannot be recorded there: remove `SET \
         TRANSACTION READ ONLY`"
    )]
    ReadOnly(#[source] StoreError),
    #[error(
        "a deferred constraint or trigger of the handler's transaction failed: let the handler check it before it answers, for \
         instance by `SET CONSTRAINTS ALL IMMEDIATE` in a savepoint on PostgreSQL"
    )]
    Violated(#[source] StoreError),
    #[error(
        "the transaction was committed while the handler ran, so its effects stay without a record: a handler must not \
         send COMMIT itself, and must begin savepoints by `tx.begin()` or `savepoint.begin()` only"
    )]
    Committed,
    #[error("the database aborted the transaction, because it conflicts with another one")]
    Conflict(#[source] StoreError),
    #[error(
        "an error that the engine did not see aborted the transaction: it counts as a conflict with another transaction, \
         because the handler has `isolation`; run the statement on `&mut *tx`, where the engine sees its error"
    )]
    Unseen,
    #[error("another request has recorded its response under the key")]
    Overtaken,
    #[error("the transaction was rolled back")]
    RolledBack(#[source] StoreError),
    #[error("it is unknown whether the transaction was committed: the database did not say within {0:?}")]
    Unknown(Duration),
}

impl TransactionError {
    /// Whether the program must be changed before a retry can succeed.
    pub(crate) fn is_permanent(&self) -> bool {
        matches!(
            self,
            Self::WrongDatabase { .. }
                | Self::Kept
                | Self::Aborted
                | Self::Ended
                | Self::ReadOnly(_)
                | Self::Violated(_)
                | Self::Committed
        )
    }

    /// The rejection that the client gets.
    pub(crate) fn rejection(&self, unavailable: Rejection) -> Rejection {
        match self {
            Self::Conflict(_) | Self::Unseen => Rejection::TransactionConflict,
            error if error.is_permanent() => Rejection::TransactionFailed,
            _ => unavailable,
        }
    }
}

/// Whether a store's error has one of the source types below.
#[cfg(feature = "__transactions")]
pub(super) fn is<E: std::error::Error + 'static>(error: &StoreError) -> bool {
    matches!(error, StoreError::Unavailable(source) if source.is::<E>())
}

/// The source of a store's error if a statement has failed, so that the database accepts only a rollback.
#[derive(Debug, thiserror::Error)]
#[error("the transaction is aborted")]
pub(crate) struct Aborted;

/// The source of a store's error if the connection is not in the transaction that was begun, or not at its outermost
/// level.
#[derive(Debug, thiserror::Error)]
#[error("the transaction has ended")]
pub(crate) struct Ended;

/// The source of a store's error if the connection of the transaction is dead, so that nothing of the transaction is
/// kept.
#[derive(Debug, thiserror::Error)]
#[error("the connection of the transaction no longer answers")]
pub(crate) struct Silent;

/// The source of a store's error if the handler has committed the transaction. The store has ensured that no retry runs
/// the handler again.
#[derive(Debug, thiserror::Error)]
#[error("the transaction was committed by its handler")]
pub(crate) struct Committed;

/// The source of a store's error if a constraint fails that was deferred to the end of the transaction.
#[derive(Debug, thiserror::Error)]
#[error("a deferred constraint has failed")]
pub(crate) struct Violated(#[source] pub(crate) Box<dyn std::error::Error + Send + Sync>);

/// The source of a store's error if the handler has made the transaction read-only.
#[derive(Debug, thiserror::Error)]
#[error("the transaction is read-only")]
pub(crate) struct ReadOnly(#[source] pub(crate) Box<dyn std::error::Error + Send + Sync>);

/// The source of a store's error if the database has aborted the transaction because of a conflict with another one.
#[derive(Debug, thiserror::Error)]
#[error("the transaction conflicts with another one")]
pub(crate) struct Conflict(#[source] pub(crate) Box<dyn std::error::Error + Send + Sync>);
