//! The types of a claim: the request and the answer.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::fingerprint::Fingerprint;
use crate::key::RecordKey;
use crate::policy::values::AfterCrash;
use crate::record::Record;

/// The request for a claim.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use idempotent_runtime::store::{ClaimRequest, Token};
/// use idempotent_runtime::{AfterCrash, Fingerprint};
///
/// let request = ClaimRequest::new(Token::unique(), Fingerprint::from_bytes([7; 32]))
///     .with_lease(Duration::from_secs(10))
///     .with_after_crash(AfterCrash::Reject);
/// assert_eq!(request.ttl, Duration::from_secs(24 * 60 * 60));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClaimRequest {
    /// The token that the claimant chose. A repeated call recognises its own claim by it.
    pub token: Token,
    /// The fingerprint of the request.
    pub fingerprint: Fingerprint,
    /// The fingerprint of the same request under an earlier secret of the registry. The request may take over a claim
    /// with this fingerprint too. The claim then has the new [`fingerprint`](Self::fingerprint).
    pub former_fingerprint: Option<Fingerprint>,
    /// The time for which the claim is exclusive unless it is renewed.
    pub lease: Duration,
    /// The time for which the claim is kept after its last claim or renewal, under [`AfterCrash::Rerun`]. The engine
    /// asks for at least twice the `lease`, whatever the policy's `ttl`, so a claim outlives its lease.
    pub ttl: Duration,
    /// Whether a claim with an expired lease may be taken over. If not, the claim never expires.
    pub after_crash: AfterCrash,
    /// The client that the entry counts for in a store with a bound. Without an owner, it counts for no client.
    pub owner: Option<Owner>,
    /// Whether the token belongs to a running handler whose claim the store has lost. If this claim fails, the token
    /// must not be released.
    pub(crate) is_of_running: bool,
}

impl ClaimRequest {
    /// Creates a request with the attribute's defaults: a lease of 30 seconds, a `ttl` of 24 hours, and
    /// [`AfterCrash::Rerun`].
    pub const fn new(token: Token, fingerprint: Fingerprint) -> Self {
        Self {
            token,
            fingerprint,
            former_fingerprint: None,
            lease: idempotent_policy::LEASE,
            ttl: idempotent_policy::TTL,
            after_crash: AfterCrash::Rerun,
            owner: None,
            is_of_running: false,
        }
    }

    /// Returns the same request with the token of another claimant.
    #[must_use]
    pub const fn with_token(self, token: Token) -> Self {
        Self { token, ..self }
    }

    /// Returns the same request with another [`fingerprint`](Self::fingerprint).
    #[must_use]
    pub const fn with_fingerprint(self, fingerprint: Fingerprint) -> Self {
        Self { fingerprint, ..self }
    }

    /// Returns the same request with a [`former_fingerprint`](Self::former_fingerprint).
    #[must_use]
    pub const fn with_former_fingerprint(self, fingerprint: Fingerprint) -> Self {
        Self { former_fingerprint: Some(fingerprint), ..self }
    }

    /// Returns whether a claim with this fingerprint is a claim of the same request.
    ///
    /// ```
    /// use idempotent_runtime::Fingerprint;
    /// use idempotent_runtime::store::{ClaimRequest, Token};
    ///
    /// let [new, former, other] = [1, 2, 3].map(|byte| Fingerprint::from_bytes([byte; 32]));
    /// let request = ClaimRequest::new(Token::unique(), new).with_former_fingerprint(former);
    /// assert!(request.is_same_as(new) && request.is_same_as(former) && !request.is_same_as(other));
    /// ```
    pub fn is_same_as(&self, stored: Fingerprint) -> bool {
        stored == self.fingerprint || Some(stored) == self.former_fingerprint
    }

    /// Returns the former fingerprint, or the new one if there is no former: a statement always compares both.
    #[cfg(any(feature = "postgres", feature = "redis"))]
    pub(crate) fn other_fingerprint(&self) -> Fingerprint {
        self.former_fingerprint.unwrap_or(self.fingerprint)
    }

    /// Returns the same request with another [`lease`](Self::lease).
    #[must_use]
    pub const fn with_lease(self, lease: Duration) -> Self {
        Self { lease, ..self }
    }

    /// Returns the same request with another [`ttl`](Self::ttl).
    #[must_use]
    pub const fn with_ttl(self, ttl: Duration) -> Self {
        Self { ttl, ..self }
    }

    /// Returns the same request with another [`after_crash`](Self::after_crash).
    #[must_use]
    pub const fn with_after_crash(self, after_crash: AfterCrash) -> Self {
        Self { after_crash, ..self }
    }

    /// Returns the same request with an [`owner`](Self::owner).
    #[must_use]
    pub const fn with_owner(self, owner: Owner) -> Self {
        Self { owner: Some(owner), ..self }
    }

