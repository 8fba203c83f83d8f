//! Holds the transaction while the handler does not use it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use sqlx::Database;
use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::deadline::Deadline;
use crate::observe::op::Op;
use crate::policy::values::Isolation;
use crate::retries::Retries;
use crate::store::claim::{Claim, Held};
use crate::store::error::StoreError;
use crate::store::handle::StoreHandle;
use crate::sync::{Mutex, lock};
use crate::transaction::contract::HandlerTransaction;
use crate::transaction::error::{Aborted, Committed, Conflict, Ended, ReadOnly, TransactionError, Violated, is};
use crate::transaction::faults::Faults;
use crate::transaction::open::Open;
use crate::transaction::transactional_store::{ClaimInTransaction, TransactionalStore};
use crate::transaction::transactions::{CommittedRecords, Recording, TransactionPhase, Transactions, TxClaimRequest};

const NOT_OPEN: &str = "no transaction is open: write `#[idempotent]` on the handler, and use its `Tx` only in the handler's body, before \
     the handler answers";

pub(crate) struct Slot<DB: Database> {
    open: Mutex<Option<Open<DB>>>,
    /// The number of living [`Tx`](crate::Tx). Each of them can take the transaction.
    users: AtomicUsize,
}

impl<DB: Database> Default for Slot<DB> {
    fn default() -> Self {
        Self { open: Mutex::default(), users: AtomicUsize::new(0) }
    }
}

