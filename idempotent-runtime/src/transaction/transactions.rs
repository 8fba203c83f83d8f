//! Access to the transactions of a store's database.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::key::RecordKey;
use crate::policy::values::Isolation;
use crate::record::Record;
use crate::store::claim::ClaimRequest;
use crate::store::error::StoreError;
use crate::sync::tokio::time::Instant;

/// What is recorded for a claim that was made in a transaction.
pub(crate) struct Recording {
    pub(crate) key: RecordKey,
    pub(crate) request: ClaimRequest,
    pub(crate) record: Record,
    /// Whether requests in other processes may wait for it.
    #[cfg_attr(not(feature = "postgres"), allow(dead_code, reason = "SQLite has no way to tell another process"))]
    pub(crate) may_be_awaited: bool,
}

/// What a claim in a transaction asks for.
#[cfg_attr(not(feature = "__transactions"), allow(dead_code, reason = "there are no transactions"))]
pub(crate) struct TxClaimRequest<'a> {
    pub(crate) key: &'a RecordKey,
    pub(crate) request: ClaimRequest,
    pub(crate) isolation: Option<Isolation>,
    /// Recorded if the handler commits the transaction itself.
    #[cfg_attr(not(feature = "postgres"), allow(dead_code, reason = "only PostgreSQL records it"))]
    pub(crate) without_response: Record,
}

/// Access to the transactions of a store's database, for [`Tx`](crate::Tx); opaque.
///
/// A store that wraps one of this crate's stores returns the result of the inner store's
/// [`Store::transactions`](crate::store::Store::transactions).
#[derive(Clone)]
pub struct Transactions {
    pub(crate) database: &'static str,
    /// An `Arc<dyn TransactionalStore<DB>>`.
    pub(crate) store: Arc<dyn Any + Send + Sync>,
    pub(crate) holder: Arc<dyn Holder>,
    /// The faults of a test.
    #[cfg_attr(not(feature = "__transactions"), allow(dead_code, reason = "there are no transactions"))]
    pub(crate) faults: Option<Arc<dyn TransactionFaults>>,
    /// Keeps the committed records in memory, if the store does that.
    #[cfg_attr(not(feature = "__transactions"), allow(dead_code, reason = "there are no transactions"))]
    pub(crate) records: Option<Arc<dyn CommittedRecords>>,
}

/// The transactions of a store, for every database.
pub(crate) trait Holder: Send + Sync {
    /// Whether an open transaction holds the key. Such a key has no row yet.
    fn holds<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<bool, StoreError>>;

    /// The size of the pool from which handlers get their transactions, if the pool is the application's own.
    fn connections(&self) -> Option<u32>;
}

/// Keeps the records of committed transactions, and answers claims with them.
pub(crate) trait CommittedRecords: Send + Sync {
    /// The record of the key, if it can be replayed without a query.
    fn at_hand(&self, key: &RecordKey) -> Option<Record>;

    /// Keeps a record whose COMMIT has succeeded. The COMMIT was sent at `asked_at`.
    fn committed(&self, recording: &Recording, asked_at: Instant);
}

/// Makes a transaction fail before a phase.
pub(crate) trait TransactionFaults: Send + Sync {
    fn before(&self, phase: TransactionPhase) -> Option<StoreError>;
}

/// A phase of a handler's transaction, for [`FaultyStore::fail_transactions`](crate::testing::FaultyStore::fail_transactions).
#[cfg_attr(not(feature = "testing"), allow(unreachable_pub, reason = "`testing` exports it"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TransactionPhase {
    /// Before the transaction begins: the handler does not run.
    Begin,
    /// Before the record of the response is written: the handler has run, and nothing is kept.
    Record,
    /// Before the transaction is committed: the handler has run, and nothing is kept.
    Commit,
}

impl fmt::Debug for Transactions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transactions").field("database", &self.database).finish_non_exhaustive()
    }
}
