//! From a key to a claim, a replay or a refusal.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;
use http::{HeaderName, HeaderValue};
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{Instrument, Span};

use super::settle::Claimed;
use super::transact::{InTransaction, TransactionClaim};
use super::verdict::{Judge, of_second_run};
use super::{CacheIf, Passage};
use crate::at_rest::{Fingerprints, Opened};
use crate::crowding::{Place, Principal};
use crate::fingerprint::{Difference, FingerprintBuilder, PartDigest, Unserialisable};
use crate::headers::REPLAYED;
use crate::idempotency::Execution;
use crate::lease::{Lease, Running, Taken};
use crate::metering;
use crate::policy::{InFlight, OnStoreError};
use crate::presented::{Asked, PresentedBody};
use crate::step::Steps;
use crate::store::{BoundedStore, Claim, ClaimRequest, Held, StoreError, Token};
use crate::sync::tokio::time::Instant;
use crate::telemetry::{self, Outcome};
use crate::trace::TraceParent;
use crate::transaction::{HandlerTransaction, TransactionError};
use crate::witness::Event;
use crate::{Fingerprint, IdempotencyKey, Policy, Record, RecordKey, Refusal, Registry};

/// What a refused client is told to wait: long enough not to hammer, short beside what people notice.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(1);

pub(crate) const UNAVAILABLE: Refusal = Refusal::StoreUnavailable { retry_after: RETRY_AFTER };

/// One request on its way to a claim.
pub(super) struct Asking {
    pub(super) policy: &'static Policy,
    pub(super) registry: Option<Registry>,
    pub(super) span: Span,
    pub(super) cache_if: Option<CacheIf>,
    pub(super) trace: Option<Box<TraceParent>>,
    pub(super) execution: Arc<Execution>,
    pub(super) transaction: Option<Arc<dyn HandlerTransaction>>,
}

/// Whose request it is, and what `fingerprint = expr` says of it.
#[derive(Clone, Copy)]
pub(super) struct Identity<'a> {
    pub(super) caller: Option<&'a str>,
    pub(super) value: Option<Result<PartDigest, Unserialisable>>,
}

impl Identity<'_> {
    /// What the request asks for: target, body or the value in its place, and the credentials where no caller is named.
    pub(super) fn fingerprint(&self, asked: &Asked, registry: &Registry) -> Fingerprint {
        let of_body = match asked.body {
            PresentedBody::Read(digest) => Some(digest),
            PresentedBody::NotRead | PresentedBody::Broken(_) => None,
        };
        let mut fingerprint = FingerprintBuilder::new();
        if let Some(target) = asked.target {
            fingerprint.target(target);
        }
        if let Some(body) = self.value.and_then(Result::ok).or(of_body) {
            fingerprint.body(body);
        }
        if self.caller.is_none() {
            fingerprint.credentials(registry.credential_headers(), &asked.credentials);
        }
        fingerprint.finish()
    }
}

/// What a claim has come to.
#[allow(
    clippy::large_enum_variant,
    reason = "it is moved once, which costs less than a box; how large it is depends on features"
)]
pub(super) enum Entered {
    Now(Result<Passage, Response>),
    Later(BoxFuture<'static, Result<Passage, Response>>),
}

#[cfg(feature = "testing")]
impl Entered {
    /// Tells those who count that the handler was let through, when it is.
    pub(super) fn witnessed(self, witness: Option<(Registry, &'static str)>) -> Self {
        let Some((registry, scope)) = witness else { return self };
        let tell = move |_: &Passage| registry.tell(scope, Event::Executed);
        match self {
            Self::Now(entered) => Self::Now(entered.inspect(tell)),
            Self::Later(entering) => Self::Later(Box::pin(async move { entering.await.inspect(tell) })),
        }
    }
}

/// What a request with a key comes to before its store is asked.
#[expect(clippy::large_enum_variant, reason = "it is moved once, which costs less than a box")]
enum Prepared {
    Claim(Claiming),
    /// Another claim for the same key would wait for that one.
    RunUnderAnothersClaim,
    Answer(Response),
}

impl Asking {
    /// Claims at once where the store answers at once.
    pub(super) fn enter(self, asked: &Asked, key: Result<IdempotencyKey, Refusal>, identity: Identity<'_>) -> Entered {
        let mut claiming = match self.prepare(asked, key, identity) {
            Prepared::Claim(claiming) => claiming,
            Prepared::RunUnderAnothersClaim => return Entered::Now(Ok(Passage::Unguarded)),
            Prepared::Answer(answer) => return Entered::Now(Err(answer)),
        };
        let asked_at = Instant::now();
        let span = claiming.asking.span.clone();
        while let Some(claimed) = claiming.claim_now() {
            return match claiming.judge(claimed, asked_at) {
                Judged::Acquired { attempt } => Entered::Now(Ok(claiming.acquired(attempt, asked_at))),
                Judged::Unguarded => Entered::Now(Ok(claiming.unguarded())),
                Judged::Answer(answer) => Entered::Now(Err(answer)),
                Judged::InFlight(refusal) => match claiming.asking.policy.in_flight {
                    InFlight::Reject => Entered::Now(Err(claiming.asking.refuse(refusal))),
                    InFlight::Wait(limit) => {
                        let waiting = async move { Err(claiming.wait(limit).await) };
                        Entered::Later(Box::pin(waiting.instrument(span)))
                    }
                },
                Judged::Again => continue,
            };
        }
        Entered::Later(Box::pin(claiming.claim().instrument(span)))
    }

