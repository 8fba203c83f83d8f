//! The object-safe twin of a store.

use crate::store::contract::ImmediateStore;
use crate::store::contract::{Store, StoreAdmin};
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::key::RecordKey;
use crate::record::Record;
use crate::store::claim::{Claim, ClaimRequest, Held, Renewal, Token};
use crate::store::entry::Entry;
use crate::store::error::StoreError;
use crate::transaction::transactions::Transactions;

/// The object-safe twin of [`Store`], so that the engine is compiled once for all of them.
pub(crate) trait ErasedStore: Send + Sync {
    /// The record of the key, if a claim can be answered with it without asking the store.
    fn at_hand(&self, key: &RecordKey) -> Option<Record> {
        let _ = key;
        None
    }

    fn claim<'a>(&'a self, key: &'a RecordKey, request: ClaimRequest) -> BoxFuture<'a, Result<Claim, StoreError>>;
    fn renew<'a>(
        &'a self,
        key: &'a RecordKey,
        token: Token,
        lease: Duration,
    ) -> BoxFuture<'a, Result<Held, StoreError>>;
    fn renew_many<'a>(&'a self, renewals: &'a [Renewal]) -> BoxFuture<'a, Vec<Result<Held, StoreError>>>;
    fn complete<'a>(
        &'a self,
        key: &'a RecordKey,
        token: Token,
        record: Record,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Held, StoreError>>;
    fn release<'a>(&'a self, key: &'a RecordKey, token: Token) -> BoxFuture<'a, Result<Held, StoreError>>;
    fn changed<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, ()>;
    fn transactions(&self) -> Option<Transactions>;
    fn immediate(&self) -> Option<&dyn ImmediateStore>;
    #[cfg(feature = "metrics")]
    fn unknown_outcomes(&self) -> BoxFuture<'_, Result<crate::store::entry::UnknownOutcomes, StoreError>>;
    fn get<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<Option<Entry>, StoreError>>;
    #[cfg(feature = "inspector")]
    fn purge<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<bool, StoreError>>;
    #[cfg(feature = "inspector")]
    fn list(
        &self,
        cursor: Option<crate::store::entry::Cursor>,
        limit: usize,
    ) -> BoxFuture<'_, Result<crate::store::entry::Page, StoreError>>;
}

impl<T: StoreAdmin> ErasedStore for T {
    fn claim<'a>(&'a self, key: &'a RecordKey, request: ClaimRequest) -> BoxFuture<'a, Result<Claim, StoreError>> {
        Box::pin(Store::claim(self, key, request))
    }

    fn renew<'a>(
        &'a self,
        key: &'a RecordKey,
        token: Token,
        lease: Duration,
    ) -> BoxFuture<'a, Result<Held, StoreError>> {
        Box::pin(Store::renew(self, key, token, lease))
    }

    fn renew_many<'a>(&'a self, renewals: &'a [Renewal]) -> BoxFuture<'a, Vec<Result<Held, StoreError>>> {
        Box::pin(Store::renew_many(self, renewals))
    }

    fn complete<'a>(
        &'a self,
        key: &'a RecordKey,
        token: Token,
        record: Record,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<Held, StoreError>> {
        Box::pin(Store::complete(self, key, token, record, ttl))
    }

    fn release<'a>(&'a self, key: &'a RecordKey, token: Token) -> BoxFuture<'a, Result<Held, StoreError>> {
        Box::pin(Store::release(self, key, token))
    }

    fn changed<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, ()> {
        Box::pin(Store::changed(self, key))
    }

    fn transactions(&self) -> Option<Transactions> {
        Store::transactions(self)
    }

    fn immediate(&self) -> Option<&dyn ImmediateStore> {
        Store::immediate(self)
    }

    #[cfg(feature = "metrics")]
    fn unknown_outcomes(&self) -> BoxFuture<'_, Result<crate::store::entry::UnknownOutcomes, StoreError>> {
        Box::pin(StoreAdmin::unknown_outcomes(self))
    }

    fn get<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        Box::pin(StoreAdmin::get(self, key))
    }

    #[cfg(feature = "inspector")]
    fn purge<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(StoreAdmin::purge(self, key))
    }

    #[cfg(feature = "inspector")]
    fn list(
        &self,
        cursor: Option<crate::store::entry::Cursor>,
        limit: usize,
    ) -> BoxFuture<'_, Result<crate::store::entry::Page, StoreError>> {
        Box::pin(StoreAdmin::list(self, cursor, limit))
    }
}
