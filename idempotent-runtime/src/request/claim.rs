//! From a key to a claim, a replay or a rejection.

use std::sync::Arc;

use axum::response::Response;
use tracing::Instrument;

use crate::key::{IdempotencyKey, RecordKey};
use crate::lease::state::{Lease, Running, Taken};
use crate::observe;
use crate::observe::event::Event;
use crate::observe::telemetry;
use crate::observe::telemetry::Outcome;
use crate::observe::traceparent::TraceParent;
use crate::policy::values::{InFlight, OnStoreError};
use crate::rejection::problem::Rejection;
use crate::rejection::problem::{RETRY_AFTER, UNAVAILABLE};
use crate::request::admission::{Admission, Claiming, Identity, Prepared};
use crate::request::holding::Holding;
use crate::request::input::ClaimInput;
use crate::request::passage::Entered;
use crate::request::passage::Passage;
use crate::request::response::ResponseClassifier;
use crate::request::settle::Claimed;
use crate::request::settle_transaction::{InTransaction, TransactionClaim};
use crate::step::names::Owners;
use crate::step::steps::Steps;
use crate::store::claim::{Claim, ClaimRequest, Held, Token};
use crate::store::error::StoreError;
use crate::store::handle::StoreHandle;
use crate::sync::tokio::time::Instant;
use crate::transaction::contract::HandlerTransaction;

/// What the store's answer means for the request.
enum Decision {
    Acquired { attempt: u32 },
    Unguarded,
    Answer(Response),
    InFlight(Rejection),
    Again,
}

impl Admission {
    /// Claims at once where the store answers at once.
    pub(super) fn enter(
        self,
        claim_input: &ClaimInput,
        key: Result<IdempotencyKey, Rejection>,
        identity: Identity<'_>,
    ) -> Entered {
        let mut claiming = match self.prepare(claim_input, key, identity) {
            Prepared::Claim(claiming) => claiming,
            Prepared::RunUnderAnothersClaim(run) => return Entered::Now(Ok(Passage::Covered(run))),
            Prepared::Answer(answer) => return Entered::Now(Err(answer)),
        };
        let asked_at = Instant::now();
        let span = claiming.admission.span.clone();
        while let Some(decision) = claiming.claim_and_decide_now(asked_at) {
            return match decision {
                Decision::Acquired { attempt } => Entered::Now(Ok(claiming.acquired(attempt, asked_at))),
                Decision::Unguarded => Entered::Now(Ok(claiming.unguarded())),
                Decision::Answer(answer) => Entered::Now(Err(answer)),
                Decision::InFlight(rejection) => match claiming.admission.policy.in_flight() {
                    InFlight::Reject => Entered::Now(Err(claiming.admission.reject(rejection))),
                    InFlight::Wait(limit) => {
                        let waiting = async move { Err(claiming.wait(limit).await) };
                        Entered::Later(Box::pin(waiting.instrument(span)))
                    }
                },
                Decision::Again => continue,
            };
        }
        Entered::Later(Box::pin(claiming.claim().instrument(span)))
    }
}

impl Claiming {
    fn claim_and_decide_now(&mut self, asked_at: Instant) -> Option<Decision> {
        let _pending = self.registry.renewer().asks(&self.stored_key);
        let claimed = self.claim_now()?;
        Some(self.decide(claimed, asked_at))
    }

    /// The store's answer, if it gives one without waiting.
    fn claim_now(&self) -> Option<Result<Claim, StoreError>> {
        if self.admission.transaction.is_some() {
            return None;
        }
        // A claim that the store has made must not be forgotten because the client left meanwhile.
        self.admission.execution.detach_state.set_must_finish(true);
        self.store.claim_now(&self.stored_key, self.request)
    }

