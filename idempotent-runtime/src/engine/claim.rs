//! From a key to a claim, a replay or a refusal.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::HeaderValue;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{Instrument, Span};

use super::settle::Claimed;
use super::transact::{InTransaction, TransactionClaim};
use super::verdict::Judge;
use super::{CacheIf, Passage};
use crate::at_rest::{Fingerprints, Opened};
use crate::crowding::{Place, Principal};
use crate::fingerprint::FingerprintBuilder;
use crate::headers::REPLAYED;
use crate::idempotency::Execution;
use crate::lease::{Keeper, Lease};
use crate::metering;
use crate::policy::{AfterCrash, InFlight, OnStoreError};
use crate::presented::{Asked, PresentedContent};
use crate::step::Steps;
use crate::store::{BoundedStore, Claim, ClaimRequest, Held, StoreError, Token};
use crate::sync::tokio;
use crate::sync::tokio::time::Instant;
use crate::telemetry::{self, Outcome};
use crate::trace::TraceParent;
use crate::transaction::{HandlerTransaction, TransactionError};
use crate::witness::Event;
use crate::{Fingerprint, IdempotencyKey, Policy, Record, RecordKey, Refusal, Registry};

/// What a refused client is told to wait: long enough not to hammer, short beside what people notice.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(1);

pub(crate) const UNAVAILABLE: Refusal = Refusal::StoreUnavailable { retry_after: RETRY_AFTER };

/// How long a waiter sleeps between two looks at the store; another process rings no bell in this one.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LOOK_EVERY: Duration = Duration::from_millis(250);

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

/// What a claim has come to.
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
    RunUnderTheLayersClaim,
    Answer(Response),
}

impl Asking {
    /// Claims at once where the store answers at once.
    pub(super) fn enter(
        self,
        asked: &Asked,
        key: Result<IdempotencyKey, Refusal>,
        caller: Option<&str>,
        fingerprint: Option<Fingerprint>,
    ) -> Entered {
        let mut claiming = match self.prepare(asked, key, caller, fingerprint) {
            Prepared::Claim(claiming) => claiming,
            Prepared::RunUnderTheLayersClaim => return Entered::Now(Ok(Passage::Unguarded)),
            Prepared::Answer(answer) => return Entered::Now(Err(answer)),
        };
        let asked_at = Instant::now();
        let mut another_runs = false;
        while let Some(claimed) = claiming.claim_now() {
            return match claiming.judge(claimed, false) {
                Judged::Acquired { attempt } => match claiming.acquired(attempt, asked_at) {
                    (passage, true) => Entered::Later(Box::pin(async {
                        Keeper::let_it_run().await;
                        Ok(passage)
                    })),
                    (passage, false) => Entered::Now(Ok(passage)),
                },
                Judged::Unguarded => Entered::Now(Ok(claiming.unguarded())),
                Judged::Answer(answer) => Entered::Now(Err(answer)),
                Judged::InFlight(refusal) if claiming.asking.policy.in_flight == InFlight::Reject => {
                    Entered::Now(Err(claiming.asking.refuse(refusal)))
                }
                Judged::InFlight(_) => {
                    another_runs = true;
                    break;
                }
                Judged::Again => continue,
            };
        }
        let span = claiming.asking.span.clone();
        Entered::Later(Box::pin(claiming.claim(another_runs).instrument(span)))
    }

