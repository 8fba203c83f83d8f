//! Where claims and records live: the trait, its words, and the stores that come with this crate.
//!
//! | store | for | engine |
//! |---|---|---|
//! | `MemoryStore` | tests, one process | in-process, bounded by bytes |
//! | `SqliteStore` | the embedded default: survives a restart | SQLite in WAL mode, group commit |
//! | `RedisStore` | many processes | Redis or Valkey 6.2 or newer, Cluster included; one script an operation |
//! | `PostgresStore` | many processes | PostgreSQL 13 or newer; takes the application's own pool |
//!
//! A store of your own implements [`Store`] and shows with
//! [`testing::conformance`](crate::testing::conformance) (feature `testing`) that it keeps the contract:
//! [`guide::writing_a_store`](crate::guide::writing_a_store) has the rules in words, and a whole one.
//!
//! ```text
//! absent ──claim──▶ claimed(token, lease, attempt) ──complete──▶ completed(record) ──ttl──▶ absent
//!    ▲                  │            │
//!    └────release───────┘            └─ lease ran out: the next claim with the same fingerprint takes over
//!                                       (attempt + 1) under `AfterCrash::Rerun`, and never under `AfterCrash::Refuse`:
//!                                       such a claim has no ttl, until it is completed, released or purged
//! ```

mod bounded;
#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
pub(crate) mod columns;
mod give_back;
#[cfg(any(feature = "memory", feature = "postgres", feature = "redis", feature = "sqlite"))]
mod given_back;
mod line;
#[cfg(feature = "memory")]
mod memory;
#[cfg(feature = "near-cache")]
mod near;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
pub(crate) mod redis;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) mod row;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
mod running;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) mod standing;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::{BoxFuture, join_all};
use http::StatusCode;

pub(crate) use self::bounded::BoundedStore;
#[cfg(feature = "memory")]
pub use self::memory::{MemoryStore, MemoryStoreBuilder};
#[cfg(feature = "near-cache")]
pub(crate) use self::near::NearCache;
#[cfg(feature = "postgres")]
pub use self::postgres::{MigrateError, PostgresStore, PostgresStoreBuilder};
#[cfg(feature = "redis")]
pub use self::redis::{RedisOpenError, RedisStore, RedisStoreBuilder};
#[cfg(feature = "sqlite")]
pub use self::sqlite::*;
pub use crate::policy::AfterCrash;
pub use crate::transaction::Transactions;
use crate::{Fingerprint, Record, RecordKey};

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
    /// | nothing, and `request.token` was [released](Self::release) before | an error | nothing |
    /// | a claim with `request.token` | [`Claim::Acquired`], its attempt | nothing: a retried call recognises itself |
    /// | a claim within its lease | [`Claim::InFlight`] | nothing |
    /// | a claim whose lease ran out, the same fingerprint, [`AfterCrash::Rerun`] | [`Claim::Acquired`], attempt + 1 | claimed for `request`; the old token is worthless |
    /// | a claim whose lease ran out, the same fingerprint, [`AfterCrash::Refuse`] | [`Claim::Lapsed`] | the claim never expires |
    /// | a claim whose lease ran out, another fingerprint | [`Claim::Lapsed`] | nothing |
    /// | a record | [`Claim::Completed`] | nothing |
    ///
    /// Under [`AfterCrash::Rerun`] a claim is remembered for `request.ttl` after its last claim or renewal. That is at least
    /// twice its lease, so a claim outlives its lease: what comes between the two is the next attempt, not the first one.
    /// Under [`AfterCrash::Refuse`] a claim never expires: it stays until it is completed, released or purged. Where the
    /// policy changes, that of the request decides: what it takes over lives by its own rule, and what it refuses to run
    /// again stays refused.
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
    /// If `token` has no claim and nothing else stands under `key`, a claim by `token` may still be on its way to the store. It
    /// must fail when it arrives, for a day at least: nothing will run under it, and under [`AfterCrash::Refuse`] it would
    /// refuse its key for ever. Claims by other tokens are not affected, and [`get`](Self::get), [`list`](Self::list) and
    /// [`purge`](Self::purge) do not show what a store keeps for this.
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
    fn sweep(&self) -> impl Future<Output = Result<usize, StoreError>> + Send;

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

/// How many unknown outcomes there are in each scope.
pub type UnknownOutcomes = BTreeMap<String, u64>;

/// How many unknown outcomes a store counts at most, all scopes together.
pub const UNKNOWN_OUTCOMES_COUNTED: usize = 10_000;

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

