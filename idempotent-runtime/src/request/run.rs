//! The future of one request: it extracts, evaluates, claims, runs and settles.
//!
//! Only the code that polls the handler's body is compiled for each handler.

use std::any::TypeId;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::response::Response;
use futures_util::future::BoxFuture;
use pin_project_lite::pin_project;
use tracing::Instrument;

use crate::request::claim_input::ClaimInput;
use crate::request::completion::Completion;
use crate::request::context::Execution;
use crate::request::coverage::polled_in;
use crate::request::deferred::Extraction;
use crate::request::fingerprint::{Prepared, prepare};
use crate::request::gate_slot::GateSlot;
use crate::request::handler_run::{ClaimOutcome, HandlerRun};
use crate::request::identify::{Gate, Identified};
use crate::request::respond::Panic;
use crate::request::settle::Settling;
use crate::request::streaming::stream;
use crate::request::upload::Unread;

/// How far a request has come.
pub(super) struct Progress {
    /// Reads the body, if it was not read before the policy was known.
    pub(super) reading: Option<BoxFuture<'static, ClaimInput>>,
    pub(super) extraction: Extraction,
    pub(super) stage: Stage,
}

/// Runs `handler` from this stage on.
pub(super) fn start<F>(
    progress: Progress,
    execution: Option<Arc<Execution>>,
    handler: F,
    into_response: fn(F::Output) -> Response,
) -> Completion
where
    F: Future + Send + 'static,
{
    Completion::new(Box::pin(Run { handler: Some(handler), into_response, progress }), execution)
}

pin_project! {
    /// A handler and the stage that its request has reached.
    struct Run<F: Future> {
        // Dropped as soon as the handler has ended, because it may own a handler that runs under its claim.
        #[pin]
        handler: Option<F>,
        into_response: fn(F::Output) -> Response,
        progress: Progress,
    }
}

impl<F: Future + 'static> Future for Run<F> {
    type Output = Response;

    /// # Panics
    ///
    /// Resumes the handler's own panic after the claim is settled.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Response> {
        let this = self.project();
        let mut handler = PinnedHandler { future: this.handler, into_response: *this.into_response };
        this.progress.poll(cx, TypeId::of::<F>(), &mut handler)
    }
}

/// A handler's future in its place. Only this is compiled for each handler.
trait Handler {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Response>;

    fn drop_in_place(&mut self);
}

struct PinnedHandler<'a, F: Future> {
    future: Pin<&'a mut Option<F>>,
    into_response: fn(F::Output) -> Response,
}

impl<F: Future> Handler for PinnedHandler<'_, F> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Response> {
        match self.future.as_mut().as_pin_mut() {
            Some(future) => match future.poll(cx) {
                Poll::Ready(output) => Poll::Ready((self.into_response)(output)),
                Poll::Pending => Poll::Pending,
            },
            None => panic!("a handler is not polled after it has ended"),
        }
    }

    fn drop_in_place(&mut self) {
        self.future.set(None);
    }
}

/// Polls the extraction, if one is passed, and then the handler, and catches their panics.
fn poll_handler(
    handler: &mut dyn Handler,
    cx: &mut Context<'_>,
    extraction: Option<&mut Extraction>,
) -> Poll<Result<Response, Panic>> {
    let polled = catch_unwind(AssertUnwindSafe(|| {
        let polled = match extraction.map(|it| it.poll_under_claim(cx)) {
            None | Some(Poll::Ready(None)) => handler.poll(cx),
            Some(Poll::Ready(Some(rejection))) => Poll::Ready(rejection),
            Some(Poll::Pending) => Poll::Pending,
        };
        if polled.is_ready() {
            // The handler's arguments may panic when they are dropped, like the handler itself.
            handler.drop_in_place();
        }
        polled
    }));
    polled.map_or_else(
        |panic| {
            let _ = catch_unwind(AssertUnwindSafe(|| handler.drop_in_place()));
            Poll::Ready(Err(panic))
        },
        |polled| polled.map(Ok),
    )
}

