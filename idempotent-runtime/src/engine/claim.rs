//! From a key to a claim, a replay or a refusal.

use std::pin::pin;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::HeaderValue;
use tokio::time::Instant;
use tracing::Span;

use super::settle::Claimed;
use super::{CacheIf, Passage};
use crate::fingerprint::FingerprintBuilder;
use crate::guarded::{Presented, PresentedBody};
use crate::headers::REPLAYED;
use crate::idempotency::Execution;
use crate::lease::Lease;
use crate::policy::{FingerprintSource, InFlight, OnStoreError};
use crate::store::{BoundedStore, Claim, ClaimRequest, StoreError, Token};
use crate::telemetry::{self, Outcome};
use crate::{Fingerprint, IdempotencyKey, Policy, Record, RecordKey, RecordedBody, Refusal, Registry};

/// What a refused client is told to wait: long enough not to hammer, short beside what people notice.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How long a waiter sleeps between two looks at the store; another process rings no bell in this one.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// One request on its way to a claim.
pub(super) struct Asking {
    pub(super) policy: &'static Policy,
    pub(super) registry: Option<Registry>,
    pub(super) span: Span,
    pub(super) cache_if: Option<CacheIf>,
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
            telemetry::misconfigured(self.policy);
            return Err(self.refuse(Refusal::StoreUnavailable { retry_after: RETRY_AFTER }));
        };
        if let PresentedBody::Broken(status, reason) = presented.body {
            return Err((status, reason).into_response());
        }
        let record_key = RecordKey::new(self.policy.scope, caller, key.as_str());
        let request = ClaimRequest {
            token: Token::unique(),
            fingerprint: fingerprint_of(self.policy, &presented, fingerprint),
            lease: self.policy.lease,
            ttl: self.policy.ttl,
            after_crash: self.policy.after_crash,
        };
        // Counted from here on, so that a drain waits for a claim that is on its way.
        let running = registry.running().token();
        match self.ask(&registry, &store, &presented.execution, &record_key, request).await? {
            Asked::Acquired { attempt } => {
                presented.execution.grant(key, record_key.clone(), attempt);
                let scope = self.policy.scope;
                let lease = Lease::new(store, record_key, request.token, scope, request.lease);
                Ok(Passage(Some(Box::new(Claimed {
                    policy: self.policy,
                    lease: registry.keeper().keep(lease),
                    registry,
                    fingerprint: request.fingerprint,
                    cache_if: self.cache_if,
                    span: self.span,
                    _running: running,
                }))))
            }
            Asked::Unguarded => {
                // From here on the request is what any axum request is: it ends when its client leaves.
                presented.execution.set_must_finish(false);
                presented.execution.grant(key, record_key, 1);
                Outcome::Unguarded.enter(&self.span);
                Ok(Passage(None))
            }
        }
    }

    async fn ask(
        &self,
        registry: &Registry,
        store: &BoundedStore,
        execution: &Execution,
        key: &RecordKey,
        request: ClaimRequest,
    ) -> Result<Asked, Response> {
        let gives_up_at = match self.policy.in_flight {
            InFlight::Reject => None,
            InFlight::Wait(limit) => Some(Instant::now() + limit),
        };
        let mut next_look = FIRST_LOOK;
        loop {
            // Armed before the look, or an end between the look and the wait would go unheard.
            let mut bell = pin!(registry.settled().bell(key).notified());
            if gives_up_at.is_some() {
                bell.as_mut().enable();
            }
            // A claim that the store has made must not be forgotten because the client left meanwhile.
            execution.set_must_finish(true);
            let claim = match store.claim(key, request).await {
                Ok(claim) => claim,
                Err(error) => {
                    if self.may_run_unanswered(registry, store, key, request, &error) {
                        return Ok(Asked::Unguarded);
                    }
                    return Err(self.refuse(Refusal::StoreUnavailable { retry_after: RETRY_AFTER }));
                }
            };
            let in_flight = match claim {
                Claim::Acquired { attempt } => return Ok(Asked::Acquired { attempt }),
                Claim::Completed(record) => return Err(self.completed(record, request.fingerprint)),
                Claim::InFlight { fingerprint } | Claim::Lapsed { fingerprint }
                    if fingerprint != request.fingerprint =>
                {
                    return Err(self.refuse(Refusal::KeyReused));
                }
                Claim::Lapsed { .. } => return Err(self.refuse(Refusal::OutcomeUnknown)),
                Claim::InFlight { .. } => Refusal::InFlight { retry_after: RETRY_AFTER },
            };
            let now = Instant::now();
            let Some(gives_up_at) = gives_up_at.filter(|&at| now < at) else { return Err(self.refuse(in_flight)) };
            execution.set_must_finish(false);
            tokio::select! {
                () = bell => {}
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

    fn completed(&self, record: Record, fingerprint: Fingerprint) -> Response {
        if record.fingerprint != fingerprint {
            return self.refuse(Refusal::KeyReused);
        }
        let RecordedBody::Whole(body) = record.body else {
            return self.refuse(Refusal::ResponseNotRecorded { status: record.status });
        };
        Outcome::Replayed.enter(&self.span);
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = record.status;
        let headers = response.headers_mut();
        headers.reserve(record.headers.len() + 1);
        for (name, value) in record.headers {
            headers.append(name, value);
        }
        headers.insert(REPLAYED, HeaderValue::from_static("true"));
        response
    }

    fn may_run_unanswered(
        &self,
        registry: &Registry,
        store: &BoundedStore,
        key: &RecordKey,
        request: ClaimRequest,
        error: &StoreError,
    ) -> bool {
        telemetry::claim_failed(self.policy, store.name(), error);
        match error {
            StoreError::Full | StoreError::Damaged(_) => {}
            // The claim may stand although its answer did not come: nobody will run it, so nobody should wait for it.
            StoreError::Unavailable(_) | StoreError::TimedOut(_) => {
                let releasing = release_in_background(store.clone(), key.clone(), request);
                registry.running().spawn(releasing);
            }
        }
        // A damaged record says that the handler may have run: no policy asks for running it unguarded then.
        self.policy.on_store_error == OnStoreError::Run && !matches!(error, StoreError::Damaged(_))
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
    Acquired { attempt: u32 },
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

async fn release_in_background(store: BoundedStore, key: RecordKey, request: ClaimRequest) {
    let runs_out_at = Instant::now() + request.lease;
    let mut pause = Duration::from_millis(100);
    while store.release(&key, request.token).await.is_err() && Instant::now() + pause < runs_out_at {
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}
