//! Which handler owns an execution that an extractor of a handler's last argument has created.
//!
//! Such an extractor may act for the handler itself, as `Tx` does. Or it may forward the request to another handler, whose
//! extractors do the same: then that handler's guard takes the execution.

use std::sync::{Arc, OnceLock};

use crate::sync::atomic::{AtomicU8, Ordering};
use crate::sync::{Mutex, lock};
use crate::transaction::contract::HandlerTransaction;

const OPEN: u8 = 0;
const TAKEN: u8 = 1;
const ADOPTED: u8 = 2;

/// Shared by the run whose extractor created the execution and the guard that may take it.
#[derive(Default)]
pub(super) struct Ownership {
    state: AtomicU8,
    pub(super) transaction: OnceLock<Arc<dyn HandlerTransaction>>,
}

impl Ownership {
    pub(super) fn is_open(&self) -> bool {
        self.state.load(Ordering::Acquire) == OPEN
    }

    /// Whether a guard has taken the execution for its own handler.
    pub(super) fn is_taken(&self) -> bool {
        self.state.load(Ordering::Acquire) == TAKEN
    }

    pub(super) fn take(&self) -> bool {
        self.change(TAKEN)
    }

    fn change(&self, state: u8) -> bool {
        self.state.compare_exchange(OPEN, state, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// The executions that the extractors of one run's last argument have created.
#[derive(Default)]
pub(super) struct ExtractorExecutions(Mutex<Vec<Arc<Ownership>>>);

impl ExtractorExecutions {
    pub(super) fn add(&self) -> Arc<Ownership> {
        let ownership = Arc::<Ownership>::default();
        lock(&self.0).push(Arc::clone(&ownership));
        ownership
    }

    /// All extractors have run: the run itself owns each execution that no other guard has taken. Returns their transactions.
    pub(super) fn adopt(&self) -> Vec<Arc<dyn HandlerTransaction>> {
        let executions = std::mem::take(&mut *lock(&self.0));
        let adopted = executions.iter().filter(|ownership| ownership.change(ADOPTED));
        adopted.filter_map(|ownership| ownership.transaction.get().cloned()).collect()
    }
}
