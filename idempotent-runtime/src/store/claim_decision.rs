//! The decision on a claim by the stored state of its key: one rule for all stores that decide in Rust.

use crate::fingerprint::Fingerprint;
use crate::record::Record;
use crate::store::claim::{Claim, ClaimRequest, Token};

/// The state of a key with an entry that has not expired, for [`decide`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoredState {
    /// The key is claimed.
    Claimed(ExistingClaim),
    /// The key has a record.
    Completed(Record),
}

/// The claim that a key already has, for [`decide`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExistingClaim {
    pub(crate) token: Token,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) attempt: u32,
    pub(crate) leased: bool,
    pub(crate) expires: bool,
}

impl ExistingClaim {
    /// Describes the first claim of a key, by the token of its holder and the fingerprint of its request. Its lease has
    /// not expired, and the claim itself expires.
    #[must_use]
    pub const fn new(token: Token, fingerprint: Fingerprint) -> Self {
        Self { token, fingerprint, attempt: 1, leased: true, expires: true }
    }

    /// Sets the number of the attempt; 1 is the first claim of the key.
    #[must_use]
    pub const fn with_attempt(mut self, attempt: u32) -> Self {
        self.attempt = attempt;
        self
    }

    /// Sets whether the lease is still valid.
    #[must_use]
    pub const fn with_lease(mut self, leased: bool) -> Self {
        self.leased = leased;
        self
    }

    /// Sets whether the claim itself expires. A claim that was made under
    /// [`AfterCrash::Reject`](crate::store::AfterCrash::Reject) does not.
    #[must_use]
    pub const fn with_expiry(mut self, expires: bool) -> Self {
        self.expires = expires;
        self
    }
}

/// The answer to a claim, or the change that the store must make first.
///
/// It is not `#[non_exhaustive]`: a store that does not act on each variant breaks the contract, so a new variant must not
/// compile in it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "the store must answer or write as it says"]
pub enum Decision {
    /// Nothing changes, and this is the answer.
    Answer(Claim),
    /// The store removes the expiry of the existing claim with this token and answers [`Claim::Lapsed`]. Otherwise the
    /// claim could expire, and a retry of the rejected request would run.
    Keep {
        /// The token of the existing claim.
        token: Token,
        /// The fingerprint of the existing claim.
        fingerprint: Fingerprint,
    },
    /// The request gets the key with this attempt, unless its token was [released](crate::store::Store::release)
    /// before.
    Take {
        /// The number of the attempt for [`Claim::Acquired`].
        attempt: u32,
    },
}

/// Returns what the store does with a claim, by the table of [`Store::claim`](crate::store::Store::claim).
///
/// Call it in the transaction, or under the lock, in which the store acts on the decision. Otherwise two requests can
/// get the same key.
///
/// # Examples
///
/// ```
/// use idempotent_runtime::Fingerprint;
/// use idempotent_runtime::store::{AfterCrash, Claim, ClaimRequest, Decision, ExistingClaim, StoredState, Token, decide};
///
/// let fingerprint = Fingerprint::from_bytes([7; 32]);
/// let request = ClaimRequest::new(Token::unique(), fingerprint);
/// assert_eq!(decide(None, &request), Decision::Take { attempt: 1 });
///
/// let token = Token::unique();
/// let claimed = |leased| StoredState::Claimed(ExistingClaim::new(token, fingerprint).with_lease(leased));
/// assert_eq!(decide(Some(claimed(true)), &request), Decision::Answer(Claim::InFlight { fingerprint }));
/// assert_eq!(decide(Some(claimed(false)), &request), Decision::Take { attempt: 2 });
///
/// let never_again = request.with_after_crash(AfterCrash::Reject);
/// assert_eq!(decide(Some(claimed(false)), &never_again), Decision::Keep { token, fingerprint });
/// ```
pub fn decide(existing: Option<StoredState>, request: &ClaimRequest) -> Decision {
    let existing = match existing {
        None => return Decision::Take { attempt: 1 },
        Some(StoredState::Completed(record)) => return Decision::Answer(Claim::Completed(record)),
        Some(StoredState::Claimed(existing)) => existing,
    };
    let ExistingClaim { token, fingerprint, attempt, leased, expires } = existing;
    if token == request.token {
        Decision::Answer(Claim::Acquired { attempt })
    } else if leased {
        Decision::Answer(Claim::InFlight { fingerprint })
    } else if !request.is_same_as(fingerprint) {
        Decision::Answer(Claim::Lapsed { fingerprint })
    } else if request.after_crash.may_rerun() {
        Decision::Take { attempt: attempt.saturating_add(1) }
    } else if expires {
        Decision::Keep { token, fingerprint }
    } else {
        Decision::Answer(Claim::Lapsed { fingerprint })
    }
}
