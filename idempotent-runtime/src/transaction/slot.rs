//! Where the transaction lies while the handler does not use it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::Database;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::key::RecordKey;
use crate::observe::op::Op;
use crate::policy::values::Isolation;
use crate::store::claim::{Claim, ClaimRequest, Held, Token};
use crate::store::error::StoreError;
use crate::store::handle::StoreHandle;
use crate::sync::{Mutex, lock};
use crate::transaction::contract::HandlerTransaction;
use crate::transaction::error::{Aborted, Conflict, Ended, ReadOnly, TransactionError};
use crate::transaction::faults::Faults;
use crate::transaction::open::Open;
use crate::transaction::transactions::{CommittedRecords, Holder, Recording, TransactionPhase, Transactions};

/// A store whose records can be written in the handler's transaction.
pub(crate) trait TransactionalStore<DB: Database>: Send + Sync + 'static {
    /// Begins a transaction.
    fn begin(&self, isolation: Option<Isolation>) -> BoxFuture<'_, Result<Open<DB>, StoreError>>;

    /// Claims the key for the life of a transaction: no other request gets it before the transaction ends.
    fn claim<'a>(
        &'a self,
        key: &'a RecordKey,
        request: ClaimRequest,
        isolation: Option<Isolation>,
    ) -> BoxFuture<'a, Result<TransactionClaim<DB>, StoreError>>;

    /// Writes the record; [`Held::No`] if the key has another entry by now.
    fn record<'a>(
        &'a self,
        open: &'a mut Open<DB>,
        recording: &'a Recording,
    ) -> BoxFuture<'a, Result<Held, StoreError>>;

    /// Whether the key has the record of `token`; an error as long as its transaction may not have ended.
    fn is_recorded<'a>(&'a self, key: &'a RecordKey, token: Token) -> BoxFuture<'a, Result<bool, StoreError>>;
}

pub(crate) enum TransactionClaim<DB: Database> {
    Acquired { attempt: u32, open: Open<DB> },
    Existing(Claim),
}

impl Transactions {
    pub(crate) fn of<DB: Database, S: TransactionalStore<DB> + Holder>(store: Arc<S>) -> Self {
        let holder: Arc<dyn Holder> = store.clone();
        let store: Arc<dyn TransactionalStore<DB>> = store;
        Self { database: DB::NAME, store: Arc::new(store), holder, faults: None, records: None }
    }
}

pub(crate) struct Slot<DB: Database>(Mutex<Option<Open<DB>>>);

impl<DB: Database> Default for Slot<DB> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<DB: Database> Slot<DB> {
    pub(super) fn put(&self, open: Open<DB>) {
        *lock(&self.0) = Some(open);
    }

    fn take(&self) -> Option<Open<DB>> {
        lock(&self.0).take()
    }

    pub(super) fn take_begun(&self) -> Open<DB> {
        self.take().expect("the transaction has begun: `Tx` is used in the body of a handler with `#[idempotent]`")
    }

    fn transactions(store: &StoreHandle) -> Result<Found<DB>, TransactionError> {
        let wrong = |found| TransactionError::WrongDatabase { wanted: DB::NAME, found };
        let Transactions { database, store, faults, records, .. } = store.transactions().ok_or(wrong(None))?;
        match store.downcast_ref::<Arc<dyn TransactionalStore<DB>>>() {
            Some(transactions) => Ok(Found { transactions: transactions.clone(), faults: Faults(faults), records }),
            None => Err(wrong(Some(database))),
        }
    }
}

/// The transactions of a store whose database is this one.
struct Found<DB: Database> {
    transactions: Arc<dyn TransactionalStore<DB>>,
    faults: Faults,
    records: Option<Arc<dyn CommittedRecords>>,
}

