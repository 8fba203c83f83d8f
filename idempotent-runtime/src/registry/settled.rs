//! The bells that wake waiters.

use std::hash::BuildHasher;

use crate::RecordKey;
use crate::sync::KeyHasher;
use crate::sync::tokio::sync::Notify;

/// Wakes this process's waiters when a claim has ended.
pub(crate) struct Settled {
    hasher: KeyHasher,
    // Keys that share a bell wake each other for nothing, which costs one more look.
    bells: [Notify; 64],
}

impl Default for Settled {
    fn default() -> Self {
        Self { hasher: KeyHasher::default(), bells: std::array::from_fn(|_| Notify::new()) }
    }
}

impl Settled {
    pub(crate) fn bell(&self, key: &RecordKey) -> &Notify {
        &self.bells[usize::try_from(self.hasher.hash_one(key) % 64).unwrap_or_default()]
    }
}
