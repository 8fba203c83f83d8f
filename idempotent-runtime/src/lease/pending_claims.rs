//! The claims that requests of this process have asked a store for, and that have no answer yet.
//!
//! When a handler ends whose lease has expired, or whose claim the store has forgotten, another request may have claimed its key. A
//! request of this process hands its claim over to the handler as soon as it has the store's answer. So the handler waits for that
//! answer.

use std::hash::BuildHasher;

use crate::key::RecordKey;
use crate::sync::KeyHasher;
use crate::sync::tokio::sync::watch;

// Keys that share a count wait for each other, in an end that is rare.
const COUNTS: usize = 64;

/// How many are on their way, for the keys that share a count.
pub(super) type Count = watch::Sender<usize>;

pub(super) struct PendingClaims {
    hasher: KeyHasher,
    counts: [Count; COUNTS],
}

impl Default for PendingClaims {
    fn default() -> Self {
        Self { hasher: KeyHasher::default(), counts: std::array::from_fn(|_| watch::channel(0).0) }
    }
}

impl PendingClaims {
    pub(super) fn of(&self, key: &RecordKey) -> &Count {
        &self.counts[usize::try_from(self.hasher.hash_one(key) % COUNTS as u64).unwrap_or_default()]
    }

    pub(super) fn begin(&self, key: &RecordKey) -> PendingClaim {
        let count = self.of(key);
        count.send_if_modified(|pending| {
            *pending += 1;
            // Waiters wait only for fewer.
            false
        });
        PendingClaim(count.clone())
    }
}

/// A claim that is on its way.
pub(crate) struct PendingClaim(Count);

impl Drop for PendingClaim {
    fn drop(&mut self) {
        self.0.send_if_modified(|pending| {
            *pending -= 1;
            // A listener that subscribes after this line also reads the count after it.
            self.0.receiver_count() > 0
        });
    }
}