/// What a claim asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClaimRequest {
    /// Drawn by the claimant, so that a retried call recognises its own claim.
    pub token: Token,
    /// What the request asks for.
    pub fingerprint: Fingerprint,
    /// How long the claim is exclusive unless it is renewed.
    pub lease: Duration,
    /// How long the claim is remembered after its last claim or renewal, under [`AfterCrash::Rerun`]. The engine asks for at
    /// least twice the `lease`, whatever the policy's `ttl`, so that a claim outlives its lease.
    pub ttl: Duration,
    /// Whether a claim whose lease ran out may be taken over. If not, the claim never expires.
    pub after_crash: AfterCrash,
}

impl ClaimRequest {
    /// How long a claim is remembered whose record will be kept for `ttl`.
    ///
    /// It outlives its lease: a claim that is forgotten when its lease is over would make the next attempt the first one.
    pub(crate) fn remembered_for(ttl: Duration, lease: Duration) -> Duration {
        ttl.max(lease.saturating_mul(2))
    }
}

/// What a renewal asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// The key.
    pub key: RecordKey,
    /// Of the claim that is renewed.
    pub token: Token,
    /// How long the claim is exclusive from now on.
    pub lease: Duration,
}

/// One answer for each renewal of a call that took effect or failed as a whole.
#[cfg(any(feature = "postgres", feature = "sqlite"))]
pub(crate) fn each(renewals: usize, answers: Result<Vec<Held>, StoreError>) -> Vec<Result<Held, StoreError>> {
    match answers {
        Ok(answers) => answers.into_iter().map(Ok).collect(),
        Err(error) => {
            let error: Arc<dyn std::error::Error + Send + Sync> = Arc::new(error);
            (0..renewals).map(|_| Err(StoreError::unavailable(Arc::clone(&error)))).collect()
        }
    }
}

/// What stood under the key when a claim came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The claim is the caller's.
    Acquired {
        /// 1 for the first one, one more for each claim whose lease ran out before.
        attempt: u32,
    },
    /// Somebody else holds it.
    InFlight {
        /// What that request asks for.
        fingerprint: Fingerprint,
    },
    /// Somebody else held it and may not be followed.
    Lapsed {
        /// What that request asked for.
        fingerprint: Fingerprint,
    },
    /// It is done.
    Completed(Record),
}

/// Whether the token held the claim when it was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a lost claim means that somebody else may be running"]
pub enum Held {
    /// It did, and the call took effect.
    Yes,
    /// It did not, and nothing changed.
    No,
}

/// The fencing token of a claim: unique, so that a holder that lost its claim can be told from its successor.
///
/// # Examples
///
/// ```
/// use idempotent_runtime::store::Token;
///
/// let token = Token::unique();
/// assert_ne!(token, Token::unique());
/// assert_eq!(token, Token::from_u128(token.as_u128()));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(u128);

impl Token {
    /// A token that no other claim of any process has: 48 random bits of this process, 42 of the time in milliseconds
    /// since 1970, and 38 of a counter.
    pub fn unique() -> Self {
        static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(std::process::id()));
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let count = NEXT.fetch_add(1, Ordering::Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (process, millis) = (u128::from(*PROCESS) >> 16, now.as_millis() & low_bits(42));
        Self(process << 80 | millis << 38 | u128::from(count) & low_bits(38))
    }

    /// When it was drawn, by the clock of the process that drew it: when its claim was asked for.
    ///
    /// For people who look, not for judging leases; of a token that [`unique`](Self::unique) did not make it says nothing.
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    /// use idempotent_runtime::store::Token;
    ///
    /// let before = SystemTime::now() - Duration::from_millis(1); // It is told in whole milliseconds.
    /// assert!((before..=SystemTime::now()).contains(&Token::unique().drawn_at()));
    /// ```
    pub fn drawn_at(self) -> SystemTime {
        let millis = self.0 >> 38 & low_bits(42);
        UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap_or_default())
    }

    /// The token with this number, as a store reads it back.
    pub const fn from_u128(number: u128) -> Self {
        Self(number)
    }

    /// The token as a number, as a store writes it.
    pub const fn as_u128(self) -> u128 {
        self.0
    }
}

const fn low_bits(count: u32) -> u128 {
    (1 << count) - 1
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({:032x})", self.0)
    }
}

/// Why a store could not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// It cannot be reached, or failed; the call may have taken effect.
    #[error("the store is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It cannot be reached, or its turn did not come in time: the call was not sent, and never will be.
    #[error("the store could not be asked")]
    NotSent(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It has no room for a new claim.
    #[error("the store is full")]
    Full,
    /// It did not answer within the registry's time limit; the call may have taken effect.
    #[error("the store did not answer within {0:?}")]
    TimedOut(Duration),
    /// What stands under the key cannot be read. The request is refused, never run again.
    #[error("what is stored cannot be read: {0}")]
    Damaged(String),
}

