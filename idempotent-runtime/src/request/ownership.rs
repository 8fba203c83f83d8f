//! Decides which handler owns an execution that an extractor of a handler's last argument has created.
//!
//! Such an extractor may act for the handler itself, as `Tx` does. Or it may forward the request to another handler,
//! whose extractors do the same. Then the guard of that handler takes the execution until it has answered. An extractor
//! that used the execution before the guard took it may belong to either handler.

use std::sync::{Arc, Weak};

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, lock};
use crate::transaction::contract::HandlerTransaction;

/// State that the run whose extractor created the execution shares with the guard that may take it.
#[derive(Default)]
pub(super) struct Ownership(Mutex<State>);

#[derive(Default)]
struct State {
    /// A guard has taken the execution for its own handler, and has not answered.
    is_taken: bool,
    /// The run whose extractor created it has run all its extractors before the claim.
    is_adopted: bool,
    /// The handler of the guard that took the execution continues without its caller, so either handler may use the
    /// execution.
    is_disputed: bool,
    /// The transactions that both handlers have requested, in order. If a handler was rejected, its transactions were
    /// dropped.
    transactions: Vec<Weak<dyn HandlerTransaction>>,
}

/// The owner of the steps that are taken through an execution.
pub(super) enum StepsOwner {
    /// The handler of the guard that has taken the execution. If no guard has taken it, code that runs before the
    /// claim.
    Itself,
    /// The run whose extractor created it.
    Creator,
    /// It is unknown which of the two owns them.
    Unknown,
}

impl Ownership {
    /// Returns whether the next guard takes this execution.
    pub(super) fn is_open(&self) -> bool {
        let state = lock(&self.0);
        !state.is_taken && !state.is_adopted
    }

    pub(super) fn is_taken(&self) -> bool {
        lock(&self.0).is_taken
    }

    pub(super) fn take(&self) -> bool {
        let mut state = lock(&self.0);
        let is_open = !state.is_taken && !state.is_adopted;
        state.is_taken |= is_open;
        is_open
    }

    /// Notes that the guard that took the execution has answered, or that its handler continues without its caller
    /// (`goes_on`), so that its answer reaches no client.
    pub(super) fn leave(&self, goes_on: bool) {
        let mut state = lock(&self.0);
        state.is_disputed |= goes_on && state.is_taken;
        state.is_taken = false;
    }

    pub(super) fn owner_of_steps(&self) -> StepsOwner {
        let state = lock(&self.0);
        match (state.is_taken, state.is_adopted) {
            _ if state.is_disputed => StepsOwner::Unknown,
            (true, true) => StepsOwner::Unknown,
            (false, true) => StepsOwner::Creator,
            (_, false) => StepsOwner::Itself,
        }
    }

    /// Adds a transaction that one of the two handlers has requested.
    #[cfg(feature = "__transactions")]
    pub(super) fn offer(&self, transaction: &Arc<dyn HandlerTransaction>) {
        lock(&self.0).transactions.push(Arc::downgrade(transaction));
    }

    /// Takes the transaction of the handler whose guard has taken the execution. It is the last one, because the
    /// arguments of that handler were extracted last.
    pub(super) fn last_transaction(&self) -> Option<Arc<dyn HandlerTransaction>> {
        lock(&self.0).transactions.pop()?.upgrade()
    }

    fn adopt(&self) -> Vec<Arc<dyn HandlerTransaction>> {
        let mut state = lock(&self.0);
        state.is_adopted = true;
        state.transactions.iter().filter_map(Weak::upgrade).collect()
    }
}

/// The executions that the extractors of one run's last argument have created.
#[derive(Default)]
pub(super) struct ExtractorExecutions {
    /// Most runs have none, and need not lock the list.
    has_any: AtomicBool,
    all: Mutex<Vec<Arc<Ownership>>>,
}

impl ExtractorExecutions {
    pub(super) fn add(&self) -> Arc<Ownership> {
        let ownership = Arc::<Ownership>::default();
        lock(&self.all).push(Arc::clone(&ownership));
        self.has_any.store(true, Ordering::Release);
        ownership
    }

    /// Notes that the extractors before the claim have run: from now on, the run itself owns each execution that no
    /// other guard owns. Returns the transactions of all its executions.
    pub(super) fn adopt(&self) -> Vec<Arc<dyn HandlerTransaction>> {
        if !self.has_any.load(Ordering::Acquire) {
            return Vec::new();
        }
        let executions = std::mem::take(&mut *lock(&self.all));
        executions.iter().flat_map(|ownership| ownership.adopt()).collect()
    }
}
