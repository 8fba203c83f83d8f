//! Whether a running future continues without the caller that polls it.

use std::sync::OnceLock;

use tracing::{Id, Span};

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::tokio::runtime::Handle;

/// State that the running future and its caller share. The caller polls the future.
#[derive(Default)]
pub(crate) struct DetachState {
    pub(super) must_finish: AtomicBool,
    pub(super) abandoned: AtomicBool,
    /// The runtime in which the running future first waited when it had to finish. Its caller may drop it outside of any
    /// runtime.
    pub(super) runtime: OnceLock<Handle>,
    /// The id of the request's span, which the running future keeps open.
    pub(super) span: OnceLock<Id>,
}

impl DetachState {
    /// Sets whether the running future continues when its caller drops it.
    pub(crate) fn set_must_finish(&self, must: bool) {
        self.must_finish.store(must, Ordering::Relaxed);
    }

    /// Notes the runtime of this thread, if the running future waits and has to finish.
    pub(super) fn wait(&self) {
        if self.must_finish.load(Ordering::Relaxed)
            && self.runtime.get().is_none()
            && let Ok(runtime) = Handle::try_current()
        {
            let _ = self.runtime.set(runtime);
        }
    }

    /// Sets the span of the running future.
    pub(crate) fn set_span(&self, span: &Span) {
        if let Some(id) = span.id() {
            let _ = self.span.set(id);
        }
    }

    /// Returns whether the caller has dropped the future.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }
}
