//! Finds the guard around a request that already holds the claim of the same key.
//!
//! The extensions of a request usually name the guards around it. A request that a handler or a middleware created does not
//! have them, and neither has a copy of `Parts` from an argument before the last one. For these, the guard is the one whose
//! handler this thread polls, unless the request was moved to another task.

use std::cell::RefCell;
use std::sync::Arc;

use crate::key::RecordKey;
use crate::policy::Policy;
use crate::request::context::Execution;
use crate::sync::thread_local;

thread_local! {
    /// The guards whose handlers this thread polls at this moment, the innermost one last.
    static POLLED: RefCell<Vec<Arc<Execution>>> = const { RefCell::new(Vec::new()) };
}

/// The execution under whose claim `execution` runs, for a guard with this policy and this key.
pub(super) fn covering<'a>(
    execution: &'a Arc<Execution>,
    policy: &Policy,
    record_key: &RecordKey,
) -> Option<&'a Arc<Execution>> {
    if !execution.is_beneath_key(record_key)
        && let Some(sender) = sender(policy, record_key)
    {
        execution.is_sent_by(sender);
    }
    execution.covered_by(record_key)
}

/// The innermost polled guard that runs under this key. A request to that same guard is a duplicate: a handler may poll the
/// requests of other clients too.
fn sender(policy: &Policy, record_key: &RecordKey) -> Option<Arc<Execution>> {
    let find = |polled: &RefCell<Vec<Arc<Execution>>>| {
        let polled = polled.borrow();
        let mut with_key = polled.iter().rev().filter(|polled| polled.runs_under(record_key));
        let innermost = with_key.clone().next()?;
        with_key.all(|polled| !polled.is_of(policy)).then(|| Arc::clone(innermost))
    };
    // Gone when the thread ends.
    POLLED.try_with(find).ok().flatten()
}

/// Polls the handler of this execution's guard.
pub(super) fn polled_in<T>(execution: &Arc<Execution>, poll: impl FnOnce() -> T) -> T {
    let _polled = Polled::begin(execution);
    poll()
}

struct Polled(bool);

impl Polled {
    fn begin(execution: &Arc<Execution>) -> Self {
        Self(POLLED.try_with(|polled| polled.borrow_mut().push(Arc::clone(execution))).is_ok())
    }
}

impl Drop for Polled {
    fn drop(&mut self) {
        if self.0 {
            // Dropped when nothing is borrowed.
            let execution = POLLED.try_with(|polled| polled.borrow_mut().pop());
            drop(execution);
        }
    }
}
