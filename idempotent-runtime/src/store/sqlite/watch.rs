//! The leases of other clocks, whose times cannot be compared. Such a lease has ended when it was not renewed for as
//! long as it lasts, by the clock of the process that reads it.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::sync::{Mutex, lock};

/// A claim as it was read, with the number of its renewals at that time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct ClaimId {
    /// The number of the claim.
    pub(super) lease: i64,
    /// The number of its row in the database.
    pub(super) record: i64,
    pub(super) renewals: i64,
}

/// The renewals of such leases that this process has seen.
#[derive(Default)]
pub(super) struct Watch(Mutex<HashMap<i64, Seen>>);

struct Seen {
    renewals: i64,
    since: Instant,
}

impl Watch {
    /// Returns whether the lease of this claim has ended. The time counts from the first call, and again from the first
    /// call after each renewal.
    pub(super) fn has_ended(&self, claim: &ClaimId, lease: Duration) -> bool {
        let mut seen = lock(&self.0);
        let seen = seen.entry(claim.lease).or_insert_with(|| Seen::now(claim.renewals));
        if seen.renewals != claim.renewals {
            *seen = Seen::now(claim.renewals);
        }
        seen.since.elapsed() >= lease
    }

    /// Forgets all claims but these.
    pub(super) fn retain(&self, claims: &[ClaimId]) {
        let claims: HashSet<i64> = claims.iter().map(|claim| claim.lease).collect();
        lock(&self.0).retain(|lease, _| claims.contains(lease));
    }
}

impl Seen {
    fn now(renewals: i64) -> Self {
        Self { renewals, since: Instant::now() }
    }
}