    /// All that a claim takes, or what comes of the request without one.
    fn prepare(self, asked: &Asked, key: Result<IdempotencyKey, Refusal>, identity: Identity<'_>) -> Prepared {
        let Identity { caller, value } = identity;
        let key = match key {
            Ok(key) => key,
            Err(refusal) => return Prepared::Answer(self.refuse(refusal)),
        };
        let record_key = RecordKey::new(self.policy.scope, caller, key.as_str());
        if self.execution.is_covered(&record_key) {
            if self.transaction.is_some() {
                telemetry::covered_transaction(self.policy);
                return Prepared::Answer(self.refuse(Refusal::TransactionFailed));
            }
            if !self.execution.is_let_in(&record_key) {
                return Prepared::Answer(self.refuse_second_run());
            }
            self.execution.enter();
            return Prepared::RunUnderAnothersClaim;
        }
        self.execution.take_over();
        let Some((registry, store)) = self.registry_and_store() else {
            telemetry::misconfigured(self.policy, self.registry.is_some());
            return Prepared::Answer(self.refuse(UNAVAILABLE));
        };
        if let Some(Err(error)) = value {
            telemetry::no_fingerprint(self.policy, error);
            return Prepared::Answer(self.refuse(Refusal::FingerprintFailed));
        }
        if let PresentedBody::Broken(broken) = &asked.body {
            let (status, reason) = &**broken;
            return Prepared::Answer((*status, reason.clone()).into_response());
        }
        let place = match registry.caller_limit() {
            None => None,
            Some(limit) => {
                let principal = Principal::of(caller, registry.credential_headers(), &asked.credentials);
                match limit.enter(self.policy.scope, principal) {
                    Some(place) => Some(place),
                    None => {
                        return Prepared::Answer(self.refuse(Refusal::TooManyInFlight { retry_after: RETRY_AFTER }));
                    }
                }
            }
        };
        let fingerprints = registry.at_rest().fingerprints(identity.fingerprint(asked, &registry));
        Prepared::Claim(Claiming {
            stored_key: registry.at_rest().key(&record_key),
            request: ClaimRequest {
                token: Token::unique(),
                fingerprint: fingerprints.first,
                lease: self.policy.lease,
                ttl: ClaimRequest::remembered_for(self.policy.ttl, self.policy.lease),
                after_crash: self.policy.after_crash,
            },
            // Counted from here on, so that a drain waits for a claim that is on its way.
            running: Some(registry.running().token()),
            asking: self,
            registry,
            store,
            key,
            record_key,
            fingerprints,
            is_partitioned: caller.is_some(),
            place,
        })
    }

    /// Begins the transaction of a request without a key.
    pub(super) async fn begin(self) -> Result<Passage, Response> {
        let Some(transaction) = self.transaction.clone() else { return Ok(Passage::Unguarded) };
        self.execution.enter();
        let Some((registry, store)) = self.registry_and_store() else {
            telemetry::misconfigured(self.policy, self.registry.is_some());
            return Err(self.refuse(UNAVAILABLE));
        };
        let running = registry.running().token();
        if let Err(error) = transaction.begin(&store, self.policy.isolation).await {
            return Err(self.refuse_transaction(&store, &error));
        }
        let fingerprint = FingerprintBuilder::new().finish();
        let judge = Judge { policy: self.policy, fingerprint, cache_if: self.cache_if, trace: None };
        let span = self.span;
        Ok(Passage::InTransaction(Box::new(InTransaction {
            registry,
            store,
            transaction,
            claim: None,
            judge,
            span,
            _running: Some(running),
            _holding: self.execution.hold(),
            _place: None,
            _in_flight: metering::InFlight::enter(self.policy.scope),
        })))
    }

