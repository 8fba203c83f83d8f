//! What stands under a key in a table, and what becomes of a claim on it: one rule for every store that judges in Rust.

use crate::fingerprint::Fingerprint;
use crate::policy::values::AfterCrash;
use crate::record::Record;
use crate::store::claim::{Claim, ClaimRequest, Token};

/// What stands under a key and is alive.
pub(crate) enum StoredState {
    Claimed { fingerprint: Fingerprint, token: Token, attempt: u32, leased: bool, expires: bool },
    Completed(Record),
}

/// What becomes of a claim.
pub(super) enum Decision {
    /// Nothing changes.
    Answer(Claim),
    /// The claim of this token is rejected from here on: it must not expire, or a retry would run.
    Keep { token: Token, fingerprint: Fingerprint },
    /// The key is the claimant's to take.
    Take { attempt: u32 },
}

/// Those who only read and those who write decide by the same rule; only the latter may act on [`Decision::Take`].
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
