//! The future of one request: evaluates, enters, runs and settles.
//!
//! Only the polling of the handler's body is compiled for each handler.

use crate::observe::event::Event;
use crate::observe::telemetry;
use crate::rejection::problem::Rejection;
use crate::request::admission::Admission;
use crate::request::completion::Completion;
use crate::request::context::Execution;
use crate::request::coverage::polled_in;
use crate::request::passage::Entered;
use crate::request::passage::Passage;
use axum::response::Response;
use std::any::TypeId;
use std::future;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::sync::oneshot;
use tracing::Instrument;

use futures_util::future::BoxFuture;
use pin_project_lite::pin_project;

use crate::request::gate::Gate;
use crate::request::response::Panic;
use crate::request::settle::Settling;

impl Gate {
    /// Lets the handler through or answers in its place, and settles what it comes to: its response is recorded before it is
    /// sent.
    pub fn run<F>(self, handler: F, into_response: fn(F::Output) -> Response) -> Completion
    where
        F: Future + Send + 'static,
    {
        let execution = self.execution.clone();
        set_handler::<F>(execution.as_deref());
        Completion::new(
            Box::pin(Run { handler: Some(handler), into_response, stage: Stage::Entering(self) }),
            execution,
        )
    }

    /// Gives the gate to the handler's future: only there do the policy's expressions see the handler's variables.
    pub fn lend(self) -> (EvaluatingGate, PendingGate) {
        let execution = self.execution.clone();
        let (sender, receiver) = oneshot::channel();
        (EvaluatingGate { gate: self, sender }, PendingGate { receiver, execution })
    }

    /// Claims the request's key.
    pub(super) fn enter(mut self) -> Entered {
        self.drop_key_if_disabled();
        let has_one_transaction =
            self.execution.as_ref().is_none_or(|execution| execution.end_extraction(&self.policy));
        let transaction = self.execution.as_ref().and_then(|execution| execution.transaction().cloned());
        if self.key.is_none() && transaction.is_none() {
            if let Some(execution) = &self.execution {
                execution.enter();
            }
            if let Some(registry) = &self.registry {
                registry.observe(self.policy.scope(), Event::Executed);
            }
            return Entered::Now(Ok(Passage::Unguarded { _holding: None }));
        }
        let span = telemetry::span(&self.policy);
        if let Some(execution) = &self.execution {
            execution.detach_state.set_span(&span);
        }
        let admission = Admission {
            policy: self.policy.clone(),
            registry: self.registry.take(),
            span: span.clone(),
            cache_if: self.cache_if,
            trace: self.claim_input.trace.take(),
            // Without one there is no key to claim, only a rejection to give.
            execution: self.execution.take().unwrap_or_default(),
            transaction,
        };
        if !has_one_transaction {
            telemetry::second_transaction(&self.policy);
            return Entered::Now(Err(admission.reject(Rejection::TransactionFailed)));
        }
        match self.key.take() {
            Some(key) => span.in_scope(|| admission.enter(&self.claim_input, key, self.identity())),
            None => Entered::Later(Box::pin(admission.begin().instrument(span))),
        }
    }
}

fn set_handler<F: 'static>(execution: Option<&Execution>) {
    if let Some(execution) = execution {
        execution.set_handler(TypeId::of::<F>());
    }
}

pin_project! {
    /// A handler on its way to a settled claim.
    pub(super) struct Run<F: Future> {
        // Dropped as soon as it has ended: it may hold a handler that runs under this one's claim.
        #[pin]
        pub(super) handler: Option<F>,
        pub(super) into_response: fn(F::Output) -> Response,
        pub(super) stage: Stage,
    }
}

impl<F: Future> Future for Run<F> {
    type Output = Response;

    /// # Panics
    ///
    /// Goes on with the handler's own panic, after the claim is settled.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Response> {
        let mut this = self.project();
        let into_response = *this.into_response;
        this.stage.poll(cx, &mut |cx| {
            let handler = this.handler.as_mut().as_pin_mut().expect("a handler is not polled after it has ended");
            let polled = catch_unwind(AssertUnwindSafe(|| handler.poll(cx).map(into_response)));
            if !matches!(polled, Ok(Poll::Pending)) {
                this.handler.set(None);
            }
            match polled {
                Ok(polled) => polled.map(Ok),
                Err(panic) => Poll::Ready(Err(panic)),
            }
        })
    }
}

