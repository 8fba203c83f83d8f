//! The functions that the attribute's expansion calls around the handler's body, besides those for the policy's
//! expressions.

use std::future;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::task::Poll;

use axum::response::{IntoResponse, Response};
use tokio::sync::oneshot;

use crate::policy::Policy;
use crate::policy::handle::PolicyHandle;
use crate::request::completion::Completion;
use crate::request::context::Execution;
use crate::request::deferred::{Deferred, DeferredRequest, Extracted, Extraction};
use crate::request::extract::Guarded;
use crate::request::identify::Gate;
use crate::request::input::RequestInput;
use crate::request::response_mark::without_mark;
use crate::request::run::{Progress, Stage, start};

/// Opens the gate to an annotated handler for one request. The attribute's expansion calls this.
pub fn open<B, M>(policy: &'static Policy, extraction: Extraction, guarded: Guarded<B, M>) -> (OpenGate, Extracted<B>) {
    (open_request(policy, guarded.request, extraction), guarded.arguments)
}

fn open_request(policy: &'static Policy, request: Option<Arc<DeferredRequest>>, extraction: Extraction) -> OpenGate {
    let input = request.as_ref().map(|request| request.take_input(extraction));
    let is_before_claim = match extraction {
        Extraction::BeforeClaim => true,
        Extraction::UnderClaim => false,
        Extraction::PlainBody => input.as_ref().is_some_and(RequestInput::has_broken_body),
    };
    let upload = input.as_ref().and_then(|input| input.claim_input.upload.clone());
    let gate = Gate::new(PolicyHandle::Handler(policy), input);
    let deferred = Deferred::new(request, is_before_claim, upload, gate.execution.clone());
    OpenGate { gate, deferred }
}

/// A gate before its handler's future exists.
#[expect(missing_debug_implementations, reason = "only the expansion of the attribute holds it")]
pub struct OpenGate {
    gate: Gate,
    deferred: Deferred,
}

impl OpenGate {
    /// Runs the handler or answers in its place, and settles the outcome: a response is recorded before it is sent.
    pub fn run<F>(self, handler: F, into_response: fn(F::Output) -> Response) -> Completion
    where
        F: Future + Send + 'static,
    {
        self.pending().run(handler, into_response)
    }

    fn pending(self) -> PendingGate {
        let execution = self.gate.execution.clone();
        PendingGate { progress: Progress { stage: Stage::AtGate(self.gate), deferred: self.deferred }, execution }
    }

    /// Moves the gate into the handler's future, because the policy's expressions see the handler's variables only
    /// there.
    pub fn evaluate_in_handler(mut self) -> (EvaluatingGate, PendingGate) {
        let execution = self.gate.execution.clone();
        let (sender, receiver) = oneshot::channel();
        let stage = self.gate.take_rejected().map_or(Stage::Evaluating(receiver), Stage::AtGate);
        let progress = Progress { stage, deferred: self.deferred };
        (EvaluatingGate { gate: self.gate, sender }, PendingGate { progress, execution })
    }
}

/// A gate inside the handler's future, which evaluates the policy's expressions.
#[expect(missing_debug_implementations, reason = "only the expansion of the attribute holds it")]
pub struct EvaluatingGate {
    gate: Gate,
    sender: oneshot::Sender<Gate>,
}

impl EvaluatingGate {
    /// Ends the evaluation. The returned future resolves when the handler may run. If the request is rejected, the
    /// future is dropped at this point.
    pub fn evaluated(self) -> impl Future<Output = ()> + Send {
        let mut gate = Some((self.gate, self.sender));
        future::poll_fn(move |_| match gate.take() {
            None => Poll::Ready(()),
            Some((gate, sender)) => {
                // The receiver polls this future, so it still exists.
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

/// A request before its first poll.
#[expect(missing_debug_implementations, reason = "only the expansion of the attribute holds it")]
pub struct PendingGate {
    progress: Progress,
    execution: Option<Arc<Execution>>,
}

impl PendingGate {
    /// Like [`OpenGate::run`], once `handler` has evaluated the expressions.
    pub fn run<F>(self, handler: F, into_response: fn(F::Output) -> Response) -> Completion
    where
        F: Future + Send + 'static,
    {
        start(self.progress, self.execution, handler, into_response)
    }
}

/// Turns the handler's return value into a response. It is a separate function so that an error can point at the return
/// type.
pub fn into_response<R: IntoResponse>(value: R) -> Response {
    // If the handler forwarded the request, another guard may have marked the response. But this guard answers for its
    // own handler.
    without_mark(value.into_response())
}

/// Replaces the return value of an annotated handler in code that is never reached.
pub fn never<T>() -> T {
    unreachable!("its call is behind a condition that is never true")
}

/// Like [`never()`], for a body that has no value yet because it is still being typed. Both names have the same length,
/// because an editor completes code only if the body is at the same position in both expansions.
pub fn typed<T>() -> ! {
    unreachable!("a body that is being typed does not compile")
}