    /// Returns the time for which a claim is kept whose record will be kept for `ttl`.
    ///
    /// A claim must outlive its lease. If it were deleted when its lease expires, the next attempt would be the first
    /// one.
    pub(crate) fn remembered_for(ttl: Duration, lease: Duration) -> Duration {
        ttl.max(lease.saturating_mul(2))
    }
}

/// The client that an entry counts for in a store that limits each client: a digest of the caller, or else of the
/// credentials.
///
/// All requests that have neither have one owner. If the registry has a secret, the digest is keyed. The digest is the
/// same in all scopes.
///
/// # Examples
///
/// ```
/// use idempotent_runtime::store::Owner;
///
/// assert_eq!(Owner::from_u128(7).as_u128(), 7);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Owner(u128);

impl Owner {
    /// Returns the owner with this number.
    pub const fn from_u128(number: u128) -> Self {
        Self(number)
    }

    /// Returns the owner as a number, as a store writes it.
    pub const fn as_u128(self) -> u128 {
        self.0
    }
}

/// Shows nothing of the client.
impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Owner(..)")
    }
}

/// The request for a renewal.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Renewal {
    /// The key of the claim.
    pub key: RecordKey,
    /// The token of the claim.
    pub token: Token,
    /// The time for which the claim is exclusive from now on.
    pub lease: Duration,
}

impl Renewal {
    /// Creates a renewal of the claim with this token.
    pub const fn new(key: RecordKey, token: Token, lease: Duration) -> Self {
        Self { key, token, lease }
    }
}

/// The answer to a claim: the state of its key.
///
/// # Examples
///
/// ```
/// # #[cfg(feature = "memory")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), idempotent_runtime::store::StoreError> {
/// use idempotent_runtime::store::{Claim, ClaimRequest, MemoryStore, Store, Token};
/// use idempotent_runtime::{Fingerprint, RecordKey};
///
/// let (store, key) = (MemoryStore::new(), RecordKey::new("charges", None, "8e03978e"));
/// let fingerprint = Fingerprint::from_bytes([7; 32]);
/// let request = ClaimRequest::new(Token::unique(), fingerprint);
///
/// assert_eq!(store.claim(&key, request).await?, Claim::Acquired { attempt: 1 });
/// let duplicate = request.with_token(Token::unique());
/// assert_eq!(store.claim(&key, duplicate).await?, Claim::InFlight { fingerprint });
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "memory"))]
/// # fn main() {}
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Claim {
    /// The caller has the claim.
    Acquired {
        /// The number of the attempt: 1 for the first claim. After a claim that was neither completed nor released, it
        /// is one more than the number of that claim.
        attempt: u32,
    },
    /// Another claim exists, and its lease has not expired.
    InFlight {
        /// The fingerprint of the request that has the claim.
        fingerprint: Fingerprint,
    },
    /// Another claim exists. Its lease has expired, and this request may not take it over.
    Lapsed {
        /// The fingerprint of the request that has the claim.
        fingerprint: Fingerprint,
    },
    /// The key has a record.
    Completed(Record),
}

/// The result of a call that names a token: whether the token held the claim when it was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a lost claim means that another handler may run"]
pub enum Held {
    /// The token held the claim, and the call took effect.
    Yes,
    /// The token did not hold the claim, and nothing changed.
    No,
}

#[cfg(any(feature = "postgres", feature = "redis", feature = "sqlite"))]
impl Held {
    /// Converts the result of a write that names the token.
    pub(crate) fn of(took_effect: bool) -> Self {
        if took_effect { Self::Yes } else { Self::No }
    }
}

/// The fencing token of a claim. Tokens are unique, so a holder that lost its claim cannot be confused with its successor.
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
pub struct Token(pub(crate) u128);

impl Token {
    /// Creates a token that no other claim of any process has: 48 random bits of this process, 42 bits of the time in
    /// milliseconds since 1970, and 38 bits of a counter.
    pub fn unique() -> Self {
        static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(std::process::id()));
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let count = NEXT.fetch_add(1, Ordering::Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (process, millis) = (u128::from(*PROCESS) >> 16, now.as_millis() & low_bits(42));
        Self(process << 80 | millis << 38 | u128::from(count) & low_bits(38))
    }

    /// Returns the time at which the token was made, by the clock of the process that made it. The claim was sent then.
    ///
    /// Show this time to people, and do not decide about leases by it. It is meaningful only for a token that
    /// [`unique`](Self::unique) made.
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    /// use idempotent_runtime::store::Token;
    ///
    /// let before = SystemTime::now() - Duration::from_millis(1); // It is told in whole milliseconds.
    /// assert!((before..=SystemTime::now()).contains(&Token::unique().created_at()));
    /// ```
    pub fn created_at(self) -> SystemTime {
        let millis = self.0 >> 38 & low_bits(42);
        UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap_or_default())
    }

    /// Returns the token with this number, as a store reads it.
    pub const fn from_u128(number: u128) -> Self {
        Self(number)
    }

    /// Returns the token as a number, as a store writes it.
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
