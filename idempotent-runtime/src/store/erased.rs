//! The object-safe form of a store.

use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::key::RecordKey;
use crate::record::Record;
use crate::store::claim::{Claim, ClaimRequest, Held, Renewal, Token};
use crate::store::contract::{ImmediateStore, Store, StoreAdmin};
use crate::store::entry::Entry;
use crate::store::error::StoreError;
use crate::transaction::transactions::Transactions;

/// The future of a store's answer.
pub(crate) type Answer<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// The object-safe form of [`Store`]. With it the engine is compiled once for all stores.
pub(crate) trait ErasedStore: Send + Sync {
    /// Returns the record of the key if a claim can be answered with it without asking the store.
    fn at_hand(&self, key: &RecordKey) -> Option<Record> {
        let _ = key;
        None
    }

    fn claim<'a>(&'a self, key: &'a RecordKey, request: ClaimRequest) -> Answer<'a, Claim>;
    fn renew<'a>(&'a self, key: &'a RecordKey, token: Token, lease: Duration) -> Answer<'a, Held>;
    fn renew_many<'a>(&'a self, renewals: &'a [Renewal]) -> BoxFuture<'a, Vec<Result<Held, StoreError>>>;
    fn complete<'a>(&'a self, key: &'a RecordKey, token: Token, record: Record, ttl: Duration) -> Answer<'a, Held>;
    fn release<'a>(&'a self, key: &'a RecordKey, token: Token) -> Answer<'a, Held>;
    fn extend<'a>(&'a self, key: &'a RecordKey, ttl: Duration) -> Answer<'a, Held>;
    fn changed<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, ()>;
    fn transactions(&self) -> Option<Transactions>;
    fn immediate(&self) -> Option<&dyn ImmediateStore>;
    #[cfg(feature = "metrics")]
    fn unknown_outcomes(&self) -> Answer<'_, crate::store::entry::UnknownOutcomes>;
    fn get<'a>(&'a self, key: &'a RecordKey) -> Answer<'a, Option<Entry>>;
    #[cfg(feature = "inspector")]
    fn purge<'a>(&'a self, key: &'a RecordKey) -> Answer<'a, bool>;
    #[cfg(feature = "operate")]
    fn resolve<'a>(
        &'a self,
        key: &'a RecordKey,
        token: Token,
        resolution: crate::store::resolution::Resolution,
    ) -> Answer<'a, crate::store::resolution::Resolved>;
    #[cfg(feature = "inspector")]
    fn list(&self, cursor: Option<crate::store::entry::Cursor>, limit: usize) -> Answer<'_, crate::store::entry::Page>;
    #[cfg(feature = "inspector")]
    fn claims(
        &self,
        cursor: Option<crate::store::entry::Cursor>,
        limit: usize,
    ) -> Answer<'_, Option<crate::store::entry::Page>>;
}

impl<T: StoreAdmin> ErasedStore for T {
    fn claim<'a>(&'a self, key: &'a RecordKey, request: ClaimRequest) -> Answer<'a, Claim> {
        Box::pin(Store::claim(self, key, request))
    }

    fn renew<'a>(&'a self, key: &'a RecordKey, token: Token, lease: Duration) -> Answer<'a, Held> {
        Box::pin(Store::renew(self, key, token, lease))
    }

    fn renew_many<'a>(&'a self, renewals: &'a [Renewal]) -> BoxFuture<'a, Vec<Result<Held, StoreError>>> {
        Box::pin(Store::renew_many(self, renewals))
    }

    fn complete<'a>(&'a self, key: &'a RecordKey, token: Token, record: Record, ttl: Duration) -> Answer<'a, Held> {
        Box::pin(Store::complete(self, key, token, record, ttl))
    }

    fn release<'a>(&'a self, key: &'a RecordKey, token: Token) -> Answer<'a, Held> {
        Box::pin(Store::release(self, key, token))
    }

    fn extend<'a>(&'a self, key: &'a RecordKey, ttl: Duration) -> Answer<'a, Held> {
        Box::pin(Store::extend(self, key, ttl))
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
    fn unknown_outcomes(&self) -> Answer<'_, crate::store::entry::UnknownOutcomes> {
        Box::pin(StoreAdmin::unknown_outcomes(self))
    }

    fn get<'a>(&'a self, key: &'a RecordKey) -> Answer<'a, Option<Entry>> {
        Box::pin(StoreAdmin::get(self, key))
    }

    #[cfg(feature = "inspector")]
    fn purge<'a>(&'a self, key: &'a RecordKey) -> Answer<'a, bool> {
        Box::pin(StoreAdmin::purge(self, key))
    }

    #[cfg(feature = "operate")]
    fn resolve<'a>(
        &'a self,
        key: &'a RecordKey,
        token: Token,
        resolution: crate::store::resolution::Resolution,
    ) -> Answer<'a, crate::store::resolution::Resolved> {
        Box::pin(StoreAdmin::resolve(self, key, token, resolution))
    }

    #[cfg(feature = "inspector")]
    fn list(&self, cursor: Option<crate::store::entry::Cursor>, limit: usize) -> Answer<'_, crate::store::entry::Page> {
        Box::pin(StoreAdmin::list(self, cursor, limit))
    }

    #[cfg(feature = "inspector")]
    fn claims(
        &self,
        cursor: Option<crate::store::entry::Cursor>,
        limit: usize,
    ) -> Answer<'_, Option<crate::store::entry::Page>> {
        Box::pin(StoreAdmin::claims(self, cursor, limit))
    }
}