/// How far a request has come.
#[allow(clippy::large_enum_variant, reason = "they lie in the box of the handler's future, which is as large")]
pub(super) enum Stage {
    /// The handler's future has the gate, and evaluates the policy's expressions.
    Evaluating(oneshot::Receiver<Gate>),
    Entering(Gate),
    Claiming(BoxFuture<'static, Result<Passage, Response>>),
    Running(Passage),
    Settling(BoxFuture<'static, Response>),
    Done,
}

/// Polls the handler's future, and catches its panic.
type Handler<'a> = &'a mut dyn FnMut(&mut Context<'_>) -> Poll<Result<Response, Panic>>;

fn or_resume(ran: Result<Response, Panic>) -> Response {
    ran.unwrap_or_else(|panic| resume_unwind(panic))
}

impl Stage {
    fn poll(&mut self, cx: &mut Context<'_>, handler: Handler<'_>) -> Poll<Response> {
        loop {
            match self {
                Self::Evaluating(gate) => match (handler(cx), gate.try_recv()) {
                    (Poll::Pending, Ok(gate)) => *self = Self::Entering(gate),
                    (Poll::Pending, Err(_)) => return Poll::Pending,
                    // An expression has ended the handler by `?`: nothing is claimed yet.
                    (Poll::Ready(ran), _) => {
                        *self = Self::Done;
                        return Poll::Ready(or_resume(ran));
                    }
                },
                Self::Entering(_) => {
                    let Self::Entering(gate) = mem::replace(self, Self::Done) else { unreachable!("matched above") };
                    match gate.enter() {
                        Entered::Now(Ok(passage)) => *self = Self::Running(passage),
                        Entered::Now(Err(answer)) => return Poll::Ready(answer),
                        Entered::Later(claiming) => *self = Self::Claiming(claiming),
                    }
                }
                Self::Claiming(claiming) => match claiming.as_mut().poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(passage)) => *self = Self::Running(passage),
                    Poll::Ready(Err(answer)) => {
                        *self = Self::Done;
                        return Poll::Ready(answer);
                    }
                },
                Self::Running(passage) => {
                    let (span, holding) = match passage {
                        Passage::Unguarded { .. } => {
                            let Poll::Ready(ran) = handler(cx) else { return Poll::Pending };
                            *self = Self::Done;
                            return Poll::Ready(or_resume(ran));
                        }
                        Passage::Covered(_) => return self.poll_covered(cx, handler),
                        Passage::Claimed(claimed) => (&claimed.span, &claimed.holding),
                        Passage::InTransaction(transaction) => (&transaction.span, &transaction.holding),
                    };
                    let polled = polled_in(holding.execution(), || span.in_scope(|| handler(cx)));
                    let Poll::Ready(ran) = polled else { return Poll::Pending };
                    let settling = match mem::replace(self, Self::Done) {
                        Self::Running(Passage::Claimed(claimed)) => claimed.settle(ran),
                        Self::Running(Passage::InTransaction(transaction)) => {
                            Settling::Later(Box::pin(transaction.settle(ran)))
                        }
                        _ => unreachable!("matched above"),
                    };
                    match settling {
                        Settling::Done(response) => return Poll::Ready(response),
                        Settling::Later(settling) => *self = Self::Settling(settling),
                    }
                }
                Self::Settling(settling) => return settling.as_mut().poll(cx),
                Self::Done => panic!("a future is not polled after it was ready"),
            }
        }
    }
}

impl Stage {
    fn poll_covered(&mut self, cx: &mut Context<'_>, handler: Handler<'_>) -> Poll<Response> {
        let Self::Running(Passage::Covered(run)) = self else { unreachable!("it is polled as one") };
        let Poll::Ready(ran) = polled_in(run.execution(), || handler(cx)) else { return Poll::Pending };
        // If the handler panicked, dropping the run marks it as cut off.
        let stage = mem::replace(self, Self::Done);
        match (stage, ran) {
            (Self::Running(Passage::Covered(run)), Ok(response)) => Poll::Ready(run.end(response)),
            (_, ran) => Poll::Ready(or_resume(ran)),
        }
    }
}

/// A gate inside the handler's future, which evaluates the policy's expressions.
#[expect(missing_debug_implementations, reason = "only the expansion of the attribute holds it")]
pub struct EvaluatingGate {
    gate: Gate,
    sender: oneshot::Sender<Gate>,
}

impl EvaluatingGate {
    /// Gives the gate back. Resolves when the handler may run; the future of a rejected request is dropped here.
    pub fn give_back(self) -> impl Future<Output = ()> + Send {
        let mut gate = Some((self.gate, self.sender));
        future::poll_fn(move |_| match gate.take() {
            None => Poll::Ready(()),
            Some((gate, sender)) => {
                // The receiver polls this future, so it is there.
                let _ = sender.send(gate);
                Poll::Pending
            }
        })
    }
}

impl Deref for EvaluatingGate {
    type Target = Gate;

    fn deref(&self) -> &Gate {
        &self.gate
    }
}

impl DerefMut for EvaluatingGate {
    fn deref_mut(&mut self) -> &mut Gate {
        &mut self.gate
    }
}

/// A request whose gate is still evaluating.
#[expect(missing_debug_implementations, reason = "only the expansion of the attribute holds it")]
pub struct PendingGate {
    receiver: oneshot::Receiver<Gate>,
    execution: Option<Arc<Execution>>,
}

impl PendingGate {
    /// [`Gate::run`], once `handler` has given the gate back.
    pub fn run<F>(self, handler: F, into_response: fn(F::Output) -> Response) -> Completion
    where
        F: Future + Send + 'static,
    {
        set_handler::<F>(self.execution.as_deref());
        Completion::new(
            Box::pin(Run { handler: Some(handler), into_response, stage: Stage::Evaluating(self.receiver) }),
            self.execution,
        )
    }
}
