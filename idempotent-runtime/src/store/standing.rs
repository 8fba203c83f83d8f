//! What stands under a key in a table, and what becomes of a claim on it: one rule for every store that judges in Rust.

use super::{AfterCrash, Claim, ClaimRequest, Token};
use crate::{Fingerprint, Record};

/// What stands under a key and is alive.
pub(crate) enum Standing {
    Claimed { fingerprint: Fingerprint, token: Token, attempt: u32, leased: bool, expires: bool },
    Completed(Record),
}

/// What becomes of a claim.
pub(super) enum Verdict {
    /// Nothing changes.
    Answer(Claim),
    /// The claim of this token is refused from here on: it must not expire, or a retry would run.
    Keep { token: Token, fingerprint: Fingerprint },
    /// The key is the claimant's to take.
    Take { attempt: u32 },
}

/// Those who only read and those who write decide by the same rule; only the latter may act on [`Verdict::Take`].
pub(super) fn judge(standing: Option<Standing>, request: &ClaimRequest) -> Verdict {
    let Some(standing) = standing else { return Verdict::Take { attempt: 1 } };
    Verdict::Answer(match standing {
        Standing::Completed(record) => Claim::Completed(record),
        Standing::Claimed { token, attempt, .. } if token == request.token => Claim::Acquired { attempt },
        Standing::Claimed { fingerprint, leased: true, .. } => Claim::InFlight { fingerprint },
        Standing::Claimed { fingerprint, .. } if fingerprint != request.fingerprint => Claim::Lapsed { fingerprint },
        Standing::Claimed { attempt, .. } if request.after_crash == AfterCrash::Rerun => {
            return Verdict::Take { attempt: attempt.saturating_add(1) };
        }
        Standing::Claimed { fingerprint, token, expires: true, .. } => return Verdict::Keep { token, fingerprint },
        Standing::Claimed { fingerprint, .. } => Claim::Lapsed { fingerprint },
    })
}
