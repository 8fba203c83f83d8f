//! The contract of a store: its traits.

use std::future::Future;
use std::time::Duration;

use futures_util::future::join_all;

use crate::key::RecordKey;
use crate::record::Record;
use crate::store::claim::{Claim, ClaimRequest, Held, Renewal, Token};
use crate::store::entry::{Cursor, Entry, Page, UNKNOWN_OUTCOMES_COUNTED, UnknownOutcomes};
use crate::store::error::StoreError;
use crate::store::resolution::{Resolution, Resolved};
use crate::transaction::transactions::Transactions;

/// Keeps claims and records.
///
/// Implement it with plain `async fn`. Every method is atomic. The store's own clock decides about leases and expiry.
///
/// # Cancel safety
///
/// The engine may drop any of these futures at any await, for instance when the registry's time limit has passed. A dropped
/// call must have its whole effect or none.
///
/// # Examples
///
/// [`guide::writing_a_store`](crate::guide::writing_a_store) has a complete store of files, and
/// [`testing::conformance`](crate::testing::conformance) one in memory. An application can look into a store with the same
/// methods:
///
/// ```
/// # #[cfg(feature = "memory")]
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// use idempotent_runtime::RecordKey;
/// use idempotent_runtime::store::{MemoryStore, Store, StoreAdmin};
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
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a store",
    label = "expected `MemoryStore`, `SqliteStore`, `RedisStore`, `PostgresStore`, or a store of your own",
    note = "write `PostgresStore::new(pool)`, `SqliteStore::open(path).await?` or `RedisStore::connect(url).await?`"
)]
pub trait Store: Send + Sync + 'static {
    /// Claims `key` for one request. Every other request learns the state of the key. Takes one round trip.
    ///
    /// | the key has | the answer | what changes |
    /// |---|---|---|
    /// | no entry, or an expired one | [`Claim::Acquired`], attempt 1 | claimed for `request` |
    /// | an entry that this request would replace, or none, and `request.token` was [released](Self::release) before | an error | nothing |
    /// | a claim with `request.token` | [`Claim::Acquired`], its attempt | nothing: a repeated call recognises its own claim |
    /// | a claim whose lease has not expired | [`Claim::InFlight`] | nothing |
    /// | a claim with an expired lease and [the same fingerprint](ClaimRequest::is_same_as), under [`AfterCrash::Rerun`](crate::AfterCrash::Rerun) | [`Claim::Acquired`], attempt + 1 | claimed for `request`; the old token no longer works |
    /// | a claim with an expired lease and the same fingerprint, under [`AfterCrash::Reject`](crate::AfterCrash::Reject) | [`Claim::Lapsed`] | the claim never expires |
    /// | a claim with an expired lease and another fingerprint | [`Claim::Lapsed`] | nothing |
    /// | a record | [`Claim::Completed`] | nothing |
    ///
    /// Under [`AfterCrash::Rerun`](crate::AfterCrash::Rerun) a claim is kept for `request.ttl` after its last claim or
    /// renewal. The ttl is at least twice the lease, so a claim outlives its lease. A request that comes between the
    /// end of the lease and the end of the ttl is the next attempt, not the first one.
    ///
    /// Under [`AfterCrash::Reject`](crate::AfterCrash::Reject) a claim never expires: it stays until it is completed,
    /// released, [resolved](StoreAdmin::resolve) or purged.
    ///
    /// If the policy changes, the policy of the request decides. A claim that the request takes over follows the
    /// request's policy. A claim that only [`AfterCrash::Reject`](crate::AfterCrash::Reject) of the request keeps from a
    /// takeover never expires from then on.
    ///
    /// # Errors
    ///
    /// [`StoreError::Full`] if there is no room for a new claim, because a store never evicts a live entry.
    /// [`StoreError::Damaged`] if the entry cannot be read. If such an entry counted as absent, the request would run
    /// twice.
    fn claim(&self, key: &RecordKey, request: ClaimRequest) -> impl Future<Output = Result<Claim, StoreError>> + Send;

    /// Renews the lease for `lease` from now if `token` still holds the claim. A `lease` of zero is allowed.
    fn renew(
        &self,
        key: &RecordKey,
        token: Token,
        lease: Duration,
    ) -> impl Future<Output = Result<Held, StoreError>> + Send;

    /// Does the same as [`renew`](Self::renew) for many keys at once. Returns one answer for each renewal, in the order
    /// of `renewals`. The provided method calls `renew` for each of them concurrently.
    ///
    /// The engine makes one such call at a time for a store, with at most 256 renewals. A renewal that fails must not fail
    /// the others. No renewal may delay claims or completions for longer than one such call takes.
    fn renew_many(&self, renewals: &[Renewal]) -> impl Future<Output = Vec<Result<Held, StoreError>>> + Send {
        join_all(renewals.iter().map(|renewal| self.renew(&renewal.key, renewal.token, renewal.lease)))
    }

    /// Replaces the claim of `token` by `record`, which is kept for `ttl` from now. Takes one round trip.
    ///
    /// Once this has returned [`Held::Yes`], a retry gets the record, even after a crash, as far as the store is
    /// durable. A second call with the same token returns [`Held::Yes`] and changes nothing. A full store still accepts
    /// the record of a claim that it granted.
    fn complete(
        &self,
        key: &RecordKey,
        token: Token,
        record: Record,
        ttl: Duration,
    ) -> impl Future<Output = Result<Held, StoreError>> + Send;

    /// Ends the claim of `token`, so that `key` has no entry. A record is not changed.
    ///
    /// If `token` has neither a claim nor a record under `key`, a claim by `token` may still be on its way to the
    /// store. Under [`AfterCrash::Reject`](crate::AfterCrash::Reject) the store must fail that claim for at least a
    /// day: no handler would run under it, and it would reject its key forever. This holds whatever happens to the key
    /// in between: requests with other tokens may claim, release or complete it, and their entries may expire or be
    /// purged. Under [`AfterCrash::Rerun`](crate::AfterCrash::Rerun) the store may grant the late claim, because it
    /// ends with its lease.
    ///
    /// Claims by other tokens are not affected. [`get`](StoreAdmin::get), [`list`](StoreAdmin::list) and
    /// [`purge`](StoreAdmin::purge) do not show the tokens that a store keeps for this.
    fn release(&self, key: &RecordKey, token: Token) -> impl Future<Output = Result<Held, StoreError>> + Send;

    /// Keeps the record of `key` for `ttl` from now, whatever time it had left. A claim is not changed. Returns
    /// [`Held::No`] if the key has no record.
    ///
    /// [`Duration::MAX`] means that the record does not expire, because the handler of the step runs under
    /// [`AfterCrash::Reject`](crate::AfterCrash::Reject). Do not add it to a time unchecked: that panics.
    ///
    /// The engine calls this to keep the results of steps for as long as their handler runs. The provided method does
    /// nothing. The result of a step is then kept for the policy's `ttl` from the end of the step. An attempt that
    /// reaches the step later runs it again.
    fn extend(&self, key: &RecordKey, ttl: Duration) -> impl Future<Output = Result<Held, StoreError>> + Send {
        let _ = (key, ttl);
        std::future::ready(Ok(Held::No))
    }

    /// Resolves when the entry of `key` may have changed, in any process.
    ///
    /// The engine polls the future once before it reads the entry, and does not poll it again until it has read the
    /// entry. The first poll must subscribe, so that no change is missed. After it, the future must not hold anything
    /// that the read needs, such as a connection.
    ///
    /// This is a hint that lets a waiting request look at once. The future may resolve too often or, as in the provided
    /// method, never. The engine learns of changes in its own process without it.
    fn changed(&self, key: &RecordKey) -> impl Future<Output = ()> + Send {
        let _ = key;
        std::future::pending()
    }

    /// Returns the transactions of the store's database, for handlers that take a `Tx`. The provided method returns
    /// none.
    ///
    /// A store that wraps another store returns the transactions of that store.
    fn transactions(&self) -> Option<Transactions> {
        None
    }

    /// Returns the same store if it never waits before it answers. The provided method returns `None`.
    ///
    /// With such a store the engine saves a boxed future and a timer.
    fn immediate(&self) -> Option<&dyn ImmediateStore> {
        None
    }
}

