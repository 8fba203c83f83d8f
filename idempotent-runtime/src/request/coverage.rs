//! Finds the guard around a request that already holds the claim of the same key.
//!
//! The extensions of a request usually name the guards around it. A request that a handler or a middleware created does
//! not have these extensions, and a copy of `Parts` from an argument before the last one does not have them either. For
//! such a request, the guard is found by the thread: it is a guard whose handler or response body this thread polls,
//! unless the request was moved to another task. The innermost of these guards is the nearest one around the request,
//! whatever its key. Only a request with the same credentials runs under its claim and with its steps, because a
//! handler can poll the requests of other clients too.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;

use http::HeaderMap;

use crate::key::RecordKey;
use crate::request::context::Execution;
use crate::sync::thread_local;

thread_local! {
    /// The guards whose handlers this thread polls at this moment, the innermost one last.
    static POLLED: RefCell<Vec<Arc<Execution>>> = const { RefCell::new(Vec::new()) };
}

/// Returns the execution under whose claim `execution` runs, for this key.
pub(super) fn covering<'a>(execution: &'a Arc<Execution>, record_key: &RecordKey) -> Option<&'a Arc<Execution>> {
    if execution.is_sent_by_itself(record_key) { None } else { execution.covering_guard(record_key) }
}

/// Returns the innermost guard whose handler or response body this thread polls.
pub(super) fn innermost() -> Option<Arc<Execution>> {
    // The thread-local value does not exist any more while the thread ends.
    POLLED.try_with(|polled| polled.borrow().last().cloned()).ok().flatten()
}

/// Makes the innermost polled guard the nearest guard around this execution, if the request itself does not name that
/// guard.
pub(crate) fn find_sender(execution: &Arc<Execution>, headers: &HeaderMap) {
    if let Some(guard) = innermost()
        && !execution.is_beneath(&guard)
        && execution.around().is_none_or(|around| guard.is_beneath(around))
    {
        execution.set_sender(guard, headers);
    }
    execution.compare_keys(headers);
}

/// Polls the handler of this execution's guard, or the body of its response.
pub(super) fn polled_in<T>(execution: &Arc<Execution>, poll: impl FnOnce() -> T) -> T {
    let _polled = Polled::begin(execution);
    poll()
}

pub(super) async fn polled_in_each_poll<F: Future>(execution: &Arc<Execution>, future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|cx| polled_in(execution, || future.as_mut().poll(cx))).await
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
            // The execution is dropped when `POLLED` is no longer borrowed.
            let execution = POLLED.try_with(|polled| polled.borrow_mut().pop());
            drop(execution);
        }
    }
}
