//! From a key to a claim, a replay or a refusal.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::HeaderValue;
use tracing::Span;

use super::settle::Claimed;
use super::transact::{InTransaction, TransactionClaim};
use super::verdict::Judge;
use super::{CacheIf, Passage, Way};
use crate::at_rest::{Fingerprints, Opened};
use crate::completion::Fate;
use crate::crowding::Principal;
use crate::fingerprint::FingerprintBuilder;
use crate::guarded::{Presented, PresentedBody};
use crate::headers::REPLAYED;
use crate::lease::Lease;
use crate::policy::{AfterCrash, FingerprintSource, InFlight, OnStoreError};
use crate::store::{BoundedStore, Claim, ClaimRequest, Held, StoreError, Token};
use crate::sync::tokio;
use crate::sync::tokio::time::Instant;
use crate::telemetry::{self, Outcome};
use crate::transaction::{HandlerTransaction, TransactionError};
use crate::{Fingerprint, IdempotencyKey, Policy, Record, RecordKey, Refusal, Registry};

/// What a refused client is told to wait: long enough not to hammer, short beside what people notice.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(1);

pub(super) const UNAVAILABLE: Refusal = Refusal::StoreUnavailable { retry_after: RETRY_AFTER };

/// How long a waiter sleeps between two looks at the store; another process rings no bell in this one.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// One request on its way to a claim.
pub(super) struct Asking {
    pub(super) policy: &'static Policy,
    pub(super) registry: Option<Registry>,
    pub(super) span: Span,
    pub(super) cache_if: Option<CacheIf>,
    pub(super) fate: Arc<Fate>,
    pub(super) transaction: Option<Arc<dyn HandlerTransaction>>,
}

impl Asking {
    pub(super) async fn enter(
        self,
        presented: Presented,
        key: Result<IdempotencyKey, Refusal>,
        caller: Option<&str>,
        fingerprint: FingerprintBuilder,
    ) -> Result<Passage, Response> {
        let key = match key {
            Ok(key) => key,
            Err(refusal) => return Err(self.refuse(refusal)),
        };
        let Some((registry, store)) = self.registry_and_store() else {
            telemetry::misconfigured(self.policy, self.registry.is_some());
            return Err(self.refuse(UNAVAILABLE));
        };
        if let PresentedBody::Broken(status, reason) = presented.body {
            return Err((status, reason).into_response());
        }
        let place = match registry.caller_limit() {
            None => None,
            Some(limit) => match limit.enter(self.policy.scope, Principal::of(caller, &presented.headers)) {
                Some(place) => Some(place),
                None => return Err(self.refuse(Refusal::TooManyInFlight { retry_after: RETRY_AFTER })),
            },
        };
        let record_key = RecordKey::new(self.policy.scope, caller, key.as_str());
        let stored_key = registry.at_rest().key(&record_key);
        let fingerprints = registry.at_rest().fingerprints(fingerprint_of(self.policy, &presented, fingerprint));
        let mut request = ClaimRequest {
            token: Token::unique(),
            fingerprint: fingerprints.first,
            lease: self.policy.lease,
            ttl: self.policy.ttl,
            after_crash: self.policy.after_crash,
        };
        // Counted from here on, so that a drain waits for a claim that is on its way.
        let running = registry.running().token();
        match self.ask(&registry, &store, &stored_key, &mut request, &fingerprints).await? {
            Asked::Acquired { attempt, asked_at } => {
                // The lease began before its answer came; what is left of it must last until it is renewed.
                let is_late = asked_at.elapsed() >= request.lease / 3;
                if is_late && !is_still_ours(&store, &stored_key, request).await {
                    tokio::spawn(give_back(store, stored_key, request));
                    return Err(self.refuse(UNAVAILABLE));
                }
                presented.execution.grant(key, record_key, attempt);
                let judge = Judge { policy: self.policy, fingerprint: request.fingerprint, cache_if: self.cache_if };
                let lease = Lease::new(store, stored_key, request.token, self.policy.scope, request.lease);
                Ok(Passage(Way::Claimed(Box::new(Claimed {
                    lease: registry.keeper().keep(lease).await,
                    registry,
                    attempt,
                    judge,
                    span: self.span,
                    _running: running,
                    _place: place,
                }))))
            }
            Asked::Begun { attempt, transaction } => {
                presented.execution.grant(key, record_key, attempt);
                let judge = Judge { policy: self.policy, fingerprint: request.fingerprint, cache_if: self.cache_if };
                Ok(Passage(Way::InTransaction(Box::new(InTransaction {
                    registry,
                    store,
                    transaction,
                    claim: Some(TransactionClaim { key: stored_key, request }),
                    judge,
                    span: self.span,
                    _running: running,
                    _place: place,
                }))))
            }
            Asked::Unguarded => {
                // From here on the request is what any axum request is: it ends when its client leaves.
                self.fate.set_must_finish(false);
                presented.execution.grant(key, record_key, 1);
                Outcome::Unguarded.enter(&self.span);
                Ok(Passage(Way::Unguarded))
            }
        }
    }

