//! The contract of a store: the trait, and the words in which it is asked and answers.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use crate::key::RecordKey;
use crate::record::Record;
use crate::store::claim::{Claim, ClaimRequest, Held, Renewal, Token};
use crate::store::entry::{Cursor, Entry, Page, UNKNOWN_OUTCOMES_COUNTED, UnknownOutcomes};
use crate::store::error::StoreError;
use crate::transaction::transactions::Transactions;

/// Keeps claims and records.
///
/// Implement it with plain `async fn`; every method is atomic, and the store's own clock judges leases and expiry.
///
/// # Cancel safety
///
/// The engine may drop any of these futures at any await, as it does when the time limit of the registry is over. A
/// dropped call may have taken effect or not, but never half.
///
/// # Examples
///
/// [`guide::writing_a_store`](crate::guide::writing_a_store) has a whole store of files, and
/// [`testing::conformance`](crate::testing::conformance) one in memory. An application looks into a store by the same methods:
///
/// ```
/// # #[cfg(feature = "memory")]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// use idempotent_runtime::RecordKey;
/// use idempotent_runtime::store::{MemoryStore, Store};
///
/// let store = MemoryStore::new();
/// let key = RecordKey::new("charges", Some("alice"), "8e03978e");
/// assert_eq!(store.get(&key).await?, None);
/// assert!(!store.purge(&key).await?);
/// # Ok(())
/// # })
/// # }
/// # #[cfg(not(feature = "memory"))]
/// # fn main() {}
/// ```
pub trait Store: Send + Sync + 'static {
    /// The first caller gets the claim; every other one learns what stands there. One round trip.
    ///
    /// | what stands under `key` | what comes back | what changes |
    /// |---|---|---|
    /// | nothing, or something whose time to live is over | [`Claim::Acquired`], attempt 1 | claimed for `request` |
    /// | what this request would acquire, and `request.token` was [released](Self::release) before | an error | nothing |
    /// | a claim with `request.token` | [`Claim::Acquired`], its attempt | nothing: a retried call recognises itself |
    /// | a claim within its lease | [`Claim::InFlight`] | nothing |
    /// | a claim whose lease ran out, the same fingerprint, [`AfterCrash::Rerun`](crate::AfterCrash::Rerun) | [`Claim::Acquired`], attempt + 1 | claimed for `request`; the old token is worthless |
    /// | a claim whose lease ran out, the same fingerprint, [`AfterCrash::Reject`](crate::AfterCrash::Reject) | [`Claim::Lapsed`] | the claim never expires |
    /// | a claim whose lease ran out, another fingerprint | [`Claim::Lapsed`] | nothing |
    /// | a record | [`Claim::Completed`] | nothing |
    ///
    /// Under [`AfterCrash::Rerun`](crate::AfterCrash::Rerun) a claim is remembered for `request.ttl` after its last claim or renewal. That is at least
    /// twice its lease, so a claim outlives its lease: what comes between the two is the next attempt, not the first one.
    /// Under [`AfterCrash::Reject`](crate::AfterCrash::Reject) a claim never expires: it stays until it is completed, released or purged. Where the
    /// policy changes, that of the request decides: what it takes over lives by its own rule, and what it rejects to run
    /// again stays rejected.
    ///
    /// # Errors
    ///
    /// [`StoreError::Full`] when there is no room for a new claim: nothing that is alive is evicted to make some.
    /// [`StoreError::Damaged`] when what stands there cannot be read: as if it were absent, the request would run twice.
    fn claim(&self, key: &RecordKey, request: ClaimRequest) -> impl Future<Output = Result<Claim, StoreError>> + Send;

    /// Sets the lease to `lease` from now, zero included, if `token` still holds the claim.
    fn renew(
        &self,
        key: &RecordKey,
        token: Token,
        lease: Duration,
    ) -> impl Future<Output = Result<Held, StoreError>> + Send;

    /// [`renew`](Self::renew) for many keys at once: one answer each, in the order of `renewals`. The provided method calls
    /// `renew` for all of them together.
    ///
    /// The engine calls it once at a time for a store, with at most 256 renewals. One that cannot be read must not fail the
    /// others, and none may hold up claims or completions for longer than one such call takes.
    fn renew_many(&self, renewals: &[Renewal]) -> impl Future<Output = Vec<Result<Held, StoreError>>> + Send {
        join_all(renewals.iter().map(|renewal| self.renew(&renewal.key, renewal.token, renewal.lease)))
    }

    /// Turns the claim of `token` into `record`, kept for `ttl` from now. One round trip.
    ///
    /// Once this returned [`Held::Yes`], a retry gets the record, even after a crash (as far as the store promises
    /// durability). A second call with the same token is [`Held::Yes`] and changes nothing. A store that is full
    /// still takes the record of a claim that it granted.
    fn complete(
        &self,
        key: &RecordKey,
        token: Token,
        record: Record,
        ttl: Duration,
    ) -> impl Future<Output = Result<Held, StoreError>> + Send;

    /// Gives the claim of `token` up: nothing stands under `key` afterwards. A record is not touched.
    ///
    /// If `token` has neither a claim nor a record under `key`, a claim by `token` may still be on its way to the store. Under
    /// [`AfterCrash::Reject`](crate::AfterCrash::Reject) it must fail when it arrives, for a day at least, and whatever becomes of the key until then: other
    /// tokens may claim it, release it or complete it, and what they leave may expire or be purged. Nothing would run under
    /// it, and it would reject its key for ever. Under [`AfterCrash::Rerun`](crate::AfterCrash::Rerun) it may be granted: it ends with its lease. Claims by
    /// other tokens are not affected, and [`get`](Self::get), [`list`](Self::list) and [`purge`](Self::purge) do not show what a store keeps
    /// for this.
    fn release(&self, key: &RecordKey, token: Token) -> impl Future<Output = Result<Held, StoreError>> + Send;

    /// Resolves when what stands under `key` may have changed, in whatever process.
    ///
    /// The engine polls it once before its look, so that nothing goes unheard, and then not again until the look is done:
    /// the first poll begins to listen, and must not take what the look may have to wait for, such as a connection.
    ///
    /// A mere hint, so that a waiter looks at once and not at the end of its pause: it may come too often or, as in the
    /// provided method, never. The engine hears of the ends in its own process by itself.
    fn changed(&self, key: &RecordKey) -> impl Future<Output = ()> + Send {
        let _ = key;
        std::future::pending()
    }

    /// The transactions of the store's database, for handlers that take a `Tx`; the provided method has none.
    ///
    /// A store that wraps another one hands on what that one returns.
    fn transactions(&self) -> Option<Transactions> {
        None
    }

    /// The same store, if it answers without ever waiting; the provided method says that it does not.
    ///
    /// The engine then takes the short way: no boxed future, no timer.
    fn immediate(&self) -> Option<&dyn ImmediateStore> {
        None
    }

    /// What stands under `key`, for operators.
    ///
    /// # Errors
    ///
    /// [`StoreError::Damaged`] when it cannot be read, as from [`claim`](Self::claim).
    fn get(&self, key: &RecordKey) -> impl Future<Output = Result<Option<Entry>, StoreError>> + Send;

    /// Removes what stands under `key`, claim or record; false when nothing did. What cannot be read is removed too, and
    /// counts as something.
    ///
    /// The next request runs the handler again: for operators who know that this is right. A handler that still runs keeps its
    /// key in its own process, and claims it anew at its next renewal or when it records. Another process that claims the key
    /// before executes it a second time, and then the first handler cannot record any more.
    fn purge(&self, key: &RecordKey) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Removes one batch of what is past its time to live, and says how many; 0 when nothing is left.
    ///
    /// Stores do this by themselves: the method is for those who want it now.
    fn delete_expired(&self) -> impl Future<Output = Result<usize, StoreError>> + Send;

    /// How many outcomes are unknown, by scope: claims that never expire and whose lease is over. Without those scopes that
    /// have none.
    ///
    /// It is asked every few seconds, so it must not look through the whole store: a store uses an index, and counts at
    /// most [`UNKNOWN_OUTCOMES_COUNTED`]. The provided method looks at the first so many entries of the listing.
    ///
    /// # Errors
    ///
    /// When the store cannot be asked. A damaged entry is no error, and is not counted.
    fn unknown_outcomes(&self) -> impl Future<Output = Result<UnknownOutcomes, StoreError>> + Send {
        async {
            let (mut unknown, mut cursor, mut seen) = (UnknownOutcomes::new(), None, 0);
            while seen < UNKNOWN_OUTCOMES_COUNTED {
                let page = self.list(cursor, UNKNOWN_OUTCOMES_COUNTED - seen).await?;
                seen += page.entries.len() + page.damaged.len();
                for entry in page.entries.iter().filter(|entry| entry.is_unknown_outcome()) {
                    *unknown.entry(entry.key.scope().into_owned()).or_default() += 1;
                }
                cursor = page.next;
                if cursor.is_none() {
                    break;
                }
            }
            Ok(unknown)
        }
    }

    /// One page of at most `limit` living entries, the damaged ones included, in an order of the store's own.
    ///
    /// Following [`Page::next`] to its end shows every entry that stood there all the time exactly once.
    fn list(&self, cursor: Option<Cursor>, limit: usize) -> impl Future<Output = Result<Page, StoreError>> + Send;
}

/// A store in this process's memory: it answers at once, by the rules of [`Store`].
pub trait ImmediateStore: Send + Sync {
    /// As [`Store::claim`].
    ///
    /// # Errors
    ///
    /// As there.
    fn claim_now(&self, key: &RecordKey, request: ClaimRequest) -> Result<Claim, StoreError>;

    /// As [`Store::complete`], of a record that the caller keeps.
    ///
    /// # Errors
    ///
    /// As there.
    fn complete_now(&self, key: &RecordKey, token: Token, record: &Record, ttl: Duration) -> Result<Held, StoreError>;
}

/// A shared store is a store: one that the application keeps a handle of, to look keys up or to purge them.
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

    async fn changed(&self, key: &RecordKey) {
        T::changed(self, key).await;
    }

    fn transactions(&self) -> Option<Transactions> {
        T::transactions(self)
    }

    fn immediate(&self) -> Option<&dyn ImmediateStore> {
        T::immediate(self)
    }

    async fn get(&self, key: &RecordKey) -> Result<Option<Entry>, StoreError> {
        T::get(self, key).await
    }

    async fn purge(&self, key: &RecordKey) -> Result<bool, StoreError> {
        T::purge(self, key).await
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
}
