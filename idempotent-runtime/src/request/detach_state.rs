//! Whether a running future goes on without the caller that polls it.

use std::sync::OnceLock;

use tracing::{Id, Span};

use crate::policy::scope::Scope;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::tokio::runtime::Handle;

/// Shared by the running future and its caller, which polls it.
#[derive(Default)]
pub(crate) struct DetachState {
    pub(super) must_finish: AtomicBool,
    pub(super) abandoned: AtomicBool,
    /// Where the running future was polled when it had to finish: its caller may drop it outside of every runtime.
    pub(super) runtime: OnceLock<Handle>,
    /// The number of the request's span, which the running future keeps open.
    pub(super) span: OnceLock<Id>,
    pub(super) scope: OnceLock<Scope>,
}

impl DetachState {
    /// Whether the running future goes on when its caller drops it.
    pub(crate) fn set_must_finish(&self, must: bool) {
        if must && let Ok(runtime) = Handle::try_current() {
            let _ = self.runtime.set(runtime);
        }
        self.must_finish.store(must, Ordering::Relaxed);
    }

    /// Sets the span and the scope of the running future.
    pub(crate) fn set_span(&self, span: &Span, scope: Scope) {
        let _ = self.scope.set(scope);
        if let Some(id) = span.id() {
            let _ = self.span.set(id);
        }
    }

    /// Whether the caller is gone.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }
}