impl<DB: Database> HandlerTransaction for Slot<DB> {
    fn claim<'a>(
        &'a self,
        store: &'a StoreHandle,
        key: &'a RecordKey,
        request: ClaimRequest,
        isolation: Option<Isolation>,
    ) -> BoxFuture<'a, Result<Claim, TransactionError>> {
        Box::pin(async move {
            let Found { transactions, faults, records } = Self::transactions(store)?;
            if let Some(record) = records.and_then(|records| records.at_hand(key)) {
                return Ok(Claim::Completed(record));
            }
            let claiming = async {
                faults.meet(TransactionPhase::Begin)?;
                transactions.claim(key, request, isolation).await
            };
            match store.bounded_begin(Op::Claim, claiming).await? {
                TransactionClaim::Existing(claim) => Ok(claim),
                TransactionClaim::Acquired { attempt, open } => {
                    self.put(open.isolated(isolation));
                    Ok(Claim::Acquired { attempt })
                }
            }
        })
    }

    fn begin<'a>(
        &'a self,
        store: &'a StoreHandle,
        isolation: Option<Isolation>,
    ) -> BoxFuture<'a, Result<(), TransactionError>> {
        Box::pin(async move {
            let Found { transactions, faults, .. } = Self::transactions(store)?;
            let beginning = async {
                faults.meet(TransactionPhase::Begin)?;
                transactions.begin(isolation).await
            };
            self.put(store.bounded_begin(Op::Begin, beginning).await?.isolated(isolation));
            Ok(())
        })
    }

    fn commit<'a>(
        &'a self,
        store: &'a StoreHandle,
        recording: Option<&'a Recording>,
    ) -> BoxFuture<'a, Result<(), TransactionError>> {
        Box::pin(async move {
            let Found { transactions, faults, records } = Self::transactions(store)?;
            let asked_at = Instant::now();
            let mut open = self.take().ok_or(TransactionError::Kept)?;
            let mut written = store.bounded(Op::Verify, open.prove()).await.map(|()| Held::Yes);
            if let (Ok(_), Some(recording)) = (&written, recording) {
                let writing = async {
                    faults.meet(TransactionPhase::Record)?;
                    transactions.record(&mut open, recording).await
                };
                written = store.bounded(Op::Record, writing).await;
            }
            let hindered = match written {
                Ok(Held::Yes) => None,
                Ok(Held::No) => Some(TransactionError::Overtaken),
                Err(error) if is::<Aborted>(&error) && (open.seen().is_conflict() || open.seen().may_be_conflict()) => {
                    Some(open.seen().conflict(error))
                }
                Err(error) => Some(TransactionError::hindered_by(error)),
            };
            if let Some(error) = hindered {
                match error {
                    TransactionError::Ended => discard(store, open).await,
                    _ => roll_back(store, open).await,
                }
                return Err(error);
            }
            let committing = async {
                faults.meet(TransactionPhase::Commit)?;
                open.commit().await
            };
            match (store.bounded(Op::Commit, committing).await, recording) {
                (Ok(()), _) => {}
                // The database has told that it is not committed.
                (Err(error), _) if is::<Conflict>(&error) => return Err(TransactionError::Conflict(error)),
                (Err(error), Some(recording)) => look_up(store, &*transactions, recording, error).await?,
                (Err(error), None) => return Err(error.into()),
            }
            if let (Some(recording), Some(records)) = (recording, records) {
                records.committed(recording, asked_at);
            }
            Ok(())
        })
    }

    fn roll_back<'a>(&'a self, store: &'a StoreHandle) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if let Some(open) = self.take() {
                roll_back(store, open).await;
            }
        })
    }

    fn conflict<'a>(&'a self, store: &'a StoreHandle, is_failure: bool) -> BoxFuture<'a, Option<TransactionError>> {
        Box::pin(async move {
            let mut open = self.take()?;
            let mut conflict = None;
            if open.seen().is_conflict() || is_failure && open.seen().may_be_conflict() {
                // The handler may have gone back to a savepoint, so that the error that was seen aborted nothing.
                let aborted = store.bounded(Op::Verify, open.prove()).await.err().filter(is::<Aborted>);
                conflict = aborted.map(|error| open.seen().conflict(error));
            }
            self.put(open);
            conflict
        })
    }
}

impl TransactionError {
    /// Before COMMIT was sent.
    fn hindered_by(error: StoreError) -> Self {
        if is::<Aborted>(&error) {
            Self::Aborted
        } else if is::<Ended>(&error) {
            Self::Ended
        } else if is::<Conflict>(&error) {
            Self::Conflict(error)
        } else if is::<ReadOnly>(&error) {
            Self::ReadOnly(error)
        } else {
            Self::RolledBack(error)
        }
    }
}

fn is<E: std::error::Error + 'static>(error: &StoreError) -> bool {
    matches!(error, StoreError::Unavailable(source) if source.is::<E>())
}

async fn roll_back<DB: Database>(store: &StoreHandle, open: Open<DB>) {
    if let Err(error) = store.bounded(Op::RollBack, open.roll_back()).await {
        tracing::warn!(
            store = store.name(),
            error = &error as &dyn std::error::Error,
            "a transaction could not be rolled back: its connection is closed, and the database undoes it"
        );
    }
}

async fn discard<DB: Database>(store: &StoreHandle, open: Open<DB>) {
    let closing = async {
        open.discard().await;
        Ok(())
    };
    // What takes longer is closed without waiting for it.
    let _ = store.bounded(Op::RollBack, closing).await;
}

/// The answer to COMMIT was lost or was an error: only the record shows whether it took place.
async fn look_up<DB: Database>(
    store: &StoreHandle,
    transactions: &dyn TransactionalStore<DB>,
    recording: &Recording,
    error: StoreError,
) -> Result<(), TransactionError> {
    let limit = recording.request.lease;
    let begun = Instant::now();
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
    loop {
        match store.bounded_begin(Op::LookUp, transactions.is_recorded(&recording.key, recording.request.token)).await {
            Ok(true) => return Ok(()),
            Ok(false) => return Err(TransactionError::RolledBack(error)),
            Err(_) if begun.elapsed() + backoff.peek() > limit => return Err(TransactionError::Unknown(limit)),
            Err(_) => backoff.wait().await,
        }
    }
}