    /// Begins the transaction of a request without a key.
    pub(super) async fn begin(self, transaction: Arc<dyn HandlerTransaction>) -> Result<Passage, Response> {
        let Some((registry, store)) = self.registry_and_store() else {
            telemetry::misconfigured(self.policy, self.registry.is_some());
            return Err(self.refuse(UNAVAILABLE));
        };
        let running = registry.running().token();
        if let Err(error) = transaction.begin(&store).await {
            return Err(self.refuse_transaction(&store, &error));
        }
        let judge =
            Judge { policy: self.policy, fingerprint: FingerprintBuilder::new().finish(), cache_if: self.cache_if };
        let span = self.span;
        Ok(Passage(Way::InTransaction(Box::new(InTransaction {
            registry,
            store,
            transaction,
            claim: None,
            judge,
            span,
            _running: running,
            _place: None,
        }))))
    }

    async fn ask(
        &self,
        registry: &Registry,
        store: &BoundedStore,
        key: &RecordKey,
        request: &mut ClaimRequest,
        fingerprints: &Fingerprints,
    ) -> Result<Asked, Response> {
        let gives_up_at = match self.policy.in_flight {
            InFlight::Reject => None,
            InFlight::Wait(limit) => Some(Instant::now() + limit),
        };
        let mut next_look = FIRST_LOOK;
        let mut another_runs = false;
        loop {
            // Armed before the look, or an end between the look and the wait would go unheard.
            let mut bell = pin!(registry.settled().bell(key).notified());
            let mut changed = pin!(store.changed(key).fuse());
            if gives_up_at.is_some() {
                bell.as_mut().enable();
                let _ = changed.as_mut().now_or_never();
            }
            let asked_at = Instant::now();
            // A claim that the store has made must not be forgotten because the client left meanwhile.
            self.fate.set_must_finish(true);
            let claimed = match &self.transaction {
                None => store.claim(key, *request).await,
                Some(transaction) => match transaction.claim(store, key, *request).await {
                    Ok(Claim::Acquired { attempt }) => {
                        return Ok(Asked::Begun { attempt, transaction: Arc::clone(transaction) });
                    }
                    Ok(standing) => Ok(standing),
                    // Nothing outlives a transaction that did not begin, so there is nothing to give back; and without one
                    // the handler cannot run.
                    Err(error) => return Err(self.refuse_transaction(store, &error)),
                },
            };
            let claim = match claimed {
                Ok(claim) => claim,
                Err(error) => {
                    telemetry::claim_failed(self.policy, store.name(), &error);
                    if matches!(error, StoreError::Unavailable(_) | StoreError::TimedOut(_)) {
                        // The claim may stand although its answer did not come, and nobody will run it.
                        tokio::spawn(give_back(store.clone(), key.clone(), *request));
                    }
                    // No policy asks for running beside another one, or beside a record that cannot be read.
                    let is_free = !another_runs && !matches!(error, StoreError::Damaged(_));
                    return match self.policy.on_store_error {
                        OnStoreError::Run if is_free => Ok(Asked::Unguarded),
                        _ => Err(self.refuse(UNAVAILABLE)),
                    };
                }
            };
            let in_flight = match claim {
                Claim::Acquired { attempt } => return Ok(Asked::Acquired { attempt, asked_at }),
                Claim::Completed(record) => return Err(self.completed(registry, store, key, record, fingerprints)),
                Claim::InFlight { fingerprint } | Claim::Lapsed { fingerprint }
                    if !fingerprints.contain(fingerprint) =>
                {
                    return Err(self.refuse(Refusal::KeyReused));
                }
                // Claimed when the registry had other sealing keys: the store knows the request by that digest alone.
                Claim::Lapsed { fingerprint } if fingerprint != request.fingerprint => {
                    request.fingerprint = fingerprint;
                    continue;
                }
                Claim::Lapsed { .. } => return Err(self.refuse(Refusal::OutcomeUnknown)),
                Claim::InFlight { .. } => Refusal::InFlight { retry_after: RETRY_AFTER },
            };
            another_runs = true;
            let now = Instant::now();
            let Some(gives_up_at) = gives_up_at.filter(|&at| now < at) else { return Err(self.refuse(in_flight)) };
            // Its client left during the look: it must not run later, when nobody asks for it any more.
            if self.fate.is_abandoned() {
                return Err(self.refuse(in_flight));
            }
            self.fate.set_must_finish(false);
            tokio::select! {
                () = bell => {}
                () = changed => {}
                () = tokio::time::sleep_until(gives_up_at.min(now + next_look)) => {}
            }
            next_look = LOOK_EVERY.min(next_look * 2);
        }
    }

