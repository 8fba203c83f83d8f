//! The functions that the attribute's expansion calls around the handler's body, besides those for the policy's
//! expressions.

use std::cell::OnceCell;
use std::future;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::task::Poll;

use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;

use crate::policy::Policy;
use crate::policy::handle::PolicyHandle;
use crate::request::claim_input::ClaimInput;
use crate::request::completion::Completion;
use crate::request::context::Execution;
use crate::request::deferred::{Deferred, DeferredRequest, Extracted, Extraction};
use crate::request::extract::Guarded;
use crate::request::gate_slot::GateSlot;
use crate::request::identify::Gate;
use crate::request::response_mark::without_mark;
use crate::request::run::{Progress, Stage, start};

/// Opens the gate to an annotated handler for one request. The attribute's expansion calls this.
pub fn open<B, M>(policy: &'static Policy, extraction: Extraction, guarded: Guarded<B, M>) -> (OpenGate, Extracted<B>) {
    (open_request(policy, guarded.request, extraction), guarded.arguments)
}

fn open_request(policy: &'static Policy, request: Option<Arc<DeferredRequest>>, extraction: Extraction) -> OpenGate {
    let handle = PolicyHandle::Handler(policy);
    let Some(request) = request else {
        return OpenGate { gate: Gate::new(handle, None), deferred: Deferred::default(), reading: None };
    };
    let (input, is_read) = request.take_input(policy, extraction);
    let mut gate = Gate::new(handle, Some(input));
    let reading = if is_read { None } else { gate.begin_to_read() };
    let reading = reading.map(|reading| Arc::clone(&request).read_body(reading));
    let deferred = Deferred::new(request, extraction, gate.execution.clone(), gate.claim_input());
    OpenGate { gate, deferred, reading }
}

/// A gate before its handler's future exists.
#[expect(missing_debug_implementations, reason = "only the expansion of the attribute holds it")]
pub struct OpenGate {
    gate: Gate,
    deferred: Deferred,
    reading: Option<BoxFuture<'static, ClaimInput>>,
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
        let Self { gate, deferred, reading } = self;
        PendingGate { progress: Progress { reading, deferred, stage: Stage::AtGate(gate) }, execution }
    }

    /// Moves the gate into the handler's future, because the policy's expressions see the handler's variables only
    /// there.
    pub fn evaluate_in_handler(self) -> (EvaluatingGate, PendingGate) {
        let execution = self.gate.execution.clone();
        let Self { gate, deferred, reading } = self;
        let slot = Arc::<GateSlot>::default();
        let stage = Stage::evaluating(gate, &slot);
        (EvaluatingGate::of(slot), PendingGate { progress: Progress { reading, deferred, stage }, execution })
    }
}

/// A gate inside the handler's future, which evaluates the policy's expressions.
#[expect(missing_debug_implementations, reason = "only the expansion of the attribute holds it")]
pub struct EvaluatingGate {
    /// Unset until the first expression is evaluated. Before that, the guard may still read the body.
    gate: OnceCell<Gate>,
    slot: Arc<GateSlot>,
}

impl EvaluatingGate {
    fn of(slot: Arc<GateSlot>) -> Self {
        Self { gate: OnceCell::new(), slot }
    }

    /// Ends the evaluation. The returned future resolves when the handler may run. If the request is rejected, the
    /// future is dropped at this point.
    pub fn evaluated(self) -> impl Future<Output = ()> + Send {
        let mut gate = self.gate.into_inner();
        future::poll_fn(move |_| match gate.take() {
            None => Poll::Ready(()),
            Some(gate) => {
                self.slot.give_back(gate);
                Poll::Pending
            }
        })
    }
}

impl Deref for EvaluatingGate {
    type Target = Gate;

    fn deref(&self) -> &Gate {
        self.gate.get_or_init(|| self.slot.take_offered())
    }
}

impl DerefMut for EvaluatingGate {
    fn deref_mut(&mut self) -> &mut Gate {
        // The cell is empty before the first expression.
        let _ = Self::deref(self);
        self.gate.get_mut().expect("it was set at once")
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
