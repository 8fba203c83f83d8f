//! Claims the key in the store, and decides what the store's answer means: the handler runs, the request waits, or the
//! request gets a response without the handler.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use tracing::Instrument;

use crate::key::RecordKey;
use crate::lease::state::{NewClaim, RunningHandler};
use crate::observe::telemetry;
use crate::policy::values::{InFlight, OnStoreError};
use crate::rejection::problem::{IN_FLIGHT, Rejection, UNAVAILABLE};
use crate::request::handler_run::{ClaimOutcome, HandlerRun};
use crate::request::keyed_request::KeyedRequest;
use crate::store::claim::{Claim, ClaimRequest, Held, Token};
use crate::store::error::StoreError;
use crate::store::handle::StoreHandle;
use crate::sync::tokio::time::Instant;
use crate::transaction::contract::HandlerTransaction;
use crate::transaction::transactions::TxClaimRequest;

/// What the store's answer means for the request.
enum NextAction {
    Run { attempt: u32 },
    RunInTransaction { attempt: u32, transaction: Arc<dyn HandlerTransaction> },
    RunUnguarded,
    Answer(Response),
    Wait(Duration),
    ClaimAgain,
}

impl KeyedRequest {
    /// Claims the key at once if the store answers at once. Otherwise, the outcome contains a future that claims the
    /// key.
    pub(super) fn claim(mut self) -> ClaimOutcome {
        let asked_at = Instant::now();
        let pending = self.registry.renewer().asks(&self.stored_key);
        let action = self.claim_now().map(|claimed| self.decide(claimed, asked_at));
        drop(pending);
        match action {
            Some(action) => self.follow(action, asked_at),
            None => self.claim_later(),
        }
    }

    fn follow(self, action: NextAction, asked_at: Instant) -> ClaimOutcome {
        ClaimOutcome::Now(match action {
            NextAction::Run { attempt } => Ok(self.run_under_claim(attempt, asked_at)),
            NextAction::RunInTransaction { attempt, transaction } => Ok(self.run_in_transaction(attempt, transaction)),
            NextAction::RunUnguarded => Ok(self.run_unguarded()),
            NextAction::Answer(answer) => Err(answer),
            NextAction::Wait(limit) => {
                let span = self.admission.span.clone();
                let waiting = async move { Err(self.wait(limit).await) };
                return ClaimOutcome::Later(Box::pin(waiting.instrument(span)));
            }
            NextAction::ClaimAgain => return self.claim_later(),
        })
    }

    fn claim_later(self) -> ClaimOutcome {
        let span = self.admission.span.clone();
        ClaimOutcome::Later(Box::pin(self.ask_store().instrument(span)))
    }

    /// Returns the store's answer if the store answers without waiting. Returns `None` for a handler that takes a `Tx`.
    fn claim_now(&self) -> Option<Result<Claim, StoreError>> {
        if self.admission.transaction.is_some() {
            return None;
        }
        self.finish_without_client();
        self.store.claim_now(&self.stored_key, self.request)
    }

    /// Lets the request continue without its client: the store may make the claim although the client disconnects, and
    /// the claim must be handled to its end.
    fn finish_without_client(&self) {
        self.admission.execution.run.detach_state.set_must_finish(true);
    }

    /// Claims the key, or waits for the response of another request if the policy says so.
    pub(super) async fn ask_store(mut self) -> Result<HandlerRun, Response> {
        let asked_at = Instant::now();
        self.finish_without_client();
        let pending = self.registry.renewer().asks(&self.stored_key);
        let action = match self.admission.transaction.clone() {
            None => {
                let claimed = match self.store.claim(&self.stored_key, self.request).await {
                    // Before the handler runs unguarded, a read must confirm that the store is unreachable: the store
                    // may know a claim or a record of this key.
                    Err(error) if error.is_unreachable() && self.may_run_unguarded() => {
                        Err(self.store.look_after(error, &self.stored_key).await)
                    }
                    claimed => claimed,
                };
                self.decide(claimed, asked_at)
            }
            Some(transaction) => self.claim_in_transaction(transaction, asked_at).await,
        };
        drop(pending);
        let action = self.unless_late(action, asked_at).await;
        match self.follow(action, asked_at) {
            ClaimOutcome::Now(outcome) => outcome,
            ClaimOutcome::Later(outcome) => outcome.await,
        }
    }

    /// Begins the handler's transaction, and claims the key in this transaction. The record is written in this
    /// transaction too.
    async fn claim_in_transaction(
        &mut self,
        transaction: Arc<dyn HandlerTransaction>,
        asked_at: Instant,
    ) -> NextAction {
        match transaction.claim(&self.store, self.transaction_claim()).await {
            Ok(Claim::Acquired { attempt }) => match self.running_here() {
                None => match self.beyond_limit.take() {
                    None => NextAction::RunInTransaction { attempt, transaction },
                    Some(rejection) => {
                        let _ = transaction.roll_back(&self.store).await;
                        NextAction::Answer(self.admission.reject(rejection))
                    }
                },
                // The store may have forgotten the claim of a handler without a `Tx`.
                Some(running) => {
                    let _ = transaction.roll_back(&self.store).await;
                    self.decide_beside(running)
                }
            },
            Ok(existing) => self.decide(Ok(existing), asked_at),
            // A transaction that did not begin leaves nothing to release. Without a transaction, the handler cannot
            // run.
            Err(error) => NextAction::Answer(self.admission.reject_transaction(&self.store, &error)),
        }
    }

