//! Under whose claim a request runs that a guard around it has claimed already.
//!
//! As a rule the request tells which guards are around it. One that a handler or a middleware has made anew does not, and
//! neither does a copy of `Parts` that the handler took as an argument before its last one. It is known by the guard inside of
//! which it is polled, as long as that has not moved it to a task of its own. The innermost one is the nearest guard around it,
//! whatever its key. Under its claim, and with its steps, runs only what has the same credentials: a handler may poll other
//! clients' requests too.

use std::cell::RefCell;
use std::sync::Arc;

use http::HeaderMap;

use crate::key::RecordKey;
use crate::policy::Policy;
use crate::registry::Registry;
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
    if execution.is_sent_by_itself(policy, record_key) { None } else { execution.covered_by(record_key) }
}

/// Makes the innermost guard that is polled the nearest one around this execution, where the request does not tell of that one.
pub(crate) fn find_sender(execution: &Arc<Execution>, registry: Option<&Registry>, headers: &HeaderMap) {
    // Gone when the thread ends.
    let innermost = POLLED.try_with(|polled| polled.borrow().last().cloned()).ok().flatten();
    if let Some(guard) = innermost
        && !execution.is_beneath(&guard)
        && execution.around().is_none_or(|around| guard.is_beneath(around))
    {
        execution.is_sent_by(guard, headers);
    }
    if let Some(registry) = registry {
        execution.is_of_client(registry, headers);
    }
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
