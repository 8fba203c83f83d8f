//! Whose an execution is that an extractor of a handler's last argument got.
//!
//! Such an extractor may ask for the handler itself, as `Tx` does. Or it may send the request on to another handler, whose
//! extractors ask in the same way: then that handler's guard comes next.

use std::sync::{Arc, OnceLock};

use crate::sync::atomic::{AtomicU8, Ordering};
use crate::sync::{Mutex, lock};
use crate::transaction::contract::HandlerTransaction;

const OPEN: u8 = 0;
const TAKEN: u8 = 1;
const ADOPTED: u8 = 2;

/// What the run that lends an execution and the guard that may take it share.
#[derive(Default)]
pub(super) struct Lent {
    state: AtomicU8,
    pub(super) transaction: OnceLock<Arc<dyn HandlerTransaction>>,
}

impl Lent {
    pub(super) fn is_open(&self) -> bool {
        self.state.load(Ordering::Acquire) == OPEN
    }

    /// A guard has it for its own handler.
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

/// What one run has lent to the extractors of its last argument.
#[derive(Default)]
pub(super) struct Lending(Mutex<Vec<Arc<Lent>>>);

impl Lending {
    pub(super) fn lend(&self) -> Arc<Lent> {
        let lent = Arc::<Lent>::default();
        lock(&self.0).push(Arc::clone(&lent));
        lent
    }

    /// All extractors have run: what no other guard has taken is that of the run itself. Tells the transactions among them.
    pub(super) fn adopt(&self) -> Vec<Arc<dyn HandlerTransaction>> {
        let lent = std::mem::take(&mut *lock(&self.0));
        lent.iter().filter(|lent| lent.change(ADOPTED)).filter_map(|lent| lent.transaction.get().cloned()).collect()
    }
}
