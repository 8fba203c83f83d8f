//! What each caller takes of the store, so that one cannot fill it.

use std::collections::HashMap;
use std::hash::BuildHasher;

use crate::sync::{KeyHasher, Mutex, lock};

/// Callers in many parts that are locked on their own.
const PARTS: usize = if cfg!(all(test, shuttle)) { 1 } else { 64 };

/// The bytes of each caller's entries. A caller is known by a hash of its name, and has no place here when nothing is left.
pub(super) struct Shares {
    hasher: KeyHasher,
    parts: Box<[Mutex<HashMap<u64, usize>>]>,
    /// What one caller may take.
    limit: usize,
}

impl Shares {
    pub(super) fn new(limit: usize) -> Self {
        Self { hasher: KeyHasher::default(), parts: (0..PARTS).map(|_| Mutex::default()).collect(), limit }
    }

    /// Counts a new entry, if the caller of this key has room for it.
    pub(super) fn reserve(&self, key: &[u8], bytes: usize) -> bool {
        let Some((part, caller)) = self.place(key) else { return true };
        let mut part = lock(part);
        let used = part.get(&caller).copied().unwrap_or_default();
        let Some(sum) = used.checked_add(bytes).filter(|&sum| sum <= self.limit) else { return false };
        part.insert(caller, sum);
        true
    }

    /// Counts what a claim that was granted takes in addition, whatever it is.
    pub(super) fn add(&self, key: &[u8], bytes: usize) {
        if let Some((part, caller)) = self.place(key) {
            *lock(part).entry(caller).or_default() += bytes;
        }
    }

    pub(super) fn sub(&self, key: &[u8], bytes: usize) {
        let Some((part, caller)) = self.place(key) else { return };
        let mut part = lock(part);
        if let Some(used) = part.get_mut(&caller) {
            *used = used.saturating_sub(bytes);
            if *used == 0 {
                part.remove(&caller);
            }
        }
        if part.is_empty() {
            // It keeps its memory otherwise.
            *part = HashMap::new();
        }
    }

    /// `None` for a key without a caller.
    fn place(&self, key: &[u8]) -> Option<(&Mutex<HashMap<u64, usize>>, u64)> {
        let caller = key.split(|&byte| byte == b'/').nth(1).filter(|caller| !caller.is_empty())?;
        let caller = self.hasher.hash_one(caller);
        Some((&self.parts[usize::try_from(caller % PARTS as u64).unwrap_or_default()], caller))
    }
}