    fn registry_and_store(&self) -> Option<(Registry, BoundedStore)> {
        let registry = self.registry.clone()?;
        let store = registry.store_for(self.policy)?.clone();
        Some((registry, store))
    }

    fn refuse_transaction(&self, store: &BoundedStore, error: &TransactionError) -> Response {
        telemetry::transaction_failed(self.policy, store.name(), error);
        self.refuse(error.refusal(UNAVAILABLE))
    }

    /// To something beneath a guard that sends the request on twice under its claim.
    fn refuse_second_run(&self) -> Response {
        telemetry::second_run(self.policy);
        of_second_run(self.refuse(Refusal::InFlight { retry_after: RETRY_AFTER }))
    }

    pub(super) fn refuse(&self, refusal: Refusal) -> Response {
        // No layer around it may record a refusal.
        self.execution.take_over();
        Outcome::Refused(refusal.outcome()).enter(&self.span, self.policy);
        match &self.registry {
            Some(registry) => registry.refuse(self.policy.scope, refusal),
            None => refusal.into_response(),
        }
    }
}

/// A request with all that its claim takes.
pub(super) struct Claiming {
    pub(super) asking: Asking,
    pub(super) registry: Registry,
    pub(super) store: BoundedStore,
    key: IdempotencyKey,
    record_key: RecordKey,
    /// As the store knows it.
    pub(super) stored_key: RecordKey,
    pub(super) request: ClaimRequest,
    fingerprints: Fingerprints,
    /// A caller is named, so that credentials do not count.
    is_partitioned: bool,
    /// Until it waits for another request.
    pub(super) running: Option<TaskTrackerToken>,
    place: Option<Place>,
}

/// What the store's answer means for the request.
enum Judged {
    Acquired { attempt: u32 },
    Unguarded,
    Answer(Response),
    InFlight(Refusal),
    Again,
}

impl Claiming {
    /// The store's answer, if it gives one without waiting.
    fn claim_now(&self) -> Option<Result<Claim, StoreError>> {
        if let Some(record) = self.store.near(&self.stored_key) {
            return Some(Ok(Claim::Completed(record)));
        }
        let store = self.store.immediate().filter(|_| self.asking.transaction.is_none())?;
        // A claim that the store has made must not be forgotten because the client left meanwhile.
        self.asking.execution.fate.set_must_finish(true);
        Some(store.claim(&self.stored_key, self.request))
    }

    /// Claims, or waits for another one's response where the policy says so.
    async fn claim(mut self) -> Result<Passage, Response> {
        loop {
            let asked_at = Instant::now();
            // A claim that the store has made must not be forgotten because the client left meanwhile.
            self.asking.execution.fate.set_must_finish(true);
            let judged = match self.asking.transaction.clone() {
                None => {
                    let claimed = self.store.claim(&self.stored_key, self.request).await;
                    self.judge(claimed, asked_at)
                }
                Some(transaction) => match transaction
                    .claim(&self.store, &self.stored_key, self.request, self.asking.policy.isolation)
                    .await
                {
                    Ok(Claim::Acquired { attempt }) => match self.running_here() {
                        None => return Ok(self.begun(attempt, transaction)),
                        // The store may have forgotten the claim of a handler without a `Tx`.
                        Some(running) => {
                            transaction.roll_back(&self.store).await;
                            self.judge_beside(running)
                        }
                    },
                    Ok(standing) => self.judge(Ok(standing), asked_at),
                    // Nothing outlives a transaction that did not begin, so there is nothing to give back; and without one
                    // the handler cannot run.
                    Err(error) => return Err(self.asking.refuse_transaction(&self.store, &error)),
                },
            };
            return match judged {
                Judged::Acquired { attempt } => self.acquired_late(attempt, asked_at).await,
                Judged::Unguarded => Ok(self.unguarded()),
                Judged::Answer(answer) => Err(answer),
                Judged::InFlight(refusal) => Err(match self.asking.policy.in_flight {
                    InFlight::Reject => self.asking.refuse(refusal),
                    InFlight::Wait(limit) => self.wait(limit).await,
                }),
                Judged::Again => continue,
            };
        }
    }

