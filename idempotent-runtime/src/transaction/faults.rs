//! Faults that a test injects into transactions.

use std::sync::Arc;

use crate::store::error::StoreError;
use crate::transaction::transactions::{TransactionFaults, TransactionPhase};

/// The injected faults of the store, if there are any.
pub(super) struct Faults(pub(super) Option<Arc<dyn TransactionFaults>>);

impl Faults {
    pub(super) fn meet(&self, phase: TransactionPhase) -> Result<(), StoreError> {
        match self.0.as_ref().and_then(|faults| faults.before(phase)) {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }
}
