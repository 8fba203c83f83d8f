//! Counts the runs beneath a guard under its claim, and decides whether another run may begin.

use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::sync::tokio::sync::Notify;
use crate::sync::{Mutex, lock};

/// The handlers beneath a guard that run under its claim. The claim must not end before these handlers end.
#[derive(Default)]
pub(super) struct CoveredRuns {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    running: usize,
    /// The number of handlers that have answered and whose bodies have not ended.
    streaming: usize,
    claim: Phase,
    was_cut_off: bool,
    /// A handler has answered with a response that will be recorded, and the guard has not received it yet.
    awaits_answer: bool,
    /// The token by which a drain waits for the claim and for the handlers that run under it.
    counted: Option<TaskTrackerToken>,
}

/// The phase of the claim.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    #[default]
    Open,
    /// The claim is about to end, so no run begins under the claim any more.
    Closed,
    Over,
}

impl State {
    /// Takes the token that a drain waits for, if nothing runs any more.
    fn uncounted(&mut self) -> Option<TaskTrackerToken> {
        let is_idle = self.claim == Phase::Over && self.running == 0;
        self.counted.take_if(|_| is_idle)
    }
}

impl CoveredRuns {
    pub(super) fn count(&self, token: Option<TaskTrackerToken>) {
        lock(&self.state).counted = token;
    }

    /// Begins a run. Returns false if no run may begin any more.
    pub(super) fn begin(&self) -> bool {
        let mut state = lock(&self.state);
        let is_open = state.claim == Phase::Open;
        if is_open {
            state.running += 1;
        }
        is_open
    }

    pub(super) fn answer(&self) {
        let mut state = lock(&self.state);
        state.running -= 1;
        state.streaming += 1;
        state.awaits_answer = true;
        let uncounted = state.uncounted();
        drop(state);
        drop(uncounted);
        self.changed.notify_waiters();
    }

    pub(super) fn end(&self, has_answered: bool, has_ended: bool) {
        let mut state = lock(&self.state);
        let ended = if has_answered { &mut state.streaming } else { &mut state.running };
        *ended -= 1;
        state.was_cut_off |= !has_ended;
        let uncounted = state.uncounted();
        drop(state);
        drop(uncounted);
        self.changed.notify_waiters();
    }

    /// Notes that the claim has ended.
    pub(super) fn claim_ended(&self) {
        let mut state = lock(&self.state);
        state.claim = Phase::Over;
        let uncounted = state.uncounted();
        drop(state);
        drop(uncounted);
    }

    pub(super) fn answer_received(&self) {
        lock(&self.state).awaits_answer = false;
    }

    /// Returns whether a run panicked or was dropped before its end, or its answer got lost on the way to the guard.
    pub(super) fn has_unknown_outcome(&self) -> bool {
        let state = lock(&self.state);
        state.was_cut_off || state.awaits_answer
    }

    /// Lets no run begin from now on, if none is in progress. Returns whether no run may begin any more.
    pub(super) fn close(&self) -> bool {
        self.close_if(|state| state.running == 0 && state.streaming == 0)
    }

    pub(super) async fn until_closed(&self) {
        self.until(Self::close).await;
    }

    /// Like [`close`](Self::close), but response bodies may still be in progress: they may be part of the guard's own
    /// response.
    pub(super) fn close_to_handlers(&self) -> bool {
        self.close_if(|state| state.running == 0)
    }

    pub(super) async fn until_closed_to_handlers(&self) {
        self.until(Self::close_to_handlers).await;
    }

    fn close_if(&self, may_close: impl FnOnce(&State) -> bool) -> bool {
        let mut state = lock(&self.state);
        if may_close(&state) {
            state.claim = state.claim.max(Phase::Closed);
        }
        state.claim != Phase::Open
    }

    async fn until(&self, is_closed: impl Fn(&Self) -> bool) {
        loop {
            // Created before the check, so that it is notified of a run that ends after the check.
            let changed = self.changed.notified();
            if is_closed(self) {
                return;
            }
            changed.await;
        }
    }
}