    /// All that a claim takes, or what comes of the request without one.
    fn prepare(
        self,
        asked: &Asked,
        key: Result<IdempotencyKey, Refusal>,
        caller: Option<&str>,
        fingerprint: Option<Fingerprint>,
    ) -> Prepared {
        let key = match key {
            Ok(key) => key,
            Err(refusal) => return Prepared::Answer(self.refuse(refusal)),
        };
        let record_key = RecordKey::new(self.policy.scope, caller, key.as_str());
        if self.execution.is_covered_by(&record_key) {
            if self.transaction.is_some() {
                telemetry::covered_transaction(self.policy);
                return Prepared::Answer(self.refuse(Refusal::TransactionFailed));
            }
            self.execution.enter();
            return Prepared::RunUnderTheLayersClaim;
        }
        self.execution.take_over();
        let Some((registry, store)) = self.registry_and_store() else {
            telemetry::misconfigured(self.policy, self.registry.is_some());
            return Prepared::Answer(self.refuse(UNAVAILABLE));
        };
        if let PresentedContent::Broken(broken) = &asked.content {
            let (status, reason) = &**broken;
            return Prepared::Answer((*status, reason.clone()).into_response());
        }
        let place = match registry.caller_limit() {
            None => None,
            Some(limit) => match limit.enter(self.policy.scope, Principal::of(caller, &asked.credentials)) {
                Some(place) => Some(place),
                None => return Prepared::Answer(self.refuse(Refusal::TooManyInFlight { retry_after: RETRY_AFTER })),
            },
        };
        let fingerprints = registry.at_rest().fingerprints(fingerprint_of(self.policy, asked, fingerprint));
        Prepared::Claim(Claiming {
            stored_key: registry.at_rest().key(&record_key),
            request: ClaimRequest {
                token: Token::unique(),
                fingerprint: fingerprints.first,
                lease: self.policy.lease,
                ttl: self.policy.ttl,
                after_crash: self.policy.after_crash,
            },
            // Counted from here on, so that a drain waits for a claim that is on its way.
            running: registry.running().token(),
            asking: self,
            registry,
            store,
            key,
            record_key,
            fingerprints,
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
            _running: running,
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

    fn refuse(&self, refusal: Refusal) -> Response {
        // No layer around it may record a refusal.
        self.execution.take_over();
        Outcome::Refused(refusal.code()).enter(&self.span, self.policy);
        match &self.registry {
            Some(registry) => registry.refuse(self.policy.scope, refusal),
            None => refusal.into_response(),
        }
    }
}

/// A request with all that its claim takes.
struct Claiming {
    asking: Asking,
    registry: Registry,
    store: BoundedStore,
    key: IdempotencyKey,
    record_key: RecordKey,
    /// As the store knows it.
    stored_key: RecordKey,
    request: ClaimRequest,
    fingerprints: Fingerprints,
    running: TaskTrackerToken,
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

    /// Claims, however long that takes: until another one's response is there to replay, where the policy waits for it.
    ///
    /// `another_runs` beside it, as far as is known.
    async fn claim(mut self, mut another_runs: bool) -> Result<Passage, Response> {
        let gives_up_at = match self.asking.policy.in_flight {
            InFlight::Reject => None,
            InFlight::Wait(limit) => Some(Instant::now() + limit),
        };
        let mut next_look = FIRST_LOOK;
        loop {
            // Armed before the look, or an end between the look and the wait would go unheard.
            let (registry, store, key) = (self.registry.clone(), self.store.clone(), self.stored_key.clone());
            let mut heard = pin!(gives_up_at.is_some().then(|| listen(&registry, &store, &key).fuse()));
            if let Some(heard) = heard.as_mut().as_pin_mut() {
                let _ = heard.now_or_never();
            }
            let asked_at = Instant::now();
            self.asking.execution.fate.set_must_finish(true);
            let claimed = match self.asking.transaction.clone() {
                None => self.store.claim(&self.stored_key, self.request).await,
                Some(transaction) => match transaction
                    .claim(&self.store, &self.stored_key, self.request, self.asking.policy.isolation)
                    .await
                {
                    Ok(Claim::Acquired { attempt }) => return Ok(self.begun(attempt, transaction)),
                    Ok(standing) => Ok(standing),
                    // Nothing outlives a transaction that did not begin, so there is nothing to give back; and without one
                    // the handler cannot run.
                    Err(error) => return Err(self.asking.refuse_transaction(&self.store, &error)),
                },
            };
            let in_flight = match self.judge(claimed, another_runs) {
                Judged::Acquired { attempt } => return self.acquired_late(attempt, asked_at).await,
                Judged::Unguarded => return Ok(self.unguarded()),
                Judged::Answer(answer) => return Err(answer),
                Judged::Again => continue,
                Judged::InFlight(refusal) => refusal,
            };
            another_runs = true;
            let now = Instant::now();
            let fate = &self.asking.execution.fate;
            // Its client left during the look: it must not run later, when nobody asks for it any more.
            let Some(gives_up_at) = gives_up_at.filter(|&at| now < at && !fate.is_abandoned()) else {
                return Err(self.asking.refuse(in_flight));
            };
            fate.set_must_finish(false);
            if let Some(heard) = heard.as_mut().as_pin_mut() {
                tokio::select! {
                    () = heard => {}
                    () = tokio::time::sleep_until(gives_up_at.min(now + next_look)) => {}
                }
            }
            next_look = LOOK_EVERY.min(next_look * 2);
        }
    }

    fn judge(&mut self, claimed: Result<Claim, StoreError>, another_runs: bool) -> Judged {
        let claim = match claimed {
            Ok(claim) => claim,
            Err(error) => {
                telemetry::claim_failed(self.asking.policy, self.store.name(), &error);
                if matches!(error, StoreError::Unavailable(_) | StoreError::TimedOut(_)) {
                    // The claim may stand although its answer did not come, and nobody will run it.
                    tokio::spawn(give_back(self.store.clone(), self.stored_key.clone(), self.request));
                }
                // No policy asks for running beside another one, or beside a record that cannot be read.
                let is_free = !another_runs && !matches!(error, StoreError::Damaged(_));
                return match self.asking.policy.on_store_error {
                    OnStoreError::Run if is_free && !self.runs_here() => Judged::Unguarded,
                    _ => Judged::Answer(self.asking.refuse(UNAVAILABLE)),
                };
            }
        };
        match claim {
            Claim::Acquired { attempt } if attempt > 1 && self.hand_over() => {
                Judged::InFlight(Refusal::InFlight { retry_after: RETRY_AFTER })
            }
            Claim::Acquired { attempt } => Judged::Acquired { attempt },
            Claim::Completed(record) => Judged::Answer(self.completed(record)),
            Claim::InFlight { fingerprint } | Claim::Lapsed { fingerprint }
                if !self.fingerprints.contain(fingerprint) =>
            {
                Judged::Answer(self.asking.refuse(Refusal::KeyReused))
            }
            // Claimed when the registry had other sealing keys: the store knows the request by that digest alone.
            Claim::Lapsed { fingerprint } if fingerprint != self.request.fingerprint => {
                self.request.fingerprint = fingerprint;
                Judged::Again
            }
            // Its lease has run out, and yet it is known what becomes of it.
            Claim::Lapsed { .. } if self.runs_here() => {
                Judged::InFlight(Refusal::InFlight { retry_after: RETRY_AFTER })
            }
            Claim::Lapsed { .. } => Judged::Answer(self.asking.refuse(Refusal::OutcomeUnknown)),
            Claim::InFlight { .. } => Judged::InFlight(Refusal::InFlight { retry_after: RETRY_AFTER }),
        }
    }

    /// Whether the handler from which this request has taken the claim over runs in this process: it gets the claim back.
    fn hand_over(&mut self) -> bool {
        let is_back = self.registry.keeper().hand_over(&self.store, &self.stored_key, &self.request);
        if is_back {
            telemetry::claim_handed_back(self.asking.policy, self.store.name());
            // What becomes of this request must not end the claim of the other one.
            self.request.token = Token::unique();
        }
        is_back
    }

    fn runs_here(&self) -> bool {
        self.registry.keeper().runs(&self.store, &self.stored_key, &self.request)
    }

    async fn acquired_late(self, attempt: u32, asked_at: Instant) -> Result<Passage, Response> {
        // The lease began before its answer came; what is left of it must last until it is renewed.
        let is_late = asked_at.elapsed() >= self.request.lease / 3;
        if is_late && !is_still_ours(&self.store, &self.stored_key, self.request).await {
            tokio::spawn(give_back(self.store, self.stored_key, self.request));
            return Err(self.asking.refuse(UNAVAILABLE));
        }
        let (passage, has_woken_keeper) = self.acquired(attempt, asked_at);
        if has_woken_keeper {
            Keeper::let_it_run().await;
        }
        Ok(passage)
    }

    /// The right to run under the claim, and whether the keeper of leases was woken for it.
    fn acquired(self, attempt: u32, asked_at: Instant) -> (Passage, bool) {
        let Asking { policy, cache_if, trace, execution, span, .. } = self.asking;
        let trace = TraceParent::of_handler(&span, trace);
        execution.grant(self.key, self.record_key, attempt);
        let lease = Lease::new(self.store, self.stored_key, &self.request, policy.scope);
        let (lease, has_woken_keeper) = self.registry.keeper().keep(lease, asked_at);
        if execution.may_take_steps() {
            let (registry, handler) = (self.registry.clone(), lease.share());
            execution.open_steps(Steps { registry, handler, request: self.request, fingerprints: self.fingerprints });
        }
        let claimed = Claimed {
            lease,
            registry: self.registry,
            attempt,
            judge: Judge { policy, fingerprint: self.request.fingerprint, cache_if, trace },
            span,
            _running: self.running,
            _place: self.place,
            _in_flight: metering::InFlight::enter(policy.scope),
        };
        (Passage::Claimed(claimed), has_woken_keeper)
    }

    fn begun(self, attempt: u32, transaction: Arc<dyn HandlerTransaction>) -> Passage {
        let Asking { policy, cache_if, trace, execution, span, .. } = self.asking;
        let trace = TraceParent::of_handler(&span, trace);
        execution.grant(self.key, self.record_key, attempt);
        Passage::InTransaction(Box::new(InTransaction {
            registry: self.registry,
            store: self.store,
            transaction,
            judge: Judge { policy, fingerprint: self.request.fingerprint, cache_if, trace },
            claim: Some(TransactionClaim { key: self.stored_key, request: self.request }),
            span,
            _running: self.running,
            _place: self.place,
            _in_flight: metering::InFlight::enter(policy.scope),
        }))
    }

    fn unguarded(self) -> Passage {
        // From here on the request is what any axum request is: it ends when its client leaves.
        self.asking.execution.fate.set_must_finish(false);
        self.asking.execution.grant(self.key, self.record_key, 1);
        Outcome::Unguarded.enter(&self.asking.span, self.asking.policy);
        Passage::Unguarded
    }

    fn completed(&self, record: Record) -> Response {
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
            return self.asking.refuse(Refusal::KeyReused);
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

/// The digest of the request or of the policy's own expression, and of the credentials where no `caller` tells them apart.
fn fingerprint_of(policy: &Policy, asked: &Asked, of_expression: Option<Fingerprint>) -> Fingerprint {
    let of_request = match asked.content {
        PresentedContent::Read(fingerprint) => Some(fingerprint),
        PresentedContent::NotRead | PresentedContent::Broken(_) => None,
    };
    let asked_for = of_expression.or(of_request);
    let credentials = if policy.partitioned { &[][..] } else { &asked.credentials };
    match asked_for {
        Some(fingerprint) if credentials.is_empty() => fingerprint,
        asked_for => {
            let mut digest = FingerprintBuilder::new();
            if let Some(fingerprint) = asked_for {
                digest.digest(fingerprint);
            }
            digest.credentials(credentials);
            digest.finish()
        }
    }
}

/// Resolves when what stands under `key` may have changed since the first poll.
async fn listen(registry: &Registry, store: &BoundedStore, key: &RecordKey) {
    tokio::select! {
        () = registry.settled().ended(key) => {}
        () = store.changed(key) => {}
    }
}

/// Starts the lease anew; false when there is no telling whether the claim still stands.
async fn is_still_ours(store: &BoundedStore, key: &RecordKey, request: ClaimRequest) -> bool {
    let asked_at = Instant::now();
    let held = store.renew(key, request.token, request.lease).await;
    matches!(held, Ok(Held::Yes)) && asked_at.elapsed() < request.lease
}

/// Ends a claim under which nothing runs.
///
/// Where it may have taken over from an execution that crashed, it lapses: released, it would take the number of attempts
/// along, and the next one would be told that it is the first. Under `AfterCrash::Refuse` nothing is taken over, and a claim
/// that stays would refuse its key for the whole time to live.
///
/// The claim may arrive in the store after its own end, so that one which finds nothing is repeated for a while.
pub(crate) async fn give_back(store: BoundedStore, key: RecordKey, request: ClaimRequest) {
    let begun = Instant::now();
    let longest = match request.after_crash {
        AfterCrash::Rerun => request.lease,
        AfterCrash::Refuse => request.ttl,
    };
    let mut pause = Duration::from_millis(100);
    loop {
        let ended = match request.after_crash {
            AfterCrash::Rerun => store.renew(&key, request.token, Duration::ZERO).await,
            AfterCrash::Refuse => store.release(&key, request.token).await,
        };
        match ended {
            Ok(Held::Yes) => return,
            Ok(Held::No) if begun.elapsed() >= request.lease => return,
            _ if begun.elapsed() >= longest => return,
            _ => tokio::time::sleep(pause).await,
        }
        pause = Duration::from_secs(5).min(pause * 2);
    }
}
