//! The calls of a faulty store.

use std::sync::Arc;
use std::time::Duration;

use crate::key::RecordKey;
use crate::record::Record;
use crate::store::claim::{Claim, ClaimRequest, Held, Renewal, Token};
use crate::store::contract::{Store, StoreAdmin};
use crate::store::entry::{Cursor, Entry, Page, UnknownOutcomes};
use crate::store::error::StoreError;
use crate::store::resolution::{Resolution, Resolved};
use crate::testing::faulty::FaultyStore;
use crate::transaction::transactions::Transactions;

impl<S: StoreAdmin> Store for FaultyStore<S> {
    async fn claim(&self, key: &RecordKey, request: ClaimRequest) -> Result<Claim, StoreError> {
        let fault = self.with(|faults| {
            faults.claims += 1;
            faults.claim
        });
        let (key, seeds) = (key.clone(), self.seeds.clone());
        let claim = |store: Arc<S>| async move {
            seeds.plant(&*store, &key, request).await?;
            store.claim(&key, request).await
        };
        self.through(fault, claim).await
    }

    async fn renew(&self, key: &RecordKey, token: Token, lease: Duration) -> Result<Held, StoreError> {
        let fault = self.with(|faults| {
            faults.ends += usize::from(lease.is_zero());
            faults.renew
        });
        let key = key.clone();
        self.through(fault, |store| async move { store.renew(&key, token, lease).await }).await
    }

    /// Forwards all renewals in one call. The fault applies to the whole call.
    async fn renew_many(&self, renewals: &[Renewal]) -> Vec<Result<Held, StoreError>> {
        let fault = self.with(|faults| faults.renew);
        let asked = renewals.to_vec();
        let answers = self.through(fault, |store| async move { Ok(store.renew_many(&asked).await) }).await;
        answers.unwrap_or_else(|_| renewals.iter().filter_map(|_| fault.error().map(Err)).collect())
    }

    async fn complete(&self, key: &RecordKey, token: Token, record: Record, ttl: Duration) -> Result<Held, StoreError> {
        let fault = self.with(|faults| {
            faults.completions += 1;
            faults.complete
        });
        let key = key.clone();
        self.through(fault, |store| async move { store.complete(&key, token, record, ttl).await }).await
    }

    async fn release(&self, key: &RecordKey, token: Token) -> Result<Held, StoreError> {
        let fault = self.with(|faults| {
            faults.ends += 1;
            faults.release
        });
        let key = key.clone();
        self.through(fault, |store| async move { store.release(&key, token).await }).await
    }

    /// Extends a record. The fault of renewals applies.
    async fn extend(&self, key: &RecordKey, ttl: Duration) -> Result<Held, StoreError> {
        let (fault, key) = (self.with(|faults| faults.renew), key.clone());
        self.through(fault, |store| async move { store.extend(&key, ttl).await }).await
    }

    async fn changed(&self, key: &RecordKey) {
        self.store.changed(key).await;
    }

    fn transactions(&self) -> Option<Transactions> {
        let transactions = self.store.transactions()?;
        Some(Transactions { faults: Some(self.faults.clone()), ..transactions })
    }
}

impl<S: StoreAdmin> StoreAdmin for FaultyStore<S> {
    async fn get(&self, key: &RecordKey) -> Result<Option<Entry>, StoreError> {
        let fault = self.with(|faults| {
            faults.looks += 1;
            faults.get
        });
        let key = key.clone();
        self.through(fault, |store| async move { store.get(&key).await }).await
    }

    async fn purge(&self, key: &RecordKey) -> Result<bool, StoreError> {
        let (fault, key) = (self.with(|faults| faults.purge), key.clone());
        self.through(fault, |store| async move { store.purge(&key).await }).await
    }

    async fn resolve(&self, key: &RecordKey, token: Token, resolution: Resolution) -> Result<Resolved, StoreError> {
        let fault = self.with(|faults| faults.resolve);
        let key = key.clone();
        self.through(fault, |store| async move { store.resolve(&key, token, resolution).await }).await
    }

    async fn delete_expired(&self) -> Result<usize, StoreError> {
        self.store.delete_expired().await
    }

    async fn unknown_outcomes(&self) -> Result<UnknownOutcomes, StoreError> {
        self.store.unknown_outcomes().await
    }

    async fn claims(&self, cursor: Option<Cursor>, limit: usize) -> Result<Option<Page>, StoreError> {
        let fault = self.with(|faults| faults.list);
        self.through(fault, |store| async move { store.claims(cursor, limit).await }).await
    }

    async fn list(&self, cursor: Option<Cursor>, limit: usize) -> Result<Page, StoreError> {
        let fault = self.with(|faults| faults.list);
        self.through(fault, |store| async move { store.list(cursor, limit).await }).await
    }
}
