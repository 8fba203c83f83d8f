//! A store in an `Arc` is a store too.

use std::sync::Arc;
use std::time::Duration;

use crate::key::RecordKey;
use crate::record::Record;
use crate::store::claim::{Claim, ClaimRequest, Held, Renewal, Token};
use crate::store::contract::{ImmediateStore, Store, StoreAdmin};
use crate::store::entry::{Cursor, Entry, Page, UnknownOutcomes};
use crate::store::error::StoreError;
use crate::store::resolution::{Resolution, Resolved};
use crate::transaction::transactions::Transactions;

/// A shared store, of which the application keeps a handle to look up or purge keys.
impl<T: Store> Store for Arc<T> {
    async fn claim(&self, key: &RecordKey, request: ClaimRequest) -> Result<Claim, StoreError> {
        T::claim(self, key, request).await
    }

    async fn renew(&self, key: &RecordKey, token: Token, lease: Duration) -> Result<Held, StoreError> {
        T::renew(self, key, token, lease).await
    }

    async fn renew_many(&self, renewals: &[Renewal]) -> Vec<Result<Held, StoreError>> {
        T::renew_many(self, renewals).await
    }

    async fn complete(&self, key: &RecordKey, token: Token, record: Record, ttl: Duration) -> Result<Held, StoreError> {
        T::complete(self, key, token, record, ttl).await
    }

    async fn release(&self, key: &RecordKey, token: Token) -> Result<Held, StoreError> {
        T::release(self, key, token).await
    }

    async fn extend(&self, key: &RecordKey, ttl: Duration) -> Result<Held, StoreError> {
        T::extend(self, key, ttl).await
    }

    async fn changed(&self, key: &RecordKey) {
        T::changed(self, key).await;
    }

    fn transactions(&self) -> Option<Transactions> {
        T::transactions(self)
    }

    fn immediate(&self) -> Option<&dyn ImmediateStore> {
        T::immediate(self)
    }
}

impl<T: StoreAdmin> StoreAdmin for Arc<T> {
    async fn get(&self, key: &RecordKey) -> Result<Option<Entry>, StoreError> {
        T::get(self, key).await
    }

    async fn purge(&self, key: &RecordKey) -> Result<bool, StoreError> {
        T::purge(self, key).await
    }

    async fn resolve(&self, key: &RecordKey, token: Token, resolution: Resolution) -> Result<Resolved, StoreError> {
        T::resolve(self, key, token, resolution).await
    }

    async fn delete_expired(&self) -> Result<usize, StoreError> {
        T::delete_expired(self).await
    }

    async fn unknown_outcomes(&self) -> Result<UnknownOutcomes, StoreError> {
        T::unknown_outcomes(self).await
    }

    async fn list(&self, cursor: Option<Cursor>, limit: usize) -> Result<Page, StoreError> {
        T::list(self, cursor, limit).await
    }

    async fn claims(&self, cursor: Option<Cursor>, limit: usize) -> Result<Option<Page>, StoreError> {
        T::claims(self, cursor, limit).await
    }
}
