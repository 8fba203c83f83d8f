//! Claims of requests of this process that the store has not answered yet.
//!
//! When a handler ends after its lease has expired, or after the store has forgotten its claim, another request may
//! have claimed the key. A request of this process hands its claim over to the handler as soon as it has the store's
//! answer. So the handler waits for that answer.

use std::hash::BuildHasher;
use std::pin::pin;
use std::sync::Arc;

use crate::key::RecordKey;
use crate::sync::KeyHasher;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::tokio::sync::Notify;

// Keys share the counts. A handler that ends in this rare way also waits for the pending claims of other keys with the
// same count.
const COUNTS: usize = 64;

pub(super) struct PendingClaims {
    hasher: KeyHasher,
    counts: [Arc<Count>; COUNTS],
}

/// The number of pending claims of the keys that share this count. A `watch` channel would do the same, and costs each
/// request four locked operations more.
#[derive(Default)]
pub(super) struct Count {
    pending: AtomicUsize,
    waiting: AtomicUsize,
    ended: Notify,
}

impl Default for PendingClaims {
    fn default() -> Self {
        Self { hasher: KeyHasher::default(), counts: std::array::from_fn(|_| Arc::default()) }
    }
}

impl PendingClaims {
    pub(super) fn of(&self, key: &RecordKey) -> &Arc<Count> {
        &self.counts[usize::try_from(self.hasher.hash_one(key) % COUNTS as u64).unwrap_or_default()]
    }

    pub(super) fn begin(&self, key: &RecordKey) -> PendingClaim {
        let count = Arc::clone(self.of(key));
        count.pending.fetch_add(1, Ordering::SeqCst);
        PendingClaim(count)
    }
}

impl Count {
    /// Waits until `is_enough`, which is asked again when a claim ends, or until no claim is pending. Returns false if
    /// none was.
    pub(super) async fn none_pending_or(&self, is_enough: impl Fn() -> bool) -> bool {
        if self.pending.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let _waiting = Waiting::new(self);
        loop {
            let mut ended = pin!(self.ended.notified());
            ended.as_mut().enable();
            if self.pending.load(Ordering::SeqCst) == 0 || is_enough() {
                return true;
            }
            ended.await;
        }
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a Count) -> Self {
        count.waiting.fetch_add(1, Ordering::SeqCst);
        Self(&count.waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// One pending claim.
pub(crate) struct PendingClaim(Arc<Count>);

impl Drop for PendingClaim {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Ordering::SeqCst);
        // A waiter that is counted after this load reads the number of pending claims later.
        if self.0.waiting.load(Ordering::SeqCst) > 0 {
            self.0.ended.notify_waiters();
        }
    }
}
