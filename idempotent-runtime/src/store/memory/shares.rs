//! The bytes that each client takes of the store. They are limited, so that one client cannot fill it.

use std::collections::HashMap;
use std::hash::BuildHasher;

use crate::store::claim::Owner;
use crate::sync::{KeyHasher, Mutex, MutexGuard, lock};

/// The number of parts, each with its own lock.
const PARTS: usize = if cfg!(all(test, shuttle)) { 1 } else { 64 };

/// The bytes of each owner's entries. An owner without entries is not listed.
pub(super) struct Shares {
    hasher: KeyHasher,
    parts: Box<[Mutex<HashMap<Share, usize>>]>,
    /// The bytes that one owner may take.
    limit: usize,
}

/// The owner that an entry counts for, as a hash that no client knows.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Share(u64);

impl Share {
    /// The share of an entry without an owner.
    pub(super) const NONE: Self = Self(0);

    pub(super) const fn from_u64(number: u64) -> Self {
        Self(number)
    }

    pub(super) const fn as_u64(self) -> u64 {
        self.0
    }
}

/// The bytes of an entry, or a change of them, and the share that they count for.
#[derive(Clone, Copy)]
pub(super) struct Counted {
    pub(super) share: Share,
    pub(super) bytes: usize,
}

impl Counted {
    pub(super) const NOTHING: Self = Self { share: Share::NONE, bytes: 0 };
}

impl Shares {
    pub(super) fn new(limit: usize) -> Self {
        Self { hasher: KeyHasher::default(), parts: (0..PARTS).map(|_| Mutex::default()).collect(), limit }
    }

    pub(super) fn of(&self, owner: Option<Owner>) -> Share {
        owner.map_or(Share::NONE, |owner| Share(self.hasher.hash_one(owner) | 1))
    }

    /// Counts a new entry if its owner has room for it. Returns false if not.
    pub(super) fn reserve(&self, Counted { share, bytes }: Counted) -> bool {
        let Some(mut part) = self.part(share) else { return true };
        let used = part.get(&share).copied().unwrap_or_default();
        let Some(sum) = used.checked_add(bytes).filter(|&sum| sum <= self.limit) else { return false };
        part.insert(share, sum);
        true
    }

    /// Counts the bytes that a granted claim takes in addition, even if they exceed the limit.
    pub(super) fn add(&self, Counted { share, bytes }: Counted) {
        if let Some(mut part) = self.part(share) {
            *part.entry(share).or_default() += bytes;
        }
    }

    pub(super) fn sub(&self, Counted { share, bytes }: Counted) {
        let Some(mut part) = self.part(share) else { return };
        if let Some(used) = part.get_mut(&share) {
            *used = used.saturating_sub(bytes);
            if *used == 0 {
                part.remove(&share);
            }
        }
        if part.is_empty() {
            // An empty map would keep its memory.
            *part = HashMap::new();
        }
    }

    /// Returns the locked part of the share, or `None` for an entry without an owner.
    fn part(&self, share: Share) -> Option<MutexGuard<'_, HashMap<Share, usize>>> {
        let part = usize::try_from((share.0 >> 1) % PARTS as u64).unwrap_or_default();
        (share != Share::NONE).then(|| lock(&self.parts[part]))
    }
}