    /// Claims the key, or waits for the response of another request if the policy says so.
    async fn claim(mut self) -> Result<Passage, Response> {
        loop {
            let asked_at = Instant::now();
            // A claim that the store has made must not be forgotten because the client left meanwhile.
            self.admission.execution.detach_state.set_must_finish(true);
            let pending = self.registry.renewer().asks(&self.stored_key);
            let decision = match self.admission.transaction.clone() {
                None => {
                    let claimed = self.store.claim(&self.stored_key, self.request).await;
                    self.decide(claimed, asked_at)
                }
                Some(transaction) => match transaction
                    .claim(&self.store, &self.stored_key, self.request, self.admission.policy.isolation())
                    .await
                {
                    Ok(Claim::Acquired { attempt }) => match self.running_here() {
                        None => return Ok(self.begun(attempt, transaction)),
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
            return match decision {
                Decision::Acquired { attempt } => self.acquired_late(attempt, asked_at).await,
                Decision::Unguarded => Ok(self.unguarded()),
                Decision::Answer(answer) => Err(answer),
                Decision::InFlight(rejection) => Err(match self.admission.policy.in_flight() {
                    InFlight::Reject => self.admission.reject(rejection),
                    InFlight::Wait(limit) => self.wait(limit).await,
                }),
                Decision::Again => continue,
            };
        }
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
                // No policy allows a run beside a record that cannot be read, or beside another run.
                let is_free = !matches!(error, StoreError::Damaged(_));
                let may_run = self.admission.policy.on_store_error() == OnStoreError::Run && is_free;
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
                None => Decision::Acquired { attempt },
            },
            Claim::Completed(record) => Decision::Answer(self.completed(record)),
            Claim::InFlight { fingerprint } | Claim::Lapsed { fingerprint }
                if !self.fingerprints.contain(fingerprint) =>
            {
                // The other claim may be one that is about to be released for the handler that runs here.
                self.decide_beside(self.running_here().unwrap_or(Running::AnotherRequest(fingerprint)))
            }
            // Claimed when the registry had other sealing keys: the store knows the request by that digest alone.
            Claim::Lapsed { fingerprint } if fingerprint != self.request.fingerprint => {
                self.request.fingerprint = fingerprint;
                Decision::Again
            }
            Claim::Lapsed { .. } => match self.running_here() {
                // Its lease has expired, but its handler runs in this process.
                Some(running) => self.decide_beside(running),
                None => Decision::Answer(self.admission.reject(Rejection::OutcomeUnknown)),
            },
            Claim::InFlight { .. } => Decision::InFlight(Rejection::InFlight { retry_after: RETRY_AFTER }),
        }
    }

    /// If the handler of an earlier request with this key runs in this process, it gets the claim of this request: the store
    /// may have forgotten its own.
    fn hand_over(&mut self, attempt: u32, asked_at: Instant) -> Option<Running> {
        let taken = Taken { request: &self.request, attempt, asked_at };
        let is_same_request = |fingerprint| self.fingerprints.contain(fingerprint);
        let running = self.registry.renewer().hand_over(&self.store, &self.stored_key, &taken, is_same_request)?;
        telemetry::claim_handed_back(&self.admission.policy, self.store.name());
        // The end of this request must not end the claim of the other one.
        self.request.token = Token::unique();
        Some(running)
    }

    fn running_here(&self) -> Option<Running> {
        let is_same_request = |fingerprint| self.fingerprints.contain(fingerprint);
        self.registry.renewer().running(&self.store, &self.stored_key, is_same_request)
    }

    fn decide_beside(&self, running: Running) -> Decision {
        match running {
            Running::SameRequest => Decision::InFlight(Rejection::InFlight { retry_after: RETRY_AFTER }),
            Running::AnotherRequest(fingerprint) => Decision::Answer(self.reject_other(fingerprint)),
        }
    }

    async fn acquired_late(self, attempt: u32, asked_at: Instant) -> Result<Passage, Response> {
        // The lease began before its answer came; what is left of it must last until it is renewed.
        let is_late = asked_at.elapsed() >= self.request.lease / 3;
        if is_late && !is_still_ours(&self.store, &self.stored_key, self.request).await {
            self.store.give_back(&self.stored_key, &self.request);
            return Err(self.admission.reject(UNAVAILABLE));
        }
        Ok(self.acquired(attempt, asked_at))
    }

    /// The right to run under the claim.
    fn acquired(self, attempt: u32, asked_at: Instant) -> Passage {
        let Admission { policy, cache_if, trace, execution, span, .. } = self.admission;
        let trace = TraceParent::of_handler(&span, trace);
        let in_flight = observe::InFlight::enter(policy.scope());
        self.registry.observe(policy.scope(), Event::Executed);
        execution.grant(self.key, self.record_key, self.fingerprints.plain, attempt);
        let lease = Lease::new(self.store, self.stored_key, &self.request, policy.owned_scope());
        let lease = self.registry.renewer().keep(lease, asked_at);
        execution.open_steps(Steps {
            registry: self.registry.clone(),
            handler: lease.share(),
            request: self.request,
            ttl: policy.ttl(),
            fingerprints: self.fingerprints,
            is_partitioned: self.is_partitioned,
            owners: Owners::default(),
        });
        let claimed = Claimed {
            lease,
            registry: self.registry,
            attempt,
            classifier: ResponseClassifier { policy, fingerprint: self.request.fingerprint, cache_if, trace },
            span,
            holding: Holding::of(&execution, self.running),
            _permit: self.permit,
            _in_flight: in_flight,
        };
        Passage::Claimed(claimed)
    }

    fn begun(self, attempt: u32, transaction: Arc<dyn HandlerTransaction>) -> Passage {
        let Admission { policy, cache_if, trace, execution, span, .. } = self.admission;
        let trace = TraceParent::of_handler(&span, trace);
        let in_flight = observe::InFlight::enter(policy.scope());
        self.registry.observe(policy.scope(), Event::Executed);
        execution.grant(self.key, self.record_key, self.fingerprints.plain, attempt);
        Passage::InTransaction(Box::new(InTransaction {
            registry: self.registry,
            store: self.store,
            transaction,
            // There is no claim to outlive a lease; the record lives as long as the policy says.
            claim: Some(TransactionClaim {
                key: self.stored_key,
                request: ClaimRequest { ttl: policy.ttl(), ..self.request },
            }),
            classifier: ResponseClassifier { policy, fingerprint: self.request.fingerprint, cache_if, trace },
            span,
            holding: Holding::of(&execution, self.running),
            _permit: self.permit,
            _in_flight: in_flight,
        }))
    }

    fn unguarded(self) -> Passage {
        // From here on the request is what any axum request is: it ends when its client leaves.
        self.admission.execution.detach_state.set_must_finish(false);
        self.admission.execution.grant(self.key, self.record_key, self.fingerprints.plain, 1);
        let holding = Holding::of(&self.admission.execution, None);
        self.admission.report(Outcome::Unguarded, Event::Executed);
        Passage::Unguarded { _holding: Some(holding) }
    }
}

/// Renews the lease; false if it is unknown whether the claim still exists.
async fn is_still_ours(store: &StoreHandle, key: &RecordKey, request: ClaimRequest) -> bool {
    let asked_at = Instant::now();
    let held = store.renew(key, request.token, request.lease).await;
    matches!(held, Ok(Held::Yes)) && asked_at.elapsed() < request.lease
}