    fn judge(&mut self, claimed: Result<Claim, StoreError>, asked_at: Instant) -> Judged {
        let claim = match claimed {
            Ok(claim) => claim,
            Err(error) => {
                telemetry::claim_failed(self.asking.policy, self.store.name(), &error);
                if matches!(error, StoreError::Unavailable(_) | StoreError::TimedOut(_)) {
                    // The claim may stand although its answer did not come, and nobody will run it.
                    self.store.give_back(&self.stored_key, &self.request);
                }
                // No policy asks for running beside a record that cannot be read, or beside another one.
                let is_free = !matches!(error, StoreError::Damaged(_));
                let may_run = self.asking.policy.on_store_error == OnStoreError::Run && is_free;
                return match may_run.then(|| self.running_here()) {
                    Some(None) => Judged::Unguarded,
                    Some(Some(Running::AnotherRequest(fingerprint))) => Judged::Answer(self.refuse_other(fingerprint)),
                    Some(Some(Running::SameRequest)) | None => Judged::Answer(self.asking.refuse(UNAVAILABLE)),
                };
            }
        };
        match claim {
            Claim::Acquired { attempt } => match self.hand_over(attempt, asked_at) {
                Some(running) => self.judge_beside(running),
                None => Judged::Acquired { attempt },
            },
            Claim::Completed(record) => Judged::Answer(self.completed(record)),
            Claim::InFlight { fingerprint } | Claim::Lapsed { fingerprint }
                if !self.fingerprints.contain(fingerprint) =>
            {
                // The other claim may be one that is about to be released for the handler that runs here.
                self.judge_beside(self.running_here().unwrap_or(Running::AnotherRequest(fingerprint)))
            }
            // Claimed when the registry had other sealing keys: the store knows the request by that digest alone.
            Claim::Lapsed { fingerprint } if fingerprint != self.request.fingerprint => {
                self.request.fingerprint = fingerprint;
                Judged::Again
            }
            Claim::Lapsed { .. } => match self.running_here() {
                // Its lease has run out, and yet it is known what becomes of it.
                Some(running) => self.judge_beside(running),
                None => Judged::Answer(self.asking.refuse(Refusal::OutcomeUnknown)),
            },
            Claim::InFlight { .. } => Judged::InFlight(Refusal::InFlight { retry_after: RETRY_AFTER }),
        }
    }

    /// The claim that this request has got goes to the handler of an earlier request that runs in this process, if there is
    /// one: the key stays claimed here whatever the store has forgotten.
    fn hand_over(&mut self, attempt: u32, asked_at: Instant) -> Option<Running> {
        let taken = Taken { request: &self.request, attempt, asked_at };
        let is_same_request = |fingerprint| self.fingerprints.contain(fingerprint);
        let running = self.registry.keeper().hand_over(&self.store, &self.stored_key, &taken, is_same_request)?;
        telemetry::claim_handed_back(self.asking.policy, self.store.name());
        // What becomes of this request must not end the claim of the other one.
        self.request.token = Token::unique();
        Some(running)
    }

    /// The key belongs to another request, which has this fingerprint.
    fn refuse_other(&self, fingerprint: Fingerprint) -> Response {
        let difference = self.fingerprints.difference(fingerprint, self.credential_headers());
        telemetry::other_request(self.asking.policy.scope, &difference);
        self.asking.refuse(match difference {
            Difference::Credentials(_) => Refusal::OtherCredentials,
            Difference::Target | Difference::Body => Refusal::KeyReused,
        })
    }

    /// Those that count.
    fn credential_headers(&self) -> &[HeaderName] {
        if self.is_partitioned { &[] } else { self.registry.credential_headers() }
    }

    fn running_here(&self) -> Option<Running> {
        let is_same_request = |fingerprint| self.fingerprints.contain(fingerprint);
        self.registry.keeper().running(&self.store, &self.stored_key, is_same_request)
    }

    fn judge_beside(&self, running: Running) -> Judged {
        match running {
            Running::SameRequest => Judged::InFlight(Refusal::InFlight { retry_after: RETRY_AFTER }),
            Running::AnotherRequest(fingerprint) => Judged::Answer(self.refuse_other(fingerprint)),
        }
    }

