//! The keys of this process's handlers that run in a transaction. Their claims have no row that others can see.

use std::collections::HashMap;
use std::sync::Arc;

use crate::fingerprint::Fingerprint;
use crate::key::RecordKey;
use crate::sync::{Mutex, lock};

#[derive(Default)]
pub(super) struct ActiveTransactions(Mutex<HashMap<RecordKey, Active>>);

struct Active {
    fingerprint: Fingerprint,
    /// Whether the handler has its claim. Until then, the key may have a record that the claim does not know yet.
    is_claimed: bool,
}

impl ActiveTransactions {
    /// Returns the fingerprint of the request whose handler runs under the key.
    pub(super) fn fingerprint(&self, key: &RecordKey) -> Option<Fingerprint> {
        lock(&self.0).get(key).filter(|active| active.is_claimed).map(|active| active.fingerprint)
    }

    /// Reserves the key until the returned guard is dropped. If another request has the key, returns the fingerprint of
    /// that request as the error.
    pub(super) fn begin(self: &Arc<Self>, key: &RecordKey, fingerprint: Fingerprint) -> Result<ActiveKey, Fingerprint> {
        let mut active = lock(&self.0);
        if let Some(active) = active.get(key) {
            return Err(active.fingerprint);
        }
        active.insert(key.clone(), Active { fingerprint, is_claimed: false });
        Ok(ActiveKey { active: Arc::clone(self), key: key.clone() })
    }
}

pub(super) struct ActiveKey {
    active: Arc<ActiveTransactions>,
    key: RecordKey,
}

impl ActiveKey {
    /// Marks the key as that of a handler which runs.
    pub(super) fn claimed(self) -> Self {
        if let Some(active) = lock(&self.active.0).get_mut(&self.key) {
            active.is_claimed = true;
        }
        self
    }
}

impl Drop for ActiveKey {
    fn drop(&mut self) {
        lock(&self.active.0).remove(&self.key);
    }
}
