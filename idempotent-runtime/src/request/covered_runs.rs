//! What runs under one claim beneath its guard, and whether more may begin.

use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::sync::tokio::sync::Notify;
use crate::sync::{Mutex, lock};

/// Handlers beneath a guard that run under its claim, which must not end before they have.
#[derive(Default)]
pub(super) struct CoveredRuns {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    running: usize,
    /// Handlers that have answered, and whose bodies have not ended.
    streaming: usize,
    claim: Phase,
    was_cut_off: bool,
    /// A handler has answered with a response that is to be recorded, and the guard has not received it yet.
    awaits_answer: bool,
    /// A drain waits for the claim and for the handlers that run under it.
    counted: Option<TaskTrackerToken>,
}

/// How far the claim has come.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    #[default]
    Open,
    /// It ends without a record: nothing begins under it any more.
    Closed,
    Over,
}

impl State {
    /// The token that a drain waits for, once nothing runs any more.
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

    /// The claim has ended.
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

    /// Whether a run was dropped before its end, or panicked, or its answer got lost on the way to the guard.
    pub(super) fn has_unknown_outcome(&self) -> bool {
        let state = lock(&self.state);
        state.was_cut_off || state.awaits_answer
    }

    /// Lets no run begin from now on, if none is under way. Returns whether that is so.
    pub(super) fn close(&self) -> bool {
        self.close_if(|state| state.running == 0 && state.streaming == 0)
    }

    pub(super) async fn until_closed(&self) {
        self.until(Self::close).await;
    }

    /// As [`close`](Self::close), although bodies may still be read: they may be part of the guard's own response.
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
            // Created before the look, so that it is notified of an end in between.
            let changed = self.changed.notified();
            if is_closed(self) {
                return;
            }
            changed.await;
        }
    }
}
