//! The functions that the attribute's expansion calls around the handler's body, besides those for the policy's
//! expressions.

use std::cell::OnceCell;
use std::future;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::task::Poll;

use axum::response::{IntoResponse, Response};

use crate::policy::Policy;
use crate::policy::handle::PolicyHandle;
use crate::request::completion::Completion;
use crate::request::context::Execution;
use crate::request::deferred::{DeferredRequest, Extracted, Extraction, ExtractionTime};
use crate::request::extract::Guarded;
use crate::request::gate_slot::GateSlot;
use crate::request::identify::Gate;
use crate::request::response_mark::without_mark;
use crate::request::run::{Progress, Stage, start};

/// Opens the gate to an annotated handler for one request. The attribute's expansion calls this.
pub fn open<B, M>(policy: &'static Policy, time: ExtractionTime, guarded: Guarded<B, M>) -> (OpenGate, Extracted<B>) {
    (open_request(policy, guarded.request, time), guarded.arguments)
}

fn open_request(policy: &'static Policy, request: Option<Arc<DeferredRequest>>, time: ExtractionTime) -> OpenGate {
    let policy_handle = PolicyHandle::Handler(policy);
    let Some(request) = request else { return OpenGate::of(Gate::new(policy_handle, None)) };
    let (input, is_read) = request.take_input(policy, time);
    let mut gate = Gate::new(policy_handle, Some(input));
    let reading = if is_read { None } else { gate.begin_to_read() };
    let reading = reading.map(|reading| Arc::clone(&request).read_body(reading));
    let execution = gate.execution.clone();
    let extraction = Extraction::new(request, time, execution.clone(), gate.claim_input());
    OpenGate { progress: Progress { reading, extraction, stage: Stage::AtGate(gate) }, execution }
}

/// A request before its handler's future exists.
#[expect(missing_debug_implementations, reason = "only the expansion of the attribute holds it")]
pub struct OpenGate {
    progress: Progress,
    execution: Option<Arc<Execution>>,
}

impl OpenGate {
    /// Opens the gate of a request whose body has been read, and for whose handler nothing is extracted.
    pub(crate) fn of(gate: Gate) -> Self {
        let execution = gate.execution.clone();
        let progress = Progress { reading: None, extraction: Extraction::default(), stage: Stage::AtGate(gate) };
        Self { progress, execution }
    }

    /// Runs the handler or answers in its place, and settles the outcome: a response is recorded before it is sent.
    pub fn run<F>(self, handler: F, into_response: fn(F::Output) -> Response) -> Completion
    where
        F: Future + Send + 'static,
    {
        start(self.progress, self.execution, handler, into_response)
    }

    /// Moves the gate into the handler's future, because the policy's expressions see the handler's variables only
    /// there.
    pub fn evaluate_in_handler(mut self) -> (EvaluatingGate, Self) {
        let slot = Arc::<GateSlot>::default();
        self.progress.stage = self.progress.stage.evaluating(&slot);
        (EvaluatingGate::of(slot), self)
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
        // Without an expression, nothing has asked for the gate. The handler runs only after the guard has it back.
        let mut gate = Some(self.gate.into_inner().unwrap_or_else(|| self.slot.take_offered()));
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