impl<DB: Database> Slot<DB> {
    pub(super) fn enter(&self) {
        self.users.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn leave(&self) {
        self.users.fetch_sub(1, Ordering::SeqCst);
    }

    pub(super) fn put(&self, open: Open<DB>) {
        *lock(&self.open) = Some(open);
    }

    fn take(&self) -> Option<Open<DB>> {
        lock(&self.open).take()
    }

    pub(super) fn take_begun(&self) -> Open<DB> {
        self.take().expect(NOT_OPEN)
    }

    /// Returns whether the handler has kept its `Tx`, even one that it has not used: a statement that it sends later would be in no
    /// transaction.
    fn is_kept(&self) -> bool {
        self.users.load(Ordering::SeqCst) > 0
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

/// The transactions of a store that uses this database.
struct Found<DB: Database> {
    transactions: Arc<dyn TransactionalStore<DB>>,
    faults: Faults,
    records: Option<Arc<dyn CommittedRecords>>,
}

impl<DB: Database> HandlerTransaction for Slot<DB> {
    fn claim<'a>(
        &'a self,
        store: &'a StoreHandle,
        claim: TxClaimRequest<'a>,
    ) -> BoxFuture<'a, Result<Claim, TransactionError>> {
        Box::pin(async move {
            let Found { transactions, faults, records } = Self::transactions(store)?;
            if let Some(record) = records.and_then(|records| records.at_hand(claim.key)) {
                return Ok(Claim::Completed(record));
            }
            let isolation = claim.isolation;
            let claiming = async {
                faults.meet(TransactionPhase::Begin)?;
                transactions.claim(claim).await
            };
            match store.timed_begin(Op::Claim, claiming).await? {
                ClaimInTransaction::Existing(claim) => Ok(claim),
                ClaimInTransaction::Acquired { attempt, open } => {
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
            self.put(store.timed_begin(Op::Begin, beginning).await?.isolated(isolation));
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
            let committed = || {
                if let (Some(recording), Some(records)) = (recording, &records) {
                    records.committed(recording, asked_at);
                }
            };
            let mut open = self.take().ok_or(TransactionError::Kept)?;
            if self.is_kept() {
                // Before anybody is answered, so that a retry finds the key free. A `Tx` that was used rolls back when it is dropped.
                rolled_back(store, store.timed(Op::RollBack, open.roll_back()).await)?;
                return Err(TransactionError::Kept);
            }
            let verified = store.timed(Op::Verify, open.prove()).await;
            if let (Ok(()), Some(recording), None) = (&verified, recording, &faults.0)
                && transactions.records_with_commit()
            {
                let Some(apart) = at_once(store, &*transactions, open, recording).await? else {
                    committed();
                    return Ok(());
                };
                open = apart;
            }
            let written = match (verified, recording) {
                (Ok(()), Some(recording)) => {
                    store.timed(Op::Record, write(&faults, &*transactions, &mut open, recording)).await
                }
                (verified, _) => verified.map(|()| Held::Yes),
            };
            let hindered = match written {
                Ok(Held::Yes) => None,
                Ok(Held::No) => Some(TransactionError::Overtaken),
                Err(error) => Some(conflict(&open, true, error).unwrap_or_else(TransactionError::hindered_by)),
            };
            if let Some(error) = hindered {
                // `error` already reports that the transaction has ended.
                let undone = store.timed(Op::RollBack, open.roll_back()).await;
                rolled_back(store, undone.or_else(|error| if is::<Ended>(&error) { Ok(()) } else { Err(error) }))?;
                return Err(error);
            }
            let committing = async {
                faults.meet(TransactionPhase::Commit)?;
                open.commit().await
            };
            match (store.timed(Op::Commit, committing).await, recording) {
                (Ok(()), _) => {}
                // The database has reported that the transaction is not committed.
                (Err(error), _) if is::<Conflict>(&error) || is::<Violated>(&error) => {
                    return Err(TransactionError::hindered_by(error));
                }
                (Err(error), Some(recording)) => look_up(store, &*transactions, recording, error).await?,
                (Err(error), None) => return Err(error.into()),
            }
            committed();
            Ok(())
        })
    }

    fn roll_back<'a>(&'a self, store: &'a StoreHandle) -> BoxFuture<'a, Result<(), TransactionError>> {
        Box::pin(async move {
            match self.take() {
                Some(open) => rolled_back(store, store.timed(Op::RollBack, open.roll_back()).await),
                None => Ok(()),
            }
        })
    }

    fn conflict<'a>(&'a self, store: &'a StoreHandle, is_failure: bool) -> BoxFuture<'a, Option<TransactionError>> {
        Box::pin(async move {
            let mut open = self.take()?;
            let mut met = None;
            if open.seen().is_conflict() || is_failure && open.seen().may_be_conflict() {
                met = match store.timed(Op::Verify, open.prove()).await {
                    Err(error) => conflict(&open, is_failure, error).ok(),
                    // The handler rolled back to a savepoint, so the conflict has not aborted the transaction.
                    Ok(()) if is_failure && open.seen().is_conflict() => {
                        Some(TransactionError::Conflict(StoreError::unavailable("a savepoint has undone it")))
                    }
                    Ok(()) => None,
                };
            }
            self.put(open);
            met
        })
    }
}

impl TransactionError {
    /// Returns the error of an operation that failed before COMMIT was sent.
    fn hindered_by(error: StoreError) -> Self {
        if is::<Aborted>(&error) {
            Self::Aborted
        } else if is::<Ended>(&error) {
            Self::Ended
        } else if is::<Conflict>(&error) {
            Self::Conflict(error)
        } else if is::<ReadOnly>(&error) {
            Self::ReadOnly(error)
        } else if is::<Violated>(&error) {
            Self::Violated(error)
        } else {
            Self::RolledBack(error)
        }
    }
}

/// Returns the transaction error if the store's error comes from a conflict that was seen or is likely. Otherwise,
/// fails with the store's error itself.
fn conflict<DB: Database>(
    open: &Open<DB>,
    is_failure: bool,
    error: StoreError,
) -> Result<TransactionError, StoreError> {
    let seen = open.seen();
    let is_conflict = if seen.is_conflict() {
        // A nested `begin` fails in an aborted transaction, and may then have ended it.
        is::<Aborted>(&error) || is::<Ended>(&error)
    } else {
        is::<Aborted>(&error) && is_failure && seen.may_be_conflict()
    };
    if is_conflict { Ok(seen.conflict(error)) } else { Err(error) }
}

async fn write<DB: Database>(
    faults: &Faults,
    transactions: &dyn TransactionalStore<DB>,
    open: &mut Open<DB>,
    recording: &Recording,
) -> Result<Held, StoreError> {
    faults.meet(TransactionPhase::Record)?;
    transactions.record(open, recording).await
}

/// Writes the record and commits in one call of the database. Returns the transaction if the store does that in two calls.
async fn at_once<DB: Database>(
    store: &StoreHandle,
    transactions: &dyn TransactionalStore<DB>,
    mut open: Open<DB>,
    recording: &Recording,
) -> Result<Option<Open<DB>>, TransactionError> {
    // The call does both, so it counts as both.
    let committing = store.timed(Op::Commit, transactions.record_and_commit(&mut open, recording));
    match store.meter.measure(Op::Record, committing).await {
        Ok(true) => {
            open.committed().await;
            Ok(None)
        }
        Ok(false) => Ok(Some(open)),
        Err(error) => match store.timed(Op::RollBack, open.roll_back()).await {
            // The transaction was open until now.
            Ok(()) => Err(TransactionError::hindered_by(error)),
            // The database has rolled it back.
            Err(undone) if is::<Ended>(&undone) => Err(TransactionError::hindered_by(error)),
            Err(_) => look_up(store, transactions, recording, error).await.map(|()| None),
        },
    }
}

/// Evaluates the result of a rollback. Fails only if the handler has committed the transaction.
fn rolled_back(store: &StoreHandle, undone: Result<(), StoreError>) -> Result<(), TransactionError> {
    match undone {
        Ok(()) => Ok(()),
        Err(error) if is::<Committed>(&error) => Err(TransactionError::Committed),
        Err(error) => {
            tracing::warn!(
                store = store.name(),
                error = &error as &dyn std::error::Error,
                "a transaction could not be rolled back: its connection is closed, and the database undoes it"
            );
            Ok(())
        }
    }
}

/// Finds out whether a transaction was committed, after the answer to COMMIT was lost or was an error. Only the record
/// shows the outcome.
async fn look_up<DB: Database>(
    store: &StoreHandle,
    transactions: &dyn TransactionalStore<DB>,
    recording: &Recording,
    error: StoreError,
) -> Result<(), TransactionError> {
    let limit = recording.request.lease;
    let mut retries = Retries::until(Deadline::after(limit), Backoff::OF_A_RECORD);
    loop {
        match store.timed_begin(Op::LookUp, transactions.is_recorded(&recording.key, recording.request.token)).await {
            Ok(true) => return Ok(()),
            Ok(false) => return Err(TransactionError::RolledBack(error)),
            Err(_) => {
                if !retries.pause().await {
                    return Err(TransactionError::Unknown(limit));
                }
            }
        }
    }
}