    async fn acquired_late(self, attempt: u32, asked_at: Instant) -> Result<Passage, Response> {
        // The lease began before its answer came; what is left of it must last until it is renewed.
        let is_late = asked_at.elapsed() >= self.request.lease / 3;
        if is_late && !is_still_ours(&self.store, &self.stored_key, self.request).await {
            self.store.give_back(&self.stored_key, &self.request);
            return Err(self.asking.refuse(UNAVAILABLE));
        }
        Ok(self.acquired(attempt, asked_at))
    }

    /// The right to run under the claim.
    fn acquired(self, attempt: u32, asked_at: Instant) -> Passage {
        let Asking { policy, cache_if, trace, execution, span, .. } = self.asking;
        let trace = TraceParent::of_handler(&span, trace);
        execution.grant(self.key, self.record_key, self.fingerprints.plain, attempt);
        let lease = Lease::new(self.store, self.stored_key, &self.request, policy.scope);
        let lease = self.registry.keeper().keep(lease, asked_at);
        execution.open_steps(Steps {
            registry: self.registry.clone(),
            handler: lease.share(),
            request: self.request,
            ttl: policy.ttl,
            fingerprints: self.fingerprints,
            is_partitioned: self.is_partitioned,
        });
        let claimed = Claimed {
            lease,
            registry: self.registry,
            attempt,
            judge: Judge { policy, fingerprint: self.request.fingerprint, cache_if, trace },
            span,
            _running: self.running,
            _holding: execution.hold(),
            _place: self.place,
            _in_flight: metering::InFlight::enter(policy.scope),
        };
        Passage::Claimed(claimed)
    }

    fn begun(self, attempt: u32, transaction: Arc<dyn HandlerTransaction>) -> Passage {
        let Asking { policy, cache_if, trace, execution, span, .. } = self.asking;
        let trace = TraceParent::of_handler(&span, trace);
        execution.grant(self.key, self.record_key, self.fingerprints.plain, attempt);
        Passage::InTransaction(Box::new(InTransaction {
            registry: self.registry,
            store: self.store,
            transaction,
            judge: Judge { policy, fingerprint: self.request.fingerprint, cache_if, trace },
            // There is no claim to outlive a lease; the record lives as long as the policy says.
            claim: Some(TransactionClaim {
                key: self.stored_key,
                request: ClaimRequest { ttl: policy.ttl, ..self.request },
            }),
            span,
            _running: self.running,
            _holding: execution.hold(),
            _place: self.place,
            _in_flight: metering::InFlight::enter(policy.scope),
        }))
    }

    fn unguarded(self) -> Passage {
        // From here on the request is what any axum request is: it ends when its client leaves.
        self.asking.execution.fate.set_must_finish(false);
        self.asking.execution.grant(self.key, self.record_key, self.fingerprints.plain, 1);
        Outcome::Unguarded.enter(&self.asking.span, self.asking.policy);
        Passage::Unguarded
    }

    pub(super) fn completed(&self, record: Record) -> Response {
        let (status, fingerprint, recorded_at) = (record.status, record.fingerprint, record.recorded_at);
        // Opened first: of a key that is not listed any more, every fingerprint looks like another request's.
        let opened = match self.registry.at_rest().open(&self.stored_key, record) {
            Ok(opened) => opened,
            Err(error) => {
                telemetry::claim_failed(self.asking.policy, self.store.name(), &error);
                return self.asking.refuse(UNAVAILABLE);
            }
        };
        if !self.fingerprints.contain(fingerprint) {
            return self.refuse_other(fingerprint);
        }
        let Opened::Whole(mut lines, body) = opened else {
            return self.asking.refuse(Refusal::ResponseNotRecorded { status });
        };
        if let Some(trace) = TraceParent::take(&mut lines) {
            trace.enter(&self.asking.span);
        }
        Outcome::Replayed.enter(&self.asking.span, self.asking.policy);
        metering::replayed(recorded_at);
        self.registry.tell(self.asking.policy.scope, Event::Replayed);
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        // With the mark, and the length that axum adds.
        headers.reserve(lines.len() + 2);
        for (name, value) in lines {
            headers.append(name, value);
        }
        headers.insert(&REPLAYED, HeaderValue::from_static("true"));
        response
    }
}

/// Starts the lease anew; false when there is no telling whether the claim still stands.
async fn is_still_ours(store: &BoundedStore, key: &RecordKey, request: ClaimRequest) -> bool {
    let asked_at = Instant::now();
    let held = store.renew(key, request.token, request.lease).await;
    matches!(held, Ok(Held::Yes)) && asked_at.elapsed() < request.lease
}
