//! The decision on a claim by the stored state of its key: one rule for all stores that decide in Rust.

use crate::fingerprint::Fingerprint;
use crate::policy::values::AfterCrash;
use crate::record::Record;
use crate::store::claim::{Claim, ClaimRequest, Token};

/// The entry of a key that has not expired.
pub(crate) enum StoredState {
    Claimed { fingerprint: Fingerprint, token: Token, attempt: u32, leased: bool, expires: bool },
    Completed(Record),
}

/// The answer to a claim, or how to store it.
pub(super) enum Decision {
    /// Nothing changes.
    Answer(Claim),
    /// The claim of this token must not expire from now on: retries are rejected, and after the expiry one would run.
    Keep {
        #[cfg_attr(
            not(any(feature = "postgres", feature = "sqlite")),
            expect(dead_code, reason = "the store in memory decides and keeps under one lock")
        )]
        token: Token,
        fingerprint: Fingerprint,
    },
    /// The request gets the key, as this attempt.
    Take { attempt: u32 },
}

/// Reads and writes of a store share this rule; only writes may act on [`Decision::Take`].
pub(super) fn decide(existing: Option<StoredState>, request: &ClaimRequest) -> Decision {
    let Some(existing) = existing else { return Decision::Take { attempt: 1 } };
    Decision::Answer(match existing {
        StoredState::Completed(record) => Claim::Completed(record),
        StoredState::Claimed { token, attempt, .. } if token == request.token => Claim::Acquired { attempt },
        StoredState::Claimed { fingerprint, leased: true, .. } => Claim::InFlight { fingerprint },
        StoredState::Claimed { fingerprint, .. } if fingerprint != request.fingerprint => Claim::Lapsed { fingerprint },
        StoredState::Claimed { attempt, .. } if request.after_crash == AfterCrash::Rerun => {
            return Decision::Take { attempt: attempt.saturating_add(1) };
        }
        StoredState::Claimed { fingerprint, token, expires: true, .. } => return Decision::Keep { token, fingerprint },
        StoredState::Claimed { fingerprint, .. } => Claim::Lapsed { fingerprint },
    })
}