    fn transaction_claim(&self) -> TxClaimRequest<'_> {
        TxClaimRequest {
            key: &self.stored_key,
            request: self.request,
            isolation: self.admission.policy.isolation(),
            without_response: self.registry.at_rest().without_response(self.place(), self.fingerprints.first),
        }
    }

    /// Returns `action`, unless the store's answer came late and the lease cannot be renewed: then the request is
    /// rejected. The lease begins before the store answers, so the rest of a late lease may be too short to last until
    /// its first renewal.
    async fn unless_late(&self, action: NextAction, asked_at: Instant) -> NextAction {
        let is_late = asked_at.elapsed() >= self.request.lease / 3;
        if !is_late || !matches!(action, NextAction::Run { .. }) {
            return action;
        }
        if is_still_ours(&self.store, &self.stored_key, self.request).await {
            return action;
        }
        self.store.give_back(&self.stored_key, &self.request);
        NextAction::Answer(self.admission.reject(UNAVAILABLE))
    }

    fn may_run_unguarded(&self) -> bool {
        self.admission.policy.on_store_error() == OnStoreError::Run && self.beyond_limit.is_none()
    }

    fn decide(&mut self, claimed: Result<Claim, StoreError>, asked_at: Instant) -> NextAction {
        let claim = match claimed {
            Ok(claim) => claim,
            Err(error) => return self.decide_without_answer(&error),
        };
        match claim {
            Claim::Acquired { attempt } => match self.hand_over(attempt, asked_at) {
                Some(running) => self.decide_beside(running),
                None => match self.beyond_limit.take() {
                    None => NextAction::Run { attempt },
                    // The key was free after all. Nothing has run under this claim.
                    Some(rejection) => {
                        self.store.give_back(&self.stored_key, &self.request);
                        NextAction::Answer(self.admission.reject(rejection))
                    }
                },
            },
            Claim::Completed(record) => NextAction::Answer(self.completed(record)),
            Claim::InFlight { fingerprint } | Claim::Lapsed { fingerprint } if !self.is_same(fingerprint) => {
                // The other claim may be about to be released, because the handler that runs in this process has the
                // key.
                self.decide_beside(self.running_here().unwrap_or(RunningHandler::AnotherRequest(fingerprint)))
            }
            // The claim was made with another secret of the registry, so the store knows the request only by that
            // fingerprint.
            Claim::Lapsed { fingerprint } if !self.request.is_same_as(fingerprint) => {
                self.request.former_fingerprint = Some(fingerprint);
                NextAction::ClaimAgain
            }
            Claim::Lapsed { .. } => match self.running_here() {
                // The lease of the claim has expired, but its handler runs in this process.
                Some(running) => self.decide_beside(running),
                None => NextAction::Answer(self.admission.reject(Rejection::OutcomeUnknown)),
            },
            Claim::InFlight { .. } => self.decide_in_flight(),
        }
    }

    fn decide_without_answer(&self, error: &StoreError) -> NextAction {
        telemetry::claim_failed(&self.admission.policy, self.store.name(), error);
        if matches!(error, StoreError::Unavailable(_) | StoreError::TimedOut(_)) {
            // The store may have made the claim although its answer was lost. No handler will run under that claim.
            self.store.give_back(&self.stored_key, &self.request);
        }
        // No policy allows a run if the key may have a record that cannot be read, or if another request runs. And a
        // client that fills the store must not cause the retries of other clients to run. A handler that runs unguarded ends
        // with its client, so it does not begin after its client has left.
        let is_abandoned = self.admission.execution.run.detach_state.is_abandoned();
        let may_run = self.may_run_unguarded() && error.is_unreachable() && !is_abandoned;
        match may_run.then(|| self.running_here()) {
            Some(None) => NextAction::RunUnguarded,
            Some(Some(RunningHandler::AnotherRequest(fingerprint))) => {
                NextAction::Answer(self.reject_other(fingerprint))
            }
            Some(Some(RunningHandler::SameRequest)) | None => NextAction::Answer(self.admission.reject(UNAVAILABLE)),
        }
    }

    /// Hands the claim of this request over to the handler of an earlier request with this key, if that handler runs in
    /// this process. The store may have forgotten that handler's own claim.
    fn hand_over(&mut self, attempt: u32, asked_at: Instant) -> Option<RunningHandler> {
        let new_claim = NewClaim { request: &self.request, attempt, asked_at };
        let running = self
            .registry
            .renewer()
            .hand_over(&self.store, &self.stored_key, &new_claim, |stored| self.is_same(stored))?;
        telemetry::claim_handed_over(&self.admission.policy, self.store.name());
        // The end of this request must not end the claim of the earlier request.
        self.request.token = Token::unique();
        Some(running)
    }

    fn decide_beside(&self, running: RunningHandler) -> NextAction {
        match running {
            RunningHandler::SameRequest => self.decide_in_flight(),
            RunningHandler::AnotherRequest(fingerprint) => NextAction::Answer(self.reject_other(fingerprint)),
        }
    }

    fn decide_in_flight(&self) -> NextAction {
        match self.admission.policy.in_flight() {
            InFlight::Reject => NextAction::Answer(self.admission.reject(IN_FLIGHT)),
            InFlight::Wait(limit) => NextAction::Wait(limit),
        }
    }
}

/// Renews the lease. Returns true only if it is certain that the claim still exists.
async fn is_still_ours(store: &StoreHandle, key: &RecordKey, request: ClaimRequest) -> bool {
    let asked_at = Instant::now();
    let held = store.renew(key, request.token, request.lease).await;
    matches!(held, Ok(Held::Yes)) && asked_at.elapsed() < request.lease
}