    fn registry_and_store(&self) -> Option<(Registry, BoundedStore)> {
        let registry = self.registry.clone()?;
        let store = registry.store_for(self.policy)?.clone();
        Some((registry, store))
    }

    fn completed(
        &self,
        registry: &Registry,
        store: &BoundedStore,
        key: &RecordKey,
        record: Record,
        fingerprints: &Fingerprints,
    ) -> Response {
        let (status, fingerprint) = (record.status, record.fingerprint);
        // Opened first: of a key that is not listed any more, every fingerprint looks like another request's.
        let opened = match registry.at_rest().open(key, record) {
            Ok(opened) => opened,
            Err(error) => {
                telemetry::claim_failed(self.policy, store.name(), &error);
                return self.refuse(UNAVAILABLE);
            }
        };
        if !fingerprints.contain(fingerprint) {
            return self.refuse(Refusal::KeyReused);
        }
        let Opened::Whole(lines, body) = opened else {
            return self.refuse(Refusal::ResponseNotRecorded { status });
        };
        Outcome::Replayed.enter(&self.span);
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.reserve(lines.len() + 1);
        for (name, value) in lines {
            headers.append(name, value);
        }
        headers.insert(REPLAYED, HeaderValue::from_static("true"));
        response
    }

    fn refuse_transaction(&self, store: &BoundedStore, error: &TransactionError) -> Response {
        telemetry::transaction_failed(self.policy, store.name(), error);
        self.refuse(if error.is_permanent() { Refusal::TransactionFailed } else { UNAVAILABLE })
    }

    fn refuse(&self, refusal: Refusal) -> Response {
        Outcome::Refused(refusal.code()).enter(&self.span);
        match &self.registry {
            Some(registry) => registry.render(refusal),
            None => refusal.into_response(),
        }
    }
}

enum Asked {
    Acquired { attempt: u32, asked_at: Instant },
    Begun { attempt: u32, transaction: Arc<dyn HandlerTransaction> },
    Unguarded,
}

fn fingerprint_of(policy: &Policy, presented: &Presented, mut builder: FingerprintBuilder) -> Fingerprint {
    if policy.fingerprint == FingerprintSource::Request {
        builder.target(&presented.method, &presented.uri);
        if let PresentedBody::Read(body) = &presented.body {
            builder.body(&presented.headers, body);
        }
    }
    if !policy.partitioned {
        builder.credentials(&presented.headers);
    }
    builder.finish()
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
async fn give_back(store: BoundedStore, key: RecordKey, request: ClaimRequest) {
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
