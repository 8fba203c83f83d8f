//! From a key to a claim, a replay or a rejection.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use http::HeaderName;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::Instrument;

use crate::fingerprint::Fingerprint;
use crate::fingerprint::difference::Difference;
use crate::idempotency_key::IdempotencyKey;
use crate::key::RecordKey;
use crate::lease::state::{Lease, Running, Taken};
use crate::observe::event::Event;
use crate::observe::telemetry;
use crate::observe::telemetry::Outcome;
use crate::observe::traceparent::TraceParent;
use crate::policy::values::{AfterCrash, InFlight, OnStoreError};
use crate::record::Record;
use crate::record::envelope::{Opened, Place};
use crate::record::fingerprints::{Compared, Fingerprints, incomparable};
use crate::record::headers::Length;
use crate::record::protection::Downstream;
use crate::registry::Registry;
use crate::registry::watches::Ended;
use crate::rejection::problem::{IN_FLIGHT, RETRY_AFTER, Rejection, UNAVAILABLE};
use crate::request::active_guard::ActiveGuard;
use crate::request::admission::Admission;
use crate::request::guarded_run::Permits;
use crate::request::handler_run::{ClaimOutcome, HandlerRun};
use crate::request::replay::replay;
use crate::request::settle::Claimed;
use crate::request::settle_transaction::{InTransaction, TransactionClaim};
use crate::request::wait::Watch;
use crate::step::names::Owners;
use crate::step::steps::Steps;
use crate::store::claim::{Claim, ClaimRequest, Held, Token};
use crate::store::error::StoreError;
use crate::store::handle::StoreHandle;
use crate::sync::tokio::time::Instant;
use crate::transaction::contract::HandlerTransaction;
use crate::transaction::transactions::TxClaimRequest;

/// A request with all that its claim takes.
pub(super) struct Claiming {
    pub(super) admission: Admission,
    pub(super) registry: Registry,
    pub(super) store: StoreHandle,
    pub(super) key: IdempotencyKey,
    pub(super) record_key: RecordKey,
    /// The record key as the store sees it: digested, if the registry says so.
    pub(super) stored_key: RecordKey,
    pub(super) request: ClaimRequest,
    pub(super) fingerprints: Fingerprints,
    /// A caller is named, so credentials are not part of the fingerprint.
    pub(super) is_partitioned: bool,
    /// Until it waits for another request.
    pub(super) running: Option<TaskTrackerToken>,
    pub(super) permits: Permits,
    /// Why it cannot run, although its key may have an answer.
    pub(super) beyond_limit: Option<Rejection>,
}

/// What the store's answer means for the request.
enum Decision {
    Acquired { attempt: u32 },
    Unguarded,
    Answer(Response),
    Wait(Duration),
    Again,
}

impl Claiming {
    /// Claims at once where the store answers at once.
    pub(super) fn claim(mut self) -> ClaimOutcome {
        let asked_at = Instant::now();
        let pending = self.registry.renewer().asks(&self.stored_key);
        let decision = self.claim_now().map(|claimed| self.decide(claimed, asked_at));
        drop(pending);
        match decision {
            Some(decision) => self.follow(decision, asked_at),
            None => self.claim_later(),
        }
    }

    /// What the decision means: the handler may run, the request has an answer, or it waits.
    fn follow(self, decision: Decision, asked_at: Instant) -> ClaimOutcome {
        ClaimOutcome::Now(match decision {
            Decision::Acquired { attempt } => Ok(self.acquired(attempt, asked_at)),
            Decision::Unguarded => Ok(self.unguarded()),
            Decision::Answer(answer) => Err(answer),
            Decision::Wait(limit) => {
                let span = self.admission.span.clone();
                let waiting = async move { Err(self.wait(limit).await) };
                return ClaimOutcome::Later(Box::pin(waiting.instrument(span)));
            }
            Decision::Again => return self.claim_later(),
        })
    }

    fn claim_later(self) -> ClaimOutcome {
        let span = self.admission.span.clone();
        ClaimOutcome::Later(Box::pin(self.ask_store().instrument(span)))
    }

    /// The store's answer, if it gives one without waiting.
    fn claim_now(&self) -> Option<Result<Claim, StoreError>> {
        if self.admission.transaction.is_some() {
            return None;
        }
        // A claim that the store has made must not be forgotten because the client left meanwhile.
        self.admission.execution.run.detach_state.set_must_finish(true);
        self.store.claim_now(&self.stored_key, self.request)
    }

