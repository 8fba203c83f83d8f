//! A store around another store. A test writes only the methods that it changes.

use std::future::Future;
use std::ops::Deref;
use std::time::Duration;

use futures_util::future::join_all;
use idempotent_runtime::store::{
    Claim, ClaimRequest, Cursor, Entry, Held, Page, Renewal, Resolution, Resolved, Store, StoreAdmin, StoreError,
    Token, Transactions,
};
use idempotent_runtime::{Record, RecordKey};

/// What a store changes compared with the [inner](Self::inner) store. Each provided method except `claims` calls the
/// inner store.
pub trait Wrapper: Send + Sync + 'static {
    /// The store that answers by default.
    fn inner(&self) -> &impl StoreAdmin;

    /// As [`Store::claim`].
    fn claim(&self, key: &RecordKey, request: ClaimRequest) -> impl Future<Output = Result<Claim, StoreError>> + Send {
        self.inner().claim(key, request)
    }

    /// As [`Store::renew`]. A renewal of many keys calls this for each key.
    fn renew(
        &self,
        key: &RecordKey,
        token: Token,
        lease: Duration,
    ) -> impl Future<Output = Result<Held, StoreError>> + Send {
        self.inner().renew(key, token, lease)
    }

    /// As [`Store::complete`].
    fn complete(
        &self,
        key: &RecordKey,
        token: Token,
        record: Record,
        ttl: Duration,
    ) -> impl Future<Output = Result<Held, StoreError>> + Send {
        self.inner().complete(key, token, record, ttl)
    }

    /// As [`Store::extend`].
    fn extend(&self, key: &RecordKey, ttl: Duration) -> impl Future<Output = Result<Held, StoreError>> + Send {
        self.inner().extend(key, ttl)
    }

    /// As [`StoreAdmin::get`].
    fn get(&self, key: &RecordKey) -> impl Future<Output = Result<Option<Entry>, StoreError>> + Send {
        self.inner().get(key)
    }

    /// As [`Store::changed`].
    fn changed(&self, key: &RecordKey) -> impl Future<Output = ()> + Send {
        self.inner().changed(key)
    }

    /// As [`StoreAdmin::claims`]. By default, the store has no index of claims.
    fn claims(
        &self,
        _cursor: Option<Cursor>,
        _limit: usize,
    ) -> impl Future<Output = Result<Option<Page>, StoreError>> + Send {
        std::future::ready(Ok(None))
    }

    /// As [`StoreAdmin::list`].
    fn list(&self, cursor: Option<Cursor>, limit: usize) -> impl Future<Output = Result<Page, StoreError>> + Send {
        self.inner().list(cursor, limit)
    }
}

/// The store that a [`Wrapper`] describes.
#[derive(Clone, Debug)]
pub struct Wrapped<W>(pub W);

impl<W> Deref for Wrapped<W> {
    type Target = W;

    fn deref(&self) -> &W {
        &self.0
    }
}

impl<W: Wrapper> Store for Wrapped<W> {
    async fn claim(&self, key: &RecordKey, request: ClaimRequest) -> Result<Claim, StoreError> {
        self.0.claim(key, request).await
    }

    async fn renew(&self, key: &RecordKey, token: Token, lease: Duration) -> Result<Held, StoreError> {
        self.0.renew(key, token, lease).await
    }

    async fn renew_many(&self, renewals: &[Renewal]) -> Vec<Result<Held, StoreError>> {
        join_all(renewals.iter().map(|renewal| self.0.renew(&renewal.key, renewal.token, renewal.lease))).await
    }

    async fn complete(&self, key: &RecordKey, token: Token, record: Record, ttl: Duration) -> Result<Held, StoreError> {
        self.0.complete(key, token, record, ttl).await
    }

    async fn release(&self, key: &RecordKey, token: Token) -> Result<Held, StoreError> {
        self.0.inner().release(key, token).await
    }

    async fn extend(&self, key: &RecordKey, ttl: Duration) -> Result<Held, StoreError> {
        self.0.extend(key, ttl).await
    }

    async fn changed(&self, key: &RecordKey) {
        self.0.changed(key).await;
    }

    fn transactions(&self) -> Option<Transactions> {
        self.0.inner().transactions()
    }
}

impl<W: Wrapper> StoreAdmin for Wrapped<W> {
    async fn get(&self, key: &RecordKey) -> Result<Option<Entry>, StoreError> {
        self.0.get(key).await
    }

    async fn purge(&self, key: &RecordKey) -> Result<bool, StoreError> {
        self.0.inner().purge(key).await
    }

    async fn resolve(&self, key: &RecordKey, token: Token, resolution: Resolution) -> Result<Resolved, StoreError> {
        self.0.inner().resolve(key, token, resolution).await
    }

    async fn delete_expired(&self) -> Result<usize, StoreError> {
        self.0.inner().delete_expired().await
    }

    async fn list(&self, cursor: Option<Cursor>, limit: usize) -> Result<Page, StoreError> {
        self.0.list(cursor, limit).await
    }

    async fn claims(&self, cursor: Option<Cursor>, limit: usize) -> Result<Option<Page>, StoreError> {
        self.0.claims(cursor, limit).await
    }
}
