//! The keys of this process's handlers that run in a transaction. Their claims have no row that others can see.

use std::collections::HashMap;
use std::sync::Arc;

use crate::fingerprint::Fingerprint;
use crate::key::RecordKey;
use crate::sync::{Mutex, lock};

#[derive(Default)]
pub(super) struct ActiveTransactions(Mutex<HashMap<RecordKey, Fingerprint>>);

impl ActiveTransactions {
    /// Returns the fingerprint of the request whose handler runs under the key.
    pub(super) fn fingerprint(&self, key: &RecordKey) -> Option<Fingerprint> {
        lock(&self.0).get(key).copied()
    }

    /// Marks the key as running until the returned guard is dropped. If a handler already runs under the key, returns
    /// the fingerprint of its request as the error.
    pub(super) fn begin(self: &Arc<Self>, key: &RecordKey, fingerprint: Fingerprint) -> Result<ActiveKey, Fingerprint> {
        let mut running = lock(&self.0);
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
        lock(&self.running.0).remove(&self.key);
    }
}
