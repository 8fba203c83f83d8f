//! The guards around a request: under which claim the request may run, and which key and steps it may use.
//!
//! The nearest guard around a request is the one that passed the request on ([`link`](crate::request::link)), or the
//! one whose handler was polled when the request arrived ([`coverage`](crate::request::coverage)).

use std::iter;
use std::sync::Arc;

use http::HeaderMap;
use http::request::Parts;

use crate::idempotency_key::key_in;
use crate::key::RecordKey;
use crate::request::context::{Execution, Grant, Sender};
use crate::sync::atomic::{AtomicBool, Ordering};

impl Execution {
    /// Returns the execution under whose claim this one runs. It is found through the nearest guard around it that has
    /// this key.
    pub(super) fn covering_guard(&self, record_key: &RecordKey) -> Option<&Arc<Self>> {
        let around = self.around_with(record_key)?;
        let claiming = around.claim.covered_by.get().unwrap_or(around);
        Some(self.claim.covered_by.get_or_init(|| Arc::clone(claiming)))
    }

    /// Takes the right to run beneath the guard around this execution that has this key. Returns false if another run
    /// has already taken it: under one claim a request executes once, even if a middleware in between sends it several
    /// times.
    pub(super) fn begin_first_run_under(&self, record_key: &RecordKey) -> bool {
        self.around_with(record_key).is_some_and(|around| !around.run.has_covered_run.swap(true, Ordering::AcqRel))
    }

    /// Returns whether this request was sent by the handler that it has reached, as a new request with the same key.
    /// Such a request is a duplicate. A request with the same key for another handler is not.
    pub(super) fn is_sent_by_itself(&self, record_key: &RecordKey) -> bool {
        let (mut this, mut is_anew) = (self, false);
        while let Some(around) = this.around_of_client() {
            is_anew |= this.arrival.sent_by.get().is_some();
            if around.runs_under(record_key) && (!is_anew || around.has_the_handler_of(self)) {
                return is_anew;
            }
            this = around;
        }
        false
    }

    /// Returns the nearest guard around this execution that runs under this key.
    fn around_with(&self, record_key: &RecordKey) -> Option<&Arc<Self>> {
        iter::successors(self.around_of_client(), |execution| execution.around_of_client())
            .find(|execution| execution.runs_under(record_key))
    }

    /// Returns the grant that the handler sees: the one with which its guard has sent a claim to the store, or that of
    /// the guard under whose claim it runs, or that of the nearest guard around it.
    pub(super) fn granted(&self) -> Option<&Grant> {
        self.grantee()?.identity.grant.get()
    }

    /// Returns the number of the attempt that the handler sees.
    pub(super) fn visible_attempt(&self) -> u32 {
        self.grantee().and_then(Self::attempt).unwrap_or(1)
    }

    /// Returns the execution whose grant the handler sees.
    fn grantee(&self) -> Option<&Self> {
        if self.identity.grant.get().is_some() {
            return Some(self);
        }
        self.claim.covered_by.get().or_else(|| self.shared())?.grantee()
    }

    /// Returns the nearest guard around this execution, if the handler may use the key and steps of that guard because
    /// both requests come from one client.
    ///
    /// A request without a link to the guard may come from another client: the guard's handler may poll such requests.
    /// Equal credentials show that the client is the same if no caller is named. If a caller is named, the registry
    /// must name the same one.
    pub(super) fn shared(&self) -> Option<&Arc<Self>> {
        self.around_of_client().filter(|guard| self.is_of_caller(guard))
    }

    /// Returns whether it is unknown if the handler may use the key and steps of the nearest guard around it.
    pub(super) fn may_be_shared(&self) -> bool {
        self.around_of_client().is_some_and(|guard| !self.is_of_caller(guard))
    }

    fn is_of_caller(&self, guard: &Self) -> bool {
        let has_caller = || guard.granted().is_some_and(|grant| grant.record_key.caller().is_some());
        match self.arrival.sent_by.get() {
            Some(sender) => sender.has_same_caller.load(Ordering::Relaxed) || !has_caller(),
            None => true,
        }
    }

    /// Returns the nearest guard around this execution, if both requests have the same credentials. A handler may poll
    /// requests of other clients.
    fn around_of_client(&self) -> Option<&Arc<Self>> {
        self.around().filter(|_| self.arrival.sent_by.get().is_none_or(|sender| sender.is_same_client))
    }

    /// Makes `guard` the nearest guard around this execution, for a request with these headers.
    pub(super) fn set_sender(&self, guard: Arc<Self>, headers: &HeaderMap) {
        let is_same_client = guard.client().is_some_and(|client| client.has_sent(headers));
        let _ = self.arrival.sent_by.set(Sender { guard, is_same_client, has_same_caller: AtomicBool::default() });
    }

    /// Notes whether a request with these headers has another key than the guard around it.
    pub(super) fn compare_keys(&self, headers: &HeaderMap) {
        let has_other_key = self.around().is_some_and(|around| around.would_have_other_key(headers));
        self.identity.has_other_key.store(has_other_key, Ordering::Relaxed);
    }

    fn would_have_other_key(&self, headers: &HeaderMap) -> bool {
        let (Some(policy), Some(grant)) = (self.policy(), self.granted()) else { return false };
        let key = key_in(&headers.get_all(policy.header()));
        self.identity.has_key_in_header.load(Ordering::Relaxed)
            && key.is_some_and(|key| key.ok().as_ref() != Some(&grant.key))
    }

    /// Notes whether the registry names the same caller for a request with this head as for the guard that sends the
    /// request.
    pub(super) fn compare_callers(&self, parts: &Parts) {
        let Some(sender) = self.arrival.sent_by.get() else { return };
        let asked = sender.guard.client().and_then(|client| client.caller_of(parts));
        let granted = sender.guard.granted().and_then(|grant| grant.record_key.caller());
        sender.has_same_caller.store(asked.is_some() && asked.as_deref() == granted.as_deref(), Ordering::Relaxed);
    }

    /// Returns whether `other` is this guard, or a guard around it.
    pub(super) fn is_beneath(self: &Arc<Self>, other: &Arc<Self>) -> bool {
        iter::successors(Some(self), |execution| execution.around()).any(|execution| Arc::ptr_eq(execution, other))
    }

    /// Returns whether the response of this execution can be the response to the request of `guard`, which is around
    /// it.
    pub(super) fn answers_for(self: &Arc<Self>, guard: &Arc<Self>) -> bool {
        iter::successors(Some(self), |execution| execution.around().filter(|_| execution.may_answer_for_guard_around()))
            .any(|execution| Arc::ptr_eq(execution, guard))
    }

    fn may_answer_for_guard_around(&self) -> bool {
        let is_of_client = self.arrival.sent_by.get().is_none_or(|sender| sender.is_same_client);
        is_of_client && !self.identity.has_other_key.load(Ordering::Relaxed)
    }
}
