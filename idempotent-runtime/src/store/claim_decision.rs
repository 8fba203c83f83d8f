//! The decision on a claim by the stored state of its key: one rule for all stores that decide in Rust.

use crate::fingerprint::Fingerprint;
use crate::policy::values::AfterCrash;
use crate::record::Record;
use crate::store::claim::{Claim, ClaimRequest, Token};

/// The state of a key with an entry that has not expired, for [`decide`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoredState {
    /// The key is claimed.
    Claimed {
        /// The fingerprint of the claim's request.
        fingerprint: Fingerprint,
        /// The token of the claim.
        token: Token,
        /// The number of the attempt: 1 for the first claim of the key.
        attempt: u32,
        /// Whether the lease is still valid.
        leased: bool,
        /// Whether the claim itself expires. A claim that was made under [`AfterCrash::Reject`] does not.
        expires: bool,
    },
    /// The key has a record.
    Completed(Record),
}

/// The answer to a claim, or the change that the store must make first.
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
/// use idempotent_runtime::store::{AfterCrash, Claim, ClaimRequest, Decision, StoredState, Token, decide};
///
/// let fingerprint = Fingerprint::from_bytes([7; 32]);
/// let request = ClaimRequest::new(Token::unique(), fingerprint);
/// assert_eq!(decide(None, &request), Decision::Take { attempt: 1 });
///
/// let token = Token::unique();
/// let claimed = |leased| StoredState::Claimed { fingerprint, token, attempt: 1, leased, expires: true };
/// assert_eq!(decide(Some(claimed(true)), &request), Decision::Answer(Claim::InFlight { fingerprint }));
/// assert_eq!(decide(Some(claimed(false)), &request), Decision::Take { attempt: 2 });
///
/// let never_again = request.with_after_crash(AfterCrash::Reject);
/// assert_eq!(decide(Some(claimed(false)), &never_again), Decision::Keep { token, fingerprint });
/// ```
pub fn decide(existing: Option<StoredState>, request: &ClaimRequest) -> Decision {
    let Some(existing) = existing else { return Decision::Take { attempt: 1 } };
    Decision::Answer(match existing {
        StoredState::Completed(record) => Claim::Completed(record),
        StoredState::Claimed { token, attempt, .. } if token == request.token => Claim::Acquired { attempt },
        StoredState::Claimed { fingerprint, leased: true, .. } => Claim::InFlight { fingerprint },
        StoredState::Claimed { fingerprint, .. } if !request.is_same_as(fingerprint) => Claim::Lapsed { fingerprint },
        StoredState::Claimed { attempt, .. } if request.after_crash == AfterCrash::Rerun => {
            return Decision::Take { attempt: attempt.saturating_add(1) };
        }
        StoredState::Claimed { fingerprint, token, expires: true, .. } => return Decision::Keep { token, fingerprint },
        StoredState::Claimed { fingerprint, .. } => Claim::Lapsed { fingerprint },
    })
}
