//! A store of the registry: its name, and the limit on how long one call may take.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use super::{Claim, ClaimRequest, ErasedStore, Held, ImmediateStore, StoreError, Token, Transactions};
use crate::sync::tokio;
use crate::sync::tokio::time::Instant;
use crate::{Record, RecordKey};

/// A call that hangs is cut off and counts as unreachable.
#[derive(Clone)]
pub(crate) struct BoundedStore(Arc<Inner>);

struct Inner {
    name: Box<str>,
    store: Arc<dyn ErasedStore>,
    limit: Duration,
}

impl BoundedStore {
    pub(crate) fn new(name: &str, store: Arc<dyn ErasedStore>, limit: Duration) -> Self {
        Self(Arc::new(Inner { name: name.into(), store, limit }))
    }

    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }

    /// How long one call may take.
    pub(crate) fn limit(&self) -> Duration {
        self.0.limit
    }

    /// The same store, if it needs no limit because it answers at once.
    pub(crate) fn immediate(&self) -> Option<&dyn ImmediateStore> {
        self.0.store.immediate()
    }

    pub(crate) async fn claim(&self, key: &RecordKey, request: ClaimRequest) -> Result<Claim, StoreError> {
        self.bounded(self.0.store.claim(key, request)).await
    }

    pub(crate) async fn renew(&self, key: &RecordKey, token: Token, lease: Duration) -> Result<Held, StoreError> {
        self.bounded(self.0.store.renew(key, token, lease)).await
    }

    pub(crate) async fn complete(
        &self,
        key: &RecordKey,
        token: Token,
        record: Record,
        ttl: Duration,
    ) -> Result<Held, StoreError> {
        self.bounded(self.0.store.complete(key, token, record, ttl)).await
    }

    pub(crate) async fn release(&self, key: &RecordKey, token: Token) -> Result<Held, StoreError> {
        self.bounded(self.0.store.release(key, token)).await
    }

    /// Without a limit: it ends when its waiter gives up.
    pub(crate) async fn changed(&self, key: &RecordKey) {
        self.0.store.changed(key).await;
    }

    pub(crate) fn transactions(&self) -> Option<Transactions> {
        self.0.store.transactions()
    }

    /// Repeats a call that fails until it succeeds, as long as one that hangs would take; what cannot be read stays so.
    pub(crate) async fn persistently<T, F>(&self, mut call: impl FnMut() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let gives_up_at = Instant::now() + self.limit();
        let mut pause = Duration::from_millis(10);
        loop {
            match call().await {
                Err(error) if !matches!(error, StoreError::Damaged(_)) && Instant::now() + pause < gives_up_at => {
                    tokio::time::sleep(pause).await;
                    pause = Duration::from_millis(200).min(pause * 2);
                }
                answer => return answer,
            }
        }
    }

    /// Cuts `call` off when the limit is over.
    pub(crate) async fn bounded<T>(&self, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        tokio::time::timeout(self.limit(), call).await.unwrap_or(Err(StoreError::TimedOut(self.limit())))
    }
}
