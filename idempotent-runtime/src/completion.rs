//! The running future survives its caller: polled in place while the client waits, spawned when it is dropped
//! unfinished.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use axum::response::Response;
use futures_util::future::BoxFuture;
use tracing::{Id, Span};

use crate::engine::{is_of_another_guard, of_another_guard};
use crate::idempotency::Execution;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::tokio::runtime::Handle;

/// What an annotated handler returns: the future of its response, which drives the guarded request to its end.
///
/// # Cancel safety
///
/// Dropping it never cancels a handler that holds a claim: the rest runs as a task of its own. A request that waits for
/// another one, or runs unguarded, ends with the drop as any other axum handler does.
///
/// # Panics
///
/// As the handler does, after its claim is settled.
///
/// # Examples
///
/// ```
/// use idempotent_runtime::{Completion, idempotent};
///
/// #[idempotent]
/// async fn double(body: String) -> String {
///     body.repeat(2)
/// }
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let completion: Completion = double(String::from("tea").into());
/// assert_eq!(completion.await.status(), 200);
/// # });
/// ```
#[must_use = "futures do nothing unless polled"]
pub struct Completion {
    running: Option<BoxFuture<'static, Response>>,
    /// `None` for a request that nothing can keep alive: it has no key.
    execution: Option<Arc<Execution>>,
}

impl Completion {
    pub(crate) fn new(running: BoxFuture<'static, Response>, execution: Option<Arc<Execution>>) -> Self {
        Self { running: Some(running), execution }
    }
}

/// What the running future and whoever polls it tell each other.
#[derive(Default)]
pub(crate) struct Fate {
    must_finish: AtomicBool,
    abandoned: AtomicBool,
    /// Where the running future was polled when it had to finish: its caller may drop it outside of every runtime.
    runtime: OnceLock<Handle>,
    /// The number of the request's span, which the running future keeps open.
    span: OnceLock<Id>,
}

impl Fate {
    /// Whether the running future goes on when its caller drops it.
    pub(crate) fn set_must_finish(&self, must: bool) {
        if must && let Ok(runtime) = Handle::try_current() {
            let _ = self.runtime.set(runtime);
        }
        self.must_finish.store(must, Ordering::Relaxed);
    }

    /// Tells in which span the running future runs.
    pub(crate) fn set_span(&self, span: &Span) {
        if let Some(id) = span.id() {
            let _ = self.span.set(id);
        }
    }

    /// Whether the caller is gone.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }
}

impl Future for Completion {
    type Output = Response;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Response> {
        // Taken out for the time of the poll: a handler that panicked must not be spawned by our drop.
        let mut running = self.running.take().expect("a future is not polled after it was ready");
        let Poll::Ready(response) = running.as_mut().poll(cx) else {
            self.running = Some(running);
            return Poll::Pending;
        };
        let Some(execution) = &self.execution else { return Poll::Ready(response) };
        if execution.has_last_word() {
            return Poll::Ready(of_another_guard(response));
        }
        if !is_of_another_guard(&response) {
            execution.leave_response();
        }
        Poll::Ready(response)
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        let (Some(running), Some(execution)) = (self.running.take(), &self.execution) else { return };
        let fate = &execution.fate;
        if !fate.must_finish.load(Ordering::Relaxed) {
            return;
        }
        fate.abandoned.store(true, Ordering::Relaxed);
        // Whoever drops a request does not do it in the request's span.
        let span = fate.span.get().cloned();
        if let Some(runtime) = Handle::try_current().ok().or_else(|| fate.runtime.get().cloned()) {
            tracing::debug!(parent: span, "the client left; the handler goes on without it");
            runtime.spawn(running);
        } else {
            tracing::error!(
                parent: span,
                "a running handler was polled and dropped outside of a tokio runtime; its claim lapses with its lease"
            );
        }
    }
}