/// The methods for operators, the inspector, metrics and waiting requests, which look at entries and end them.
///
/// A [`Registry`](crate::Registry) needs both traits. The future of each method can be dropped at any await. A dropped
/// call must have its whole effect or none.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the store of a registry",
    label = "expected `MemoryStore`, `SqliteStore`, `RedisStore`, `PostgresStore`, or a store of your own",
    note = "for a `PgPool` write `PostgresStore::new(pool)`; for SQLite, also beside a `SqlitePool`, `SqliteStore::open(path).await?`; for a URL `RedisStore::connect(url).await?` or `PostgresStore::connect(url).await?`",
    note = "for a future write `.await` after it, for a `Result` write `?`, and for a `Registry` write `registry.install()?`",
    note = "a store of your own needs `Store` and `StoreAdmin`"
)]
pub trait StoreAdmin: Store {
    /// Returns the entry of `key`.
    ///
    /// # Errors
    ///
    /// [`StoreError::Damaged`] if the entry cannot be read, as from [`claim`](Store::claim).
    fn get(&self, key: &RecordKey) -> impl Future<Output = Result<Option<Entry>, StoreError>> + Send;

    /// Removes the entry of `key`, a claim or a record. Returns false if there was none. An entry that cannot be read
    /// is removed too, and the answer is true.
    ///
    /// The next request runs the handler again, so only operators who know that this is safe should call it. A handler
    /// that still runs keeps its key in its own process, and claims it again at its next renewal or when it records. If
    /// another process claims the key before that, the request is executed twice, and the first handler can no longer
    /// record.
    fn purge(&self, key: &RecordKey) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Ends the claim of `token` after an operator has found out whether its request was executed. The call is one
    /// atomic step.
    ///
    /// | the key has | the answer | what changes |
    /// |---|---|---|
    /// | a claim with `token` whose lease has expired | [`Resolved::Yes`] | the claim becomes the record of [`Resolution::Executed`], under the token of the resolution, or is removed |
    /// | a claim with `token` whose lease has not expired | [`Resolved::StillRunning`] | nothing |
    /// | the record of this resolution: a repeated call recognises it | [`Resolved::Yes`] | nothing |
    /// | anything else: another claim, a record, or no entry | [`Resolved::ChangedHands`] | nothing |
    ///
    /// The store's own clock decides about the lease. If the holder renews its lease at the same time, either the renewal takes
    /// effect and the answer is [`Resolved::StillRunning`], or the claim is resolved and the renewal fails. Requests that wait
    /// for the key are woken as by a completion.
    ///
    /// A record is never changed, even if it has no body, because its request is known to be executed. The keys of
    /// steps have claims of their own.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be asked, or does not take the record ([`StoreError::RecordRejected`]). After
    /// [`StoreError::Unavailable`] the resolution may have taken effect or not: look at the entry again.
    fn resolve(
        &self,
        key: &RecordKey,
        token: Token,
        resolution: Resolution,
    ) -> impl Future<Output = Result<Resolved, StoreError>> + Send;

