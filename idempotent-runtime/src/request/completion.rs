//! The future of an annotated handler. The future is polled in place while the client waits. If the future is dropped
//! unfinished, the rest of its work is spawned.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::response::Response;
use futures_util::future::BoxFuture;

use crate::observe::WithoutClient;
use crate::request::context::Execution;
use crate::request::response_mark::{is_of_another_guard, of_another_guard};
use crate::sync::atomic::Ordering;
use crate::sync::tokio::runtime::Handle;

/// The future that an annotated handler returns. It yields the response and drives the guarded request to its end.
///
/// # Cancel safety
///
/// Dropping it never cancels a handler that holds a claim: the handler continues as a separate task. If a request waits
/// for another one, or runs unguarded, dropping the future ends the request, as with any other axum handler.
///
/// # Panics
///
/// If the handler panics, this panics after the claim is settled.
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
    /// `None` if the handler is called directly, or if the request has no key and no extractor uses an execution. Such
    /// a request ends when the client disconnects.
    execution: Option<Arc<Execution>>,
}

impl Completion {
    pub(crate) fn new(running: BoxFuture<'static, Response>, execution: Option<Arc<Execution>>) -> Self {
        Self { running: Some(running), execution }
    }
}

impl fmt::Debug for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion").field("is_ready", &self.running.is_none()).finish_non_exhaustive()
    }
}

impl Future for Completion {
    type Output = Response;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Response> {
        // The future is taken out during the poll: if the handler panics, `drop` must not spawn the future.
        let mut running = self.running.take().expect("a future is not polled after it was ready");
        let Poll::Ready(response) = running.as_mut().poll(cx) else {
            self.running = Some(running);
            if let Some(execution) = &self.execution {
                execution.run.detach_state.wait();
            }
            return Poll::Pending;
        };
        let Some(execution) = &self.execution else { return Poll::Ready(response) };
        execution.end_answering(false);
        if execution.outranks_layer() {
            return Poll::Ready(of_another_guard(response, execution));
        }
        if !is_of_another_guard(&response, execution) {
            execution.leave_response();
        }
        Poll::Ready(response)
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        let Some(execution) = &self.execution else { return };
        let detach_state = &execution.run.detach_state;
        let running = self.running.take().filter(|_| detach_state.must_finish.load(Ordering::Relaxed));
        execution.end_answering(running.is_some());
        let Some(running) = running else { return };
        detach_state.abandoned.store(true, Ordering::Relaxed);
        // The request is dropped outside of its own span.
        let span = detach_state.span.get().cloned();
        // The request's own runtime comes first, because the connections of its store belong to that runtime. The
        // runtime in which the request is dropped may not be driven, or may end.
        let mut runtimes: Vec<Handle> = detach_state.runtime.get().cloned().into_iter().collect();
        runtimes
            .extend(Handle::try_current().ok().filter(|current| runtimes.iter().all(|own| own.id() != current.id())));
        if let Some(runtime) = runtimes.first().cloned() {
            tracing::debug!(parent: span, "the client disconnected: the handler continues");
            runtimes.remove(0);
            let counted = execution.scope().map(WithoutClient::begin);
            runtime.spawn(Detached { running: Some(running), has_begun: false, next: runtimes.pop(), counted });
        } else {
            tracing::error!(
                parent: span,
                "a running handler was polled and dropped outside of a tokio runtime: its claim stays until its lease expires"
            );
        }
    }
}

/// A handler without its client. A runtime that has ended drops this future unpolled. Then the handler continues in the
/// next runtime.
struct Detached {
    running: Option<BoxFuture<'static, Response>>,
    has_begun: bool,
    next: Option<Handle>,
    counted: Option<WithoutClient>,
}

impl Future for Detached {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.has_begun = true;
        let Some(running) = &mut self.running else { return Poll::Ready(()) };
        running.as_mut().poll(cx).map(drop)
    }
}

impl Drop for Detached {
    fn drop(&mut self) {
        if let (false, Some(running), Some(next)) = (self.has_begun, self.running.take(), self.next.take()) {
            let counted = self.counted.take();
            next.spawn(Self { running: Some(running), has_begun: false, next: None, counted });
        }
    }
}
