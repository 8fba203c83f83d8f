//! A handler that runs beneath another guard, under that guard's claim.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

use crate::policy::CacheIf;
use crate::policy::handle::PolicyHandle;
use crate::request::context::Execution;
use crate::request::coverage::polled_in;
use crate::request::response_body::Content;

/// A run under the claim of another guard. The claim cannot end before this run. If this value is dropped before
/// [`end`](Self::end), it is unknown what the run did.
pub(super) struct CoveredRun {
    execution: Arc<Execution>,
    covering: Arc<Execution>,
    policy: PolicyHandle,
    cache_if: Option<CacheIf>,
    has_answered: bool,
    has_ended: bool,
}

impl CoveredRun {
    /// Begins a run. Returns `None` if the claim is about to end: then no run begins under the claim any more.
    pub(super) fn begin(
        execution: Arc<Execution>,
        covering: Arc<Execution>,
        policy: PolicyHandle,
        cache_if: Option<CacheIf>,
    ) -> Option<Self> {
        covering.run.covered_runs.begin().then(|| {
            // The handler continues without its client, like a handler that holds a claim itself.
            execution.run.detach_state.set_must_finish(true);
            Self { execution, covering, policy, cache_if, has_answered: false, has_ended: false }
        })
    }

    pub(super) fn execution(&self) -> &Arc<Execution> {
        &self.execution
    }

    /// Ends the run when the handler has responded. Does nothing if the run was cut off between the guards, because
    /// then the response reached no client. A response that the policy records is complete only when its body is
    /// complete, as for a handler that holds a claim itself.
    pub(super) fn end(mut self, response: Response) -> Response {
        if self.execution.run.detach_state.is_abandoned() {
            return response;
        }
        let (mut parts, body) = response.into_parts();
        if self.covering.is_rejection(&mut parts) || !self.policy.admits(self.cache_if, &parts) {
            self.has_ended = true;
            return Response::from_parts(parts, body);
        }
        parts.extensions.insert(Answer(Arc::clone(&self.covering)));
        self.covering.run.covered_runs.answer();
        self.has_answered = true;
        let read = || Content::read_now(body, self.policy.max_body());
        let body = match polled_in(&self.execution, read) {
            Ok(piece) => {
                self.has_ended = true;
                piece.body
            }
            Err(body) if body.is_end_stream() => {
                self.has_ended = true;
                body
            }
            Err(body) => Body::new(CoveredBody { body, run: Some(self) }),
        };
        Response::from_parts(parts, body)
    }
}

impl Drop for CoveredRun {
    fn drop(&mut self) {
        self.covering.run.covered_runs.end(self.has_answered, self.has_ended);
    }
}

/// The body of a covered handler's response. Producing the body may be part of the handler's work.
struct CoveredBody {
    body: Body,
    run: Option<CoveredRun>,
}

impl CoveredBody {
    fn end(&mut self) {
        if let Some(mut run) = self.run.take() {
            run.has_ended = true;
        }
    }
}

impl http_body::Body for CoveredBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Self { body, run } = &mut *self;
        let mut poll = || Pin::new(&mut *body).poll_frame(cx);
        let polled = match run {
            Some(run) => polled_in(&run.execution, poll),
            None => poll(),
        };
        match &polled {
            Poll::Pending => {}
            // The body broke off, so it is unknown what the handler's work on the body has done.
            Poll::Ready(Some(Err(_))) => self.run = None,
            Poll::Ready(Some(Ok(_))) if !self.body.is_end_stream() => {}
            Poll::Ready(_) => self.end(),
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An extension of a covered handler's response: the guard under whose claim the handler ran.
#[derive(Clone)]
pub(super) struct Answer(pub(super) Arc<Execution>);
