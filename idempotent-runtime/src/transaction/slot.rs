//! Where the transaction lies while the handler does not use it.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::{Database, Transaction};
use tokio::time::Instant;

use super::{Aborted, HandlerTransaction, Recording, TransactionError, Transactions};
use crate::RecordKey;
use crate::metering::Op;
use crate::store::{BoundedStore, Claim, ClaimRequest, Held, StoreError, Token};

/// A store whose records can be written in the handler's transaction.
pub(crate) trait TransactionalStore<DB: Database>: Send + Sync + 'static {
    /// Begins a transaction.
    fn begin(&self) -> BoxFuture<'_, Result<Open<DB>, StoreError>>;

    /// Claims the key for the life of a transaction: nobody else gets it until that one has ended.
    fn claim<'a>(
        &'a self,
        key: &'a RecordKey,
        request: ClaimRequest,
    ) -> BoxFuture<'a, Result<TransactionClaim<DB>, StoreError>>;

    /// Fails when the database has given the transaction up, and would say nothing of it at COMMIT.
    fn verify<'a>(&'a self, open: &'a mut Open<DB>) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Writes the record; [`Held::No`] when something else stands under the key by now.
    fn record<'a>(
        &'a self,
        open: &'a mut Open<DB>,
        recording: &'a Recording,
    ) -> BoxFuture<'a, Result<Held, StoreError>>;

    /// Whether the record of `token` stands under the key; an error as long as its transaction may not have ended.
    fn is_recorded<'a>(&'a self, key: &'a RecordKey, token: Token) -> BoxFuture<'a, Result<bool, StoreError>>;
}

pub(crate) enum TransactionClaim<DB: Database> {
    Acquired { attempt: u32, open: Open<DB> },
    Standing(Claim),
}

/// A transaction that has begun. Dropping it rolls it back.
pub(crate) struct Open<DB: Database> {
    pub(crate) transaction: Transaction<'static, DB>,
    /// What the store keeps others out with; dropped after the transaction.
    pub(crate) hold: Box<dyn Any + Send + Sync>,
}

impl Transactions {
    pub(crate) fn of<DB: Database>(store: Arc<dyn TransactionalStore<DB>>) -> Self {
        Self { database: DB::NAME, store: Arc::new(store) }
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
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(open);
    }

    fn take(&self) -> Option<Open<DB>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn take_begun(&self) -> Open<DB> {
        self.take().expect("the transaction has begun: `Tx` is used in the body of a handler with `#[idempotent]`")
    }

    fn transactions(store: &BoundedStore) -> Result<Arc<dyn TransactionalStore<DB>>, TransactionError> {
        let transactions = store.transactions();
        let found =
            transactions.as_ref().and_then(|found| found.store.downcast_ref::<Arc<dyn TransactionalStore<DB>>>());
        found.cloned().ok_or_else(|| TransactionError::WrongDatabase {
            wanted: DB::NAME,
            found: transactions.as_ref().map(|found| found.database),
        })
    }
}

impl<DB: Database> HandlerTransaction for Slot<DB> {
    fn claim<'a>(
        &'a self,
        store: &'a BoundedStore,
        key: &'a RecordKey,
        request: ClaimRequest,
    ) -> BoxFuture<'a, Result<Claim, TransactionError>> {
        Box::pin(async move {
            let transactions = Self::transactions(store)?;
            match store.bounded(Op::Claim, transactions.claim(key, request)).await? {
                TransactionClaim::Standing(claim) => Ok(claim),
                TransactionClaim::Acquired { attempt, open } => {
                    self.put(open);
                    Ok(Claim::Acquired { attempt })
                }
            }
        })
    }

    fn begin<'a>(&'a self, store: &'a BoundedStore) -> BoxFuture<'a, Result<(), TransactionError>> {
        Box::pin(async move {
            let transactions = Self::transactions(store)?;
            self.put(store.bounded(Op::Begin, transactions.begin()).await?);
            Ok(())
        })
    }

    fn commit<'a>(
        &'a self,
        store: &'a BoundedStore,
        recording: Option<&'a Recording>,
    ) -> BoxFuture<'a, Result<(), TransactionError>> {
        Box::pin(async move {
            let transactions = Self::transactions(store)?;
            let mut open = self.take().ok_or(TransactionError::Kept)?;
            let recorded = match recording {
                Some(recording) => store.bounded(Op::Record, transactions.record(&mut open, recording)).await,
                None => store.bounded(Op::Verify, transactions.verify(&mut open)).await.map(|()| Held::Yes),
            };
            let hindered = match recorded {
                Ok(Held::Yes) => None,
                Ok(Held::No) => Some(TransactionError::Overtaken),
                Err(StoreError::Unavailable(source)) if source.is::<Aborted>() => Some(TransactionError::Aborted),
                Err(error) => Some(TransactionError::RolledBack(error)),
            };
            if let Some(error) = hindered {
                roll_back(store, open).await;
                return Err(error);
            }
            let Open { transaction, hold } = open;
            let committing = async { transaction.commit().await.map_err(StoreError::unavailable) };
            let committed = store.bounded(Op::Commit, committing).await;
            drop(hold);
            match (committed, recording) {
                (Ok(()), _) => Ok(()),
                (Err(error), Some(recording)) => look_up(store, &*transactions, recording, error).await,
                (Err(error), None) => Err(error.into()),
            }
        })
    }

    fn roll_back<'a>(&'a self, store: &'a BoundedStore) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if let Some(open) = self.take() {
                roll_back(store, open).await;
            }
        })
    }
}

/// What cannot be rolled back now is when its connection closes.
async fn roll_back<DB: Database>(store: &BoundedStore, open: Open<DB>) {
    let rolling_back = async { open.transaction.rollback().await.map_err(StoreError::unavailable) };
    if let Err(error) = store.bounded(Op::RollBack, rolling_back).await {
        tracing::warn!(
            store = store.name(),
            error = &error as &dyn std::error::Error,
            "a transaction could not be rolled back; its connection is closed"
        );
    }
}

/// The answer to COMMIT did not come, or was an error: only the record can tell which.
async fn look_up<DB: Database>(
    store: &BoundedStore,
    transactions: &dyn TransactionalStore<DB>,
    recording: &Recording,
    error: StoreError,
) -> Result<(), TransactionError> {
    let limit = recording.request.lease;
    let begun = Instant::now();
    let mut pause = Duration::from_millis(50);
    loop {
        match store.bounded(Op::LookUp, transactions.is_recorded(&recording.key, recording.request.token)).await {
            Ok(true) => return Ok(()),
            Ok(false) => return Err(TransactionError::RolledBack(error)),
            Err(_) if begun.elapsed() + pause > limit => return Err(TransactionError::Unknown(limit)),
            Err(_) => tokio::time::sleep(pause).await,
        }
        pause = Duration::from_secs(1).min(pause * 2);
    }
}