    /// Claims the key, or waits for the response of another request if the policy says so.
    pub(super) async fn ask_store(mut self) -> Result<HandlerRun, Response> {
        let asked_at = Instant::now();
        // A claim that the store has made must not be forgotten because the client left meanwhile.
        self.admission.execution.run.detach_state.set_must_finish(true);
        let pending = self.registry.renewer().asks(&self.stored_key);
        let decision = match self.admission.transaction.clone() {
            None => {
                let claimed = match self.store.claim(&self.stored_key, self.request).await {
                    // Before a handler runs beside what the store may know, the store is asked again.
                    Err(error) if error.is_unreachable() && self.may_run_unguarded() => {
                        Err(self.store.look_after(error, &self.stored_key).await)
                    }
                    claimed => claimed,
                };
                self.decide(claimed, asked_at)
            }
            Some(transaction) => match transaction.claim(&self.store, self.transaction_claim()).await {
                Ok(Claim::Acquired { attempt }) => match self.running_here() {
                    None => match self.beyond_limit.take() {
                        None => return Ok(self.begun(attempt, transaction)),
                        Some(rejection) => {
                            let _ = transaction.roll_back(&self.store).await;
                            Decision::Answer(self.admission.reject(rejection))
                        }
                    },
                    // The store may have forgotten the claim of a handler without a `Tx`.
                    Some(running) => {
                        let _ = transaction.roll_back(&self.store).await;
                        self.decide_beside(running)
                    }
                },
                Ok(existing) => self.decide(Ok(existing), asked_at),
                // Nothing outlives a transaction that did not begin, so there is nothing to give back; and without one
                // the handler cannot run.
                Err(error) => return Err(self.admission.reject_transaction(&self.store, &error)),
            },
        };
        drop(pending);
        let decision = self.unless_late(decision, asked_at).await;
        match self.follow(decision, asked_at) {
            ClaimOutcome::Now(outcome) => outcome,
            ClaimOutcome::Later(outcome) => outcome.await,
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

    /// A lease begins before the answer of the store comes. What is left of it must last until it is renewed.
    async fn unless_late(&self, decision: Decision, asked_at: Instant) -> Decision {
        let is_late = asked_at.elapsed() >= self.request.lease / 3;
        if !is_late || !matches!(decision, Decision::Acquired { .. }) {
            return decision;
        }
        if is_still_ours(&self.store, &self.stored_key, self.request).await {
            return decision;
        }
        self.store.give_back(&self.stored_key, &self.request);
        Decision::Answer(self.admission.reject(UNAVAILABLE))
    }

    fn may_run_unguarded(&self) -> bool {
        self.admission.policy.on_store_error() == OnStoreError::Run && self.beyond_limit.is_none()
    }

    fn decide(&mut self, claimed: Result<Claim, StoreError>, asked_at: Instant) -> Decision {
        let claim = match claimed {
            Ok(claim) => claim,
            Err(error) => {
                telemetry::claim_failed(&self.admission.policy, self.store.name(), &error);
                if matches!(error, StoreError::Unavailable(_) | StoreError::TimedOut(_)) {
                    // The store may have made the claim although the answer was lost, and no handler will run under it.
                    self.store.give_back(&self.stored_key, &self.request);
                }
                // No policy allows a run beside a record that cannot be read, or beside another run; and a client that fills the
                // store must not make the retries of others run.
                let may_run = self.may_run_unguarded() && error.is_unreachable();
                return match may_run.then(|| self.running_here()) {
                    Some(None) => Decision::Unguarded,
                    Some(Some(Running::AnotherRequest(fingerprint))) => {
                        Decision::Answer(self.reject_other(fingerprint))
                    }
                    Some(Some(Running::SameRequest)) | None => Decision::Answer(self.admission.reject(UNAVAILABLE)),
                };
            }
        };
        match claim {
            Claim::Acquired { attempt } => match self.hand_over(attempt, asked_at) {
                Some(running) => self.decide_beside(running),
                None => match self.beyond_limit.take() {
                    None => Decision::Acquired { attempt },
                    // The key was free after all. Nothing has run under this claim.
                    Some(rejection) => {
                        self.store.give_back(&self.stored_key, &self.request);
                        Decision::Answer(self.admission.reject(rejection))
                    }
                },
            },
            Claim::Completed(record) => Decision::Answer(self.completed(record)),
            Claim::InFlight { fingerprint } | Claim::Lapsed { fingerprint } if !self.is_same(fingerprint) => {
                // The other claim may be one that is about to be released for the handler that runs here.
                self.decide_beside(self.running_here().unwrap_or(Running::AnotherRequest(fingerprint)))
            }
            // Claimed with another secret of the registry: the store knows the request by that fingerprint alone.
            Claim::Lapsed { fingerprint } if !self.request.is_same_as(fingerprint) => {
                self.request.former_fingerprint = Some(fingerprint);
                Decision::Again
            }
            Claim::Lapsed { .. } => match self.running_here() {
                // Its lease has expired, but its handler runs in this process.
                Some(running) => self.decide_beside(running),
                None => Decision::Answer(self.admission.reject(Rejection::OutcomeUnknown)),
            },
            Claim::InFlight { .. } => self.decide_in_flight(),
        }
    }

    /// If the handler of an earlier request with this key runs in this process, it gets the claim of this request: the store
    /// may have forgotten its own.
    fn hand_over(&mut self, attempt: u32, asked_at: Instant) -> Option<Running> {
        let taken = Taken { request: &self.request, attempt, asked_at };
        let running =
            self.registry.renewer().hand_over(&self.store, &self.stored_key, &taken, |stored| self.is_same(stored))?;
        telemetry::claim_handed_back(&self.admission.policy, self.store.name());
        // The end of this request must not end the claim of the other one.
        self.request.token = Token::unique();
        Some(running)
    }

    pub(super) fn running_here(&self) -> Option<Running> {
        self.registry.renewer().running(&self.store, &self.stored_key, |stored| self.is_same(stored))
    }

    fn decide_beside(&self, running: Running) -> Decision {
        match running {
            Running::SameRequest => self.decide_in_flight(),
            Running::AnotherRequest(fingerprint) => Decision::Answer(self.reject_other(fingerprint)),
        }
    }

    fn decide_in_flight(&self) -> Decision {
        match self.admission.policy.in_flight() {
            InFlight::Reject => Decision::Answer(self.admission.reject(IN_FLIGHT)),
            InFlight::Wait(limit) => Decision::Wait(limit),
        }
    }

    /// Waits for the end of the request that runs: its response, or why there is none.
    pub(super) async fn wait(mut self, limit: Duration) -> Response {
        // It executes nothing: a drain need not wait for it.
        self.running = None;
        self.permits.running = None;
        let detach_state = &self.admission.execution.run.detach_state;
        if detach_state.is_abandoned() {
            // The client disconnected while the store was asked.
            return self.admission.reject(IN_FLIGHT);
        }
        detach_state.set_must_finish(false);
        let watch = Watch {
            policy: self.admission.policy.clone(),
            registry: self.registry.clone(),
            store: self.store.clone(),
            key: self.stored_key.clone(),
            request: self.request,
            transaction: self.admission.transaction.clone(),
        };
        match watch.end_within(limit).await {
            Some(Ended::Recorded(record)) => self.completed(record),
            Some(Ended::Lapsed) if self.admission.policy.after_crash() == AfterCrash::Reject => {
                self.admission.reject(Rejection::OutcomeUnknown)
            }
            Some(Ended::Gone | Ended::Lapsed) => {
                self.admission.reject(Rejection::NotRecorded { retry_after: RETRY_AFTER })
            }
            Some(Ended::Rejected(rejection)) => self.admission.reject(rejection),
            None => self.admission.reject(IN_FLIGHT),
        }
    }

    /// The answer from the record of this key.
    fn completed(&self, record: Record) -> Response {
        let (status, fingerprint, recorded_at) = (record.status, record.fingerprint, record.recorded_at);
        // Opened first: what was changed in the store says nothing about the request.
        let opened = match self.registry.at_rest().open(self.place(), record) {
            Ok(opened) => opened,
            Err(error) => return self.reject_damaged(&error),
        };
        if !self.is_same(fingerprint) {
            return self.reject_other(fingerprint);
        }
        let Opened::Whole(mut lines, body) = opened else {
            return self.admission.reject(Rejection::ResponseNotRecorded { status });
        };
        let trace = TraceParent::take(&mut lines);
        let length = Length::of(self.admission.execution.is_head(), status);
        let replay = match replay(status, lines, body, &self.admission.policy, recorded_at, length) {
            Ok(replay) => replay,
            Err(error) => return self.reject_damaged(&error),
        };
        if let Some(trace) = trace {
            trace.link_to(&self.admission.span);
        }
        self.admission.report(Outcome::Replayed { recorded_at }, Event::Replayed);
        replay
    }

    /// Where its record is stored.
    fn place(&self) -> Place<'_> {
        Place { store: self.store.name(), key: &self.stored_key }
    }

    /// What the store has under this key cannot be read or compared.
    fn reject_damaged(&self, error: &StoreError) -> Response {
        telemetry::claim_failed(&self.admission.policy, self.store.name(), error);
        self.admission.reject(UNAVAILABLE)
    }

    /// The key belongs to another request, as far as can be told, which has this fingerprint.
    fn reject_other(&self, fingerprint: Fingerprint) -> Response {
        let at_rest = self.registry.at_rest();
        self.admission.reject(match at_rest.compare(&self.fingerprints, fingerprint, self.credential_headers()) {
            Compared::Other(difference) => {
                telemetry::other_request(self.admission.policy.scope(), &difference);
                match difference {
                    Difference::Credentials(_) => Rejection::OtherCredentials,
                    Difference::Target | Difference::Body => Rejection::KeyReused,
                }
            }
            Compared::Incomparable(id) => return self.reject_damaged(&incomparable(id)),
            // A handler of this process has ended meanwhile.
            Compared::Same => IN_FLIGHT,
        })
    }

    fn is_same(&self, fingerprint: Fingerprint) -> bool {
        self.registry.at_rest().is_same(&self.fingerprints, fingerprint)
    }

    fn downstream(&self) -> Downstream {
        self.registry.at_rest().downstream(*self.fingerprints.request())
    }

    /// The headers that are part of the fingerprint.
    fn credential_headers(&self) -> &[HeaderName] {
        if self.is_partitioned { &[] } else { self.registry.credential_headers() }
    }

    /// The right to run under the claim.
    fn acquired(self, attempt: u32, asked_at: Instant) -> HandlerRun {
        let downstream = self.downstream();
        // The record has the fingerprint of the newest secret, even if the claim that was taken over has an older one: it outlives that
        // secret's last record.
        let first = self.fingerprints.first;
        let run = self.admission.into_run(self.registry, first, self.running, self.permits);
        let (policy, execution) = (&run.classifier.policy, run.guard.execution());
        execution.grant(self.key, self.record_key, downstream, attempt);
        let lease = Lease::new(self.store, self.stored_key, &self.request, policy.owned_scope());
        let lease = run.registry.renewer().keep(lease, asked_at);
        execution.open_steps(Steps {
            registry: run.registry.clone(),
            handler: lease.share(),
            request: self.request.with_fingerprint(first),
            ttl: policy.ttl(),
            max_result: policy.max_body(),
            fingerprints: self.fingerprints,
            is_partitioned: self.is_partitioned,
            owners: Owners::default(),
        });
        HandlerRun::Claimed(Claimed { lease, attempt, run })
    }

    fn begun(self, attempt: u32, transaction: Arc<dyn HandlerTransaction>) -> HandlerRun {
        let downstream = self.downstream();
        let run = self.admission.into_run(self.registry, self.fingerprints.first, self.running, self.permits);
        run.guard.execution().grant(self.key, self.record_key, downstream, attempt);
        // There is no claim to outlive a lease; the record lives as long as the policy says.
        let request = ClaimRequest { ttl: run.classifier.policy.ttl(), ..self.request };
        let claim = Some(TransactionClaim { key: self.stored_key, request });
        HandlerRun::InTransaction(Box::new(InTransaction { store: self.store, transaction, claim, run }))
    }

    fn unguarded(self) -> HandlerRun {
        // From here on the request is what any axum request is: it ends when its client leaves.
        self.admission.execution.run.detach_state.set_must_finish(false);
        let downstream = self.downstream();
        self.admission.execution.grant(self.key, self.record_key, downstream, 1);
        let guard = ActiveGuard::of(&self.admission.execution, None);
        self.admission.report(Outcome::Unguarded, Event::Executed);
        HandlerRun::Unguarded { _guard: Some(guard) }
    }
}

/// Renews the lease; false if it is unknown whether the claim still exists.
async fn is_still_ours(store: &StoreHandle, key: &RecordKey, request: ClaimRequest) -> bool {
    let asked_at = Instant::now();
    let held = store.renew(key, request.token, request.lease).await;
    matches!(held, Ok(Held::Yes)) && asked_at.elapsed() < request.lease
}