/// The stage that a request has reached.
#[allow(clippy::large_enum_variant, reason = "they lie in the box of the handler's future, which is as large")]
pub(super) enum Stage {
    /// The handler's future owns the gate, and evaluates the policy's expressions.
    Evaluating(Arc<GateSlot>),
    AtGate(Gate),
    /// The store answers the claim, or the transaction of a request without a key begins.
    Claiming(BoxFuture<'static, Result<HandlerRun, Response>>, Option<Unread>),
    Running(HandlerRun),
    /// The claim is settled, or the rest of an upload is read before a request is answered without its handler.
    Settling(BoxFuture<'static, Response>),
    /// The request was answered without the handler.
    Answered(Response),
    Done,
}

/// Continues from the policy's expressions to the claim.
fn claim(gate: Gate, handler: TypeId) -> ClaimOutcome {
    let request = match gate.identify(handler) {
        Identified::WithKey(request) => request,
        Identified::WithoutKey(admission) => {
            let span = admission.span.clone();
            return ClaimOutcome::Later(Box::pin(admission.begin_transaction().instrument(span)));
        }
        Identified::Unguarded => return ClaimOutcome::Now(Ok(HandlerRun::Unguarded { _guard: None })),
        Identified::Answered(answer) => return ClaimOutcome::Now(Err(answer)),
    };
    let span = request.admission.span.clone();
    span.in_scope(|| match prepare(request) {
        Prepared::Claim(request) => match request.beyond_limit.clone() {
            None => request.claim(),
            Some(rejection) => request.answer_or_reject(rejection),
        },
        Prepared::RunUnderAnothersClaim(run) => ClaimOutcome::Now(Ok(HandlerRun::Covered(run))),
        Prepared::Answer(answer) => ClaimOutcome::Now(Err(answer)),
    })
}

fn or_resume(ran: Result<Response, Panic>) -> Response {
    ran.unwrap_or_else(|panic| resume_unwind(panic))
}

impl Progress {
    /// Continues the request as far as possible. `handler_type` identifies the handler.
    fn poll(&mut self, cx: &mut Context<'_>, handler_type: TypeId, handler: &mut dyn Handler) -> Poll<Response> {
        if let Some(reading) = &mut self.reading {
            let claim_input = ready!(reading.as_mut().poll(cx));
            self.reading = None;
            self.extraction.note_body(&claim_input);
            self.stage.set_claim_input(claim_input);
        }
        let Self { stage, extraction, .. } = self;
        // A request that is rejected because of its key is answered before its body is read.
        let is_rejected = matches!(stage, Stage::AtGate(gate) if gate.is_rejected());
        if !is_rejected && let Some(rejection) = ready!(extraction.poll_before_claim(cx)) {
            *stage = Stage::Done;
            return Poll::Ready(rejection);
        }
        stage.proceed(cx, extraction, handler_type, handler)
    }
}

impl Stage {
    /// Lets the handler's future evaluate the policy's expressions, unless the request is already rejected.
    pub(super) fn evaluating(self, slot: &Arc<GateSlot>) -> Self {
        match self {
            Self::AtGate(gate) if !gate.is_rejected() => {
                slot.offer(gate);
                Self::Evaluating(Arc::clone(slot))
            }
            rejected => rejected,
        }
    }

    /// Gives the content of the request to the gate, when the body has been read.
    fn set_claim_input(&mut self, claim_input: ClaimInput) {
        match self {
            Self::AtGate(gate) => gate.set_claim_input(claim_input),
            Self::Evaluating(slot) => {
                let slot = Arc::clone(slot);
                let mut gate = slot.take_offered();
                gate.set_claim_input(claim_input);
                *self = Self::AtGate(gate).evaluating(&slot);
            }
            _ => unreachable!("the body is read before any other stage"),
        }
    }

    fn proceed(
        &mut self,
        cx: &mut Context<'_>,
        extraction: &mut Extraction,
        handler_type: TypeId,
        handler: &mut dyn Handler,
    ) -> Poll<Response> {
        loop {
            match self {
                Self::Evaluating(slot) => match (poll_handler(handler, cx, None), slot.take_evaluated()) {
                    (Poll::Pending, Some(gate)) => *self = Self::AtGate(gate),
                    (Poll::Pending, None) => return Poll::Pending,
                    // An expression has ended the handler with `?`. Nothing is claimed yet.
                    (Poll::Ready(ran), _) => {
                        *self = Self::Done;
                        return Poll::Ready(or_resume(ran));
                    }
                },
                Self::AtGate(_) => {
                    let Self::AtGate(mut gate) = mem::replace(self, Self::Done) else { unreachable!("matched above") };
                    let unread = gate.unread();
                    match claim(gate, handler_type) {
                        ClaimOutcome::Now(Ok(run)) => *self = Self::Running(run),
                        ClaimOutcome::Now(Err(answer)) => *self = Self::answering(answer, unread),
                        ClaimOutcome::Later(claiming) => *self = Self::Claiming(claiming, unread),
                    }
                }
                Self::Claiming(claiming, unread) => match claiming.as_mut().poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(run)) => *self = Self::Running(run),
                    Poll::Ready(Err(answer)) => *self = Self::answering(answer, unread.take()),
                },
                Self::Running(_) => {
                    if let Some(response) = ready!(self.poll_running(cx, extraction, handler)) {
                        return Poll::Ready(response);
                    }
                }
                Self::Settling(settling) => return settling.as_mut().poll(cx),
                Self::Answered(_) => {
                    let Self::Answered(answer) = mem::replace(self, Self::Done) else { unreachable!("matched above") };
                    return Poll::Ready(answer);
                }
                Self::Done => panic!("a future is not polled after it was ready"),
            }
        }
    }

