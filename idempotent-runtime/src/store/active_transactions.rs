//! The keys of this process's handlers that run in a transaction: their claims stand in no row that others could see.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::fingerprint::Fingerprint;
use crate::key::RecordKey;

#[derive(Default)]
pub(super) struct ActiveTransactions(Mutex<HashMap<RecordKey, Fingerprint>>);

impl ActiveTransactions {
    /// What the handler that runs under the key was asked for.
    pub(super) fn fingerprint(&self, key: &RecordKey) -> Option<Fingerprint> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied()
    }

    /// Enters the key until the answer is dropped; or what the handler that runs under it was asked for.
    pub(super) fn enter(self: &Arc<Self>, key: &RecordKey, fingerprint: Fingerprint) -> Result<ActiveKey, Fingerprint> {
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&fingerprint) = running.get(key) {
            return Err(fingerprint);
        }
        running.insert(key.clone(), fingerprint);
        Ok(ActiveKey { running: Arc::clone(self), key: key.clone() })
    }
}

pub(super) struct ActiveKey {
    running: Arc<ActiveTransactions>,
    key: RecordKey,
}

impl Drop for ActiveKey {
    fn drop(&mut self) {
        self.running.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}