    /// Deletes one batch of expired entries. Returns how many it deleted, and 0 if none are left.
    ///
    /// The stores of this crate do this by themselves. Call it to delete expired entries at once.
    fn delete_expired(&self) -> impl Future<Output = Result<usize, StoreError>> + Send;

    /// Returns the number of unknown outcomes in each scope. Such an outcome is a claim that never expires and whose
    /// lease has expired. A scope without unknown outcomes is left out.
    ///
    /// The engine calls it every few seconds, so it must not read the whole store. A store uses an index, and counts at most
    /// [`UNKNOWN_OUTCOMES_COUNTED`]. The provided method reads that many entries of the listing.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be asked. A damaged entry is no error, and is not counted.
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

    /// Returns one page of at most `limit` live and damaged entries, in an order that the store chooses.
    ///
    /// Following [`Page::next`] to the end returns exactly once every entry that exists all the time. A page may have
    /// fewer entries than asked for, or none, and still have a next page. So a store can limit how long a page takes.
    fn list(&self, cursor: Option<Cursor>, limit: usize) -> impl Future<Output = Result<Page, StoreError>> + Send;

    /// Returns one page of the claims alone, as [`list`](Self::list) does for all entries. Returns `None` if the store
    /// has no index of claims.
    ///
    /// Operators use it to find what runs and what is stuck, however many records there are. So it must not read the
    /// whole store. The provided method returns `None`. Operators then see only the claims among the entries that a
    /// listing has reached.
    fn claims(
        &self,
        cursor: Option<Cursor>,
        limit: usize,
    ) -> impl Future<Output = Result<Option<Page>, StoreError>> + Send {
        let _ = (cursor, limit);
        std::future::ready(Ok(None))
    }
}

/// A store in this process's memory. It answers at once, by the rules of [`Store`].
pub trait ImmediateStore: Send + Sync {
    /// Claims `key`, by the rules of [`Store::claim`].
    ///
    /// # Errors
    ///
    /// The errors of [`Store::claim`].
    fn claim_now(&self, key: &RecordKey, request: ClaimRequest) -> Result<Claim, StoreError>;

    /// Completes a claim, by the rules of [`Store::complete`]. The record is borrowed, so the caller of this method
    /// keeps it.
    ///
    /// # Errors
    ///
    /// The errors of [`Store::complete`].
    fn complete_now(&self, key: &RecordKey, token: Token, record: &Record, ttl: Duration) -> Result<Held, StoreError>;
}
