//! What a store does for handlers' transactions.

use std::future::ready;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use sqlx::Database;

use crate::key::RecordKey;
use crate::policy::values::Isolation;
use crate::store::claim::{Claim, Held, Token};
use crate::store::error::StoreError;
use crate::transaction::open::Open;
use crate::transaction::transactions::{Holder, Recording, Transactions, TxClaimRequest};

/// A store that can write records in the handler's transaction.
pub(crate) trait TransactionalStore<DB: Database>: Send + Sync + 'static {
    /// Begins a transaction.
    fn begin(&self, isolation: Option<Isolation>) -> BoxFuture<'_, Result<Open<DB>, StoreError>>;

    /// Claims the key until the transaction ends. No other request gets the key before that.
    fn claim<'a>(&'a self, claim: TxClaimRequest<'a>) -> BoxFuture<'a, Result<ClaimInTransaction<DB>, StoreError>>;

    /// Writes the record. Returns [`Held::No`] if the key has another entry now.
    fn record<'a>(
        &'a self,
        open: &'a mut Open<DB>,
        recording: &'a Recording,
    ) -> BoxFuture<'a, Result<Held, StoreError>>;

    /// Returns whether [`record_and_commit`](Self::record_and_commit) does both in one call, for the transaction that is open now.
    fn records_with_commit(&self) -> bool {
        false
    }

    /// Writes the record and commits, both in one call of the database. Returns false if the key has a row that must be replaced;
    /// then nothing is written yet. After an error, it is unknown whether the transaction is committed.
    fn record_and_commit<'a>(
        &'a self,
        open: &'a mut Open<DB>,
        recording: &'a Recording,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        let _ = (open, recording);
        Box::pin(ready(Ok(false)))
    }

    /// Returns whether the key has the record of `token`. Fails while the transaction of `token` may still run.
    fn is_recorded<'a>(&'a self, key: &'a RecordKey, token: Token) -> BoxFuture<'a, Result<bool, StoreError>>;
}

pub(crate) enum ClaimInTransaction<DB: Database> {
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