impl StoreError {
    /// The store failed for this reason.
    pub fn unavailable(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Unavailable(source.into())
    }

    /// The call was not sent for this reason: it had no effect, and a claim need not be given back.
    pub fn not_sent(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::NotSent(source.into())
    }

    /// What stands under the key cannot be read for this reason.
    pub fn damaged(reason: impl fmt::Display) -> Self {
        Self::Damaged(reason.to_string())
    }
}

/// What stands under a key, without the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: RecordKey,
    /// What the request asked for.
    pub fingerprint: Fingerprint,
    /// Claim or record.
    pub state: EntryState,
    /// How long it is still kept; `None` when it never expires, as the claim of a handler with [`AfterCrash::Refuse`].
    pub expires_in: Option<Duration>,
}

impl Entry {
    /// Whether it is a claim that is never taken over and whose lease is over: nobody knows whether the handler has done
    /// its work.
    pub fn is_unknown_outcome(&self) -> bool {
        self.expires_in.is_none() && matches!(self.state, EntryState::Claimed { lease: None, .. })
    }
}

/// The state of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryState {
    /// A handler runs, or ran in a process that died.
    Claimed {
        /// How many times the key was claimed.
        attempt: u32,
        /// What is left of the lease; `None` when it ran out.
        lease: Option<Duration>,
        /// Whose it is, which tells since when ([`Token::drawn_at`]).
        token: Token,
    },
    /// A handler has answered.
    Completed {
        /// With this status.
        status: StatusCode,
        /// The length of the recorded body in bytes; `None` when it was not recorded.
        body_bytes: Option<u64>,
        /// When.
        recorded_at: SystemTime,
    },
}

/// A place in a listing, in the store's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor(pub String);

/// What stands under a key and cannot be read; requests with that key are refused until it is purged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedEntry {
    /// The key; `None` when it is the key that cannot be read.
    pub key: Option<RecordKey>,
    /// What is wrong, in words that can be logged: no key, and nothing of a response.
    pub reason: String,
}

/// A part of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The entries.
    pub entries: Vec<Entry>,
    /// What stands between them and cannot be read: one damaged entry must not hide the others.
    pub damaged: Vec<DamagedEntry>,
    /// Where the next page begins; `None` after the last one.
    pub next: Option<Cursor>,
}

#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
impl Page {
    /// Takes what was found under `key`. Anything but damage fails the page: it says nothing of this entry alone.
    fn add(&mut self, key: Option<RecordKey>, found: Result<Entry, StoreError>) -> Result<(), StoreError> {
        match found {
            Ok(entry) => self.entries.push(entry),
            Err(StoreError::Damaged(reason)) => self.damaged.push(DamagedEntry { key, reason }),
            Err(error) => return Err(error),
        }
        Ok(())
    }
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

    async fn sweep(&self) -> Result<usize, StoreError> {
        T::sweep(self).await
    }

    async fn unknown_outcomes(&self) -> Result<UnknownOutcomes, StoreError> {
        T::unknown_outcomes(self).await
    }

    async fn list(&self, cursor: Option<Cursor>, limit: usize) -> Result<Page, StoreError> {
        T::list(self, cursor, limit).await
    }
}

/// The object-safe twin of [`Store`], so that the engine is compiled once for all of them.
pub(crate) trait ErasedStore: Send + Sync {
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
    fn unknown_outcomes(&self) -> BoxFuture<'_, Result<UnknownOutcomes, StoreError>>;
    fn get<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<Option<Entry>, StoreError>>;
    #[cfg(feature = "inspector")]
    fn purge<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<bool, StoreError>>;
    #[cfg(feature = "inspector")]
    fn list(&self, cursor: Option<Cursor>, limit: usize) -> BoxFuture<'_, Result<Page, StoreError>>;
}

impl<T: Store> ErasedStore for T {
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
    fn unknown_outcomes(&self) -> BoxFuture<'_, Result<UnknownOutcomes, StoreError>> {
        Box::pin(Store::unknown_outcomes(self))
    }

    fn get<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        Box::pin(Store::get(self, key))
    }

    #[cfg(feature = "inspector")]
    fn purge<'a>(&'a self, key: &'a RecordKey) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(Store::purge(self, key))
    }

    #[cfg(feature = "inspector")]
    fn list(&self, cursor: Option<Cursor>, limit: usize) -> BoxFuture<'_, Result<Page, StoreError>> {
        Box::pin(Store::list(self, cursor, limit))
    }
}
