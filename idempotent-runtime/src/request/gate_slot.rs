//! Hands the gate of a request over to the handler's future, which evaluates the policy's expressions, and back.

use std::mem;

use crate::request::identify::Gate;
use crate::sync::{Mutex, lock};

/// The slot through which the gate goes. The guard polls the handler's future, so neither waits for the other.
#[derive(Default)]
pub(super) struct GateSlot(Mutex<Slot>);

#[derive(Default)]
enum Slot {
    Offered(Gate),
    Evaluated(Gate),
    #[default]
    Empty,
}

impl GateSlot {
    /// Offers the gate to the handler's future.
    pub(super) fn offer(&self, gate: Gate) {
        *lock(&self.0) = Slot::Offered(gate);
    }

    /// Takes the gate whose expressions are not evaluated yet.
    ///
    /// # Panics
    ///
    /// If there is no such gate. The handler's future is not polled unless the gate is offered.
    pub(super) fn take_offered(&self) -> Gate {
        match mem::take(&mut *lock(&self.0)) {
            Slot::Offered(gate) => gate,
            Slot::Evaluated(_) | Slot::Empty => unreachable!("a gate is offered before its handler is polled"),
        }
    }

    /// Returns the gate when its expressions are evaluated.
    pub(super) fn give_back(&self, gate: Gate) {
        *lock(&self.0) = Slot::Evaluated(gate);
    }

    /// Takes the gate if its expressions are evaluated.
    pub(super) fn take_evaluated(&self) -> Option<Gate> {
        let mut slot = lock(&self.0);
        match mem::take(&mut *slot) {
            Slot::Evaluated(gate) => Some(gate),
            unevaluated => {
                *slot = unevaluated;
                None
            }
        }
    }
}
