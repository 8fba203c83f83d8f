//! What all clones of a store share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::fingerprint::Fingerprint;
use crate::key::RecordKey;
use crate::store::active_transactions::ActiveTransactions;
use crate::store::batch::batcher::Batcher;
use crate::store::postgres::advisory_locks::lock;
use crate::store::postgres::batched::InStatement;
use crate::store::postgres::batched_claim::BatchedClaim;
use crate::store::postgres::batched_end::{BatchedCompletion, BatchedRelease};
use crate::store::postgres::expired_deletion::ExpiredDeletion;
use crate::store::postgres::listener::Listener;
use crate::store::postgres::pools::Pools;
use crate::store::postgres::record_statement::RecordStatement;
use crate::store::postgres::statements::Statements;

pub(super) struct Inner {
    pub(super) pools: Arc<Pools>,
    /// Quoted.
    pub(super) schema: String,
    pub(super) statements: Arc<Statements>,
    pub(super) listener: Listener,
    pub(super) expired_deletion: ExpiredDeletion,
    pub(super) running: Arc<ActiveTransactions>,
    /// Whether the key of the last claim in a transaction had a row.
    pub(super) expects_rows: AtomicBool,
    pub(super) claims: Arc<Batcher<InStatement<BatchedClaim>>>,
    pub(super) completions: Arc<Batcher<InStatement<BatchedCompletion>>>,
    pub(super) releases: Arc<Batcher<InStatement<BatchedRelease>>>,
}

impl Inner {
    pub(super) fn lock_of_key(&self, key: &RecordKey) -> i64 {
        lock(b"key", &[self.schema.as_bytes(), key.as_str().as_bytes()])
    }

    /// Returns the two halves of the lock of a request. The first half identifies the key and the secret of the fingerprint, the
    /// second half has bits of the fingerprint. So a process with another secret does not find the lock. It cannot compare the two
    /// requests, and treats them as the same request.
    pub(super) fn lock_of_request(&self, key: &RecordKey, fingerprint: Fingerprint) -> (i32, i32) {
        let [first, second, ..] = lock(b"requests", &[self.schema.as_bytes(), key.as_str().as_bytes()]).to_le_bytes();
        let [third, fourth] = fingerprint.key_id_bits().to_le_bytes();
        (i32::from_le_bytes([first, second, third, fourth]), fingerprint.bits())
    }

    pub(super) fn record_statement(&self) -> RecordStatement {
        RecordStatement { statements: Arc::clone(&self.statements), channel: self.listener.channel().to_owned() }
    }
}