    /// Returns the stage that sends the response of a request whose handler does not run.
    fn answering(answer: Response, unread: Option<Unread>) -> Self {
        match unread {
            None => Self::Answered(answer),
            Some(unread) => Self::Settling(unread.drained_before(answer)),
        }
    }

    /// Polls the handler. Returns the response unless it must still be settled.
    fn poll_running(
        &mut self,
        cx: &mut Context<'_>,
        extraction: &mut Extraction,
        handler: &mut dyn Handler,
    ) -> Poll<Option<Response>> {
        let Self::Running(run) = self else { unreachable!("it is polled as one") };
        let (span, guard) = match run {
            HandlerRun::Unguarded { .. } => {
                let ran = ready!(poll_handler(handler, cx, Some(extraction)));
                *self = Self::Done;
                return Poll::Ready(Some(or_resume(ran)));
            }
            HandlerRun::Covered(_) => return self.poll_covered(cx, extraction, handler).map(Some),
            HandlerRun::Claimed(claimed) => (&claimed.run.span, &claimed.run.guard),
            HandlerRun::InTransaction(transaction) => (&transaction.run.span, &transaction.run.guard),
        };
        let ran =
            ready!(polled_in(guard.execution(), || span.in_scope(|| poll_handler(handler, cx, Some(extraction)))));
        let settling = match mem::replace(self, Self::Done) {
            Self::Running(HandlerRun::Claimed(claimed)) => claimed.settle(ran),
            Self::Running(HandlerRun::InTransaction(transaction)) => Settling::Later(Box::pin(transaction.settle(ran))),
            _ => unreachable!("matched above"),
        };
        Poll::Ready(match settling {
            Settling::Done(response) => Some(response),
            Settling::Later(settling) => {
                *self = Self::Settling(settling);
                None
            }
            Settling::Streams(claimed, response) => Some(stream(claimed, response)),
        })
    }

    fn poll_covered(
        &mut self,
        cx: &mut Context<'_>,
        extraction: &mut Extraction,
        handler: &mut dyn Handler,
    ) -> Poll<Response> {
        let Self::Running(HandlerRun::Covered(run)) = self else { unreachable!("it is polled as one") };
        let Poll::Ready(ran) = polled_in(run.execution(), || poll_handler(handler, cx, Some(extraction))) else {
            return Poll::Pending;
        };
        // If the handler panicked, dropping the run marks it as cut off.
        let stage = mem::replace(self, Self::Done);
        match (stage, ran) {
            (Self::Running(HandlerRun::Covered(run)), Ok(response)) => Poll::Ready(run.end(response)),
            (_, ran) => Poll::Ready(or_resume(ran)),
        }
    }
}
