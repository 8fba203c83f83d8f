//! The numbers of advisory locks.

use sha2::{Digest, Sha256};

/// The number of an advisory lock. PostgreSQL has two spaces of them for the whole database, of 64 bits each: two that meet
/// by chance cost a rejection, never a second execution.
pub(super) fn lock(purpose: &[u8], parts: &[&[u8]]) -> i64 {
    let mut digest = Sha256::new_with_prefix("idempotent-runtime");
    for part in std::iter::once(&purpose).chain(parts) {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    let digest: [u8; 32] = digest.finalize().into();
    i64::from_le_bytes(digest[..8].try_into().expect("eight bytes"))
}
