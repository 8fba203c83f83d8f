//! Claims of requests of this process that the store has not answered yet.
//!
//! When a handler ends after its lease has expired, or after the store has forgotten its claim, another request may
//! have claimed the key. A request of this process hands its claim over to the handler as soon as it has the store's
//! answer. So the handler waits for that answer.

use std::hash::BuildHasher;

use crate::key::RecordKey;
use crate::sync::KeyHasher;
use crate::sync::tokio::sync::watch;

// Keys share the counts. A handler that ends in this rare way also waits for the pending claims of other keys with the
// same count.
const COUNTS: usize = 64;

/// The number of pending claims of the keys that share this count.
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
            // Waiters wait only for a lower number, so they need no notification.
            false
        });
        PendingClaim(count.clone())
    }
}

/// One pending claim.
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
