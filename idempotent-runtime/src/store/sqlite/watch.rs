//! Leases of other clocks, whose times cannot be compared: such a lease has ended when it was not renewed for as long as it
//! lasts, by the clock of the process that looks.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::sync::{Mutex, lock};

/// A claim as it was looked at: after so many renewals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct ClaimId {
    /// Its number.
    pub(super) lease: i64,
    /// The number of its row in the database.
    pub(super) record: i64,
    pub(super) renewals: i64,
}

/// What this process has seen of such leases.
#[derive(Default)]
pub(super) struct Watch(Mutex<HashMap<i64, Seen>>);

struct Seen {
    renewals: i64,
    since: Instant,
}

impl Watch {
    /// Whether the lease of this claim has ended. The first look begins to count, and so does one after each renewal.
    pub(super) fn has_ended(&self, claim: &ClaimId, lease: Duration) -> bool {
        let mut seen = lock(&self.0);
        let seen = seen.entry(claim.lease).or_insert_with(|| Seen::now(claim.renewals));
        if seen.renewals != claim.renewals {
            *seen = Seen::now(claim.renewals);
        }
        seen.since.elapsed() >= lease
    }

    /// Forgets all but these.
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
