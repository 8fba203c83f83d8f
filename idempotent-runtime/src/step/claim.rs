//! The claim of one step: asked for, kept while the closure runs, and ended as the closure did.

use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode, header};

use crate::backoff::Backoff;
use crate::deadline::Deadline;
use crate::fingerprint::Fingerprint;
use crate::key::RecordKey;
use crate::lease::renewer::KeptLease;
use crate::lease::state::Lease;
use crate::observe::telemetry;
use crate::policy::scope::Scope;
use crate::record::now_in_millis;
use crate::record::{Record, RecordedBody};
use crate::registry::Registry;
use crate::step::error::StepErrorKind;
use crate::store::claim::{Claim, ClaimRequest, Held, Token};
use crate::store::error::StoreError;
use crate::store::handle::StoreHandle;
use crate::sync::tokio;
use crate::sync::tokio::time::Instant;

/// # Cancel safety
///
/// If it is dropped while its closure runs, the claim lapses at once, as if its process had died and its lease had expired.
pub(crate) struct StepClaim {
    registry: Registry,
    store: StoreHandle,
    scope: Scope,
    key: RecordKey,
    request: ClaimRequest,
    ttl: Duration,
    /// Of the handlers between it and its claim.
    owner: Option<Box<str>>,
    stage: Stage,
}

/// On the record of a step whose handler does not hold the claim.
static OWNER: HeaderName = HeaderName::from_static("idempotent-step-owner");

enum Stage {
    /// The store has no claim of this step.
    Idle,
    /// The claim was sent and is unanswered: the store may have made it. Nothing runs under it.
    Claiming,
    Running {
        attempt: u32,
        lease: KeptLease,
    },
}

impl StepClaim {
    pub(super) fn new(
        registry: &Registry,
        handler: &Lease,
        request: ClaimRequest,
        ttl: Duration,
        name: &str,
        owner: Option<Box<str>>,
    ) -> Self {
        Self {
            registry: registry.clone(),
            store: handler.store.clone(),
            scope: handler.scope.clone(),
            key: handler.key.step(name),
            request: ClaimRequest { token: Token::unique(), ..request },
            ttl,
            owner,
            stage: Stage::Idle,
        }
    }

    pub(super) fn key(&self) -> &RecordKey {
        &self.key
    }

    /// Whether the record with these headers is of the same handler.
    pub(super) fn is_owner(&self, headers: &[(HeaderName, HeaderValue)]) -> bool {
        let owner = headers.iter().find_map(|(name, value)| (name == OWNER).then_some(value));
        owner.map(HeaderValue::as_bytes) == self.owner.as_ref().map(|owner| owner.as_bytes())
    }

    pub(super) async fn ask(&mut self) -> Result<Claim, StoreError> {
        self.stage = Stage::Claiming;
        let claimed = self.store.persistently(|| self.store.claim(&self.key, self.request)).await;
        if !matches!(claimed, Ok(Claim::Acquired { .. }) | Err(StoreError::Unavailable(_) | StoreError::TimedOut(_))) {
            self.stage = Stage::Idle;
        }
        claimed
    }

    /// Asks by another digest of the same request from now on; false when it is the one that was asked by.
    pub(super) fn ask_as(&mut self, fingerprint: Fingerprint) -> bool {
        std::mem::replace(&mut self.request.fingerprint, fingerprint) != fingerprint
    }

    /// Keeps the lease of the claim that was acquired; false when it may have run out meanwhile.
    pub(super) async fn keep(&mut self, attempt: u32, asked_at: Instant) -> bool {
        let lease = Lease::new(self.store.clone(), self.key.clone(), &self.request, self.scope.clone());
        let lease = self.registry.renewer().keep(lease, asked_at);
        // The lease began before its answer came; what is left of it must last until it is renewed.
        if asked_at.elapsed() >= self.request.lease / 3 && !matches!(lease.confirm().await, Ok(Held::Yes)) {
            return false;
        }
        self.stage = Stage::Running { attempt, lease };
        true
    }

    /// Once this returns, every later attempt gets `json` in place of another execution, even after a crash.
    pub(crate) async fn record(mut self, name: &str, json: Vec<u8>) -> Result<(), StepErrorKind> {
        let mut headers = vec![(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        let owner = self.owner.as_deref().map(|owner| HeaderValue::from_str(owner).expect("hexadecimal digits"));
        headers.extend(owner.map(|owner| (OWNER.clone(), owner)));
        let record = Record {
            status: StatusCode::OK,
            headers,
            body: RecordedBody::Whole(json.into()),
            fingerprint: self.request.fingerprint,
            recorded_at: now_in_millis(),
        };
        let record = self.registry.at_rest().seal(&self.key, record);
        let recorded = match &self.stage {
            Stage::Running { lease, .. } => self.store.persistently(|| complete(lease, &record, self.ttl)).await,
            Stage::Idle | Stage::Claiming => Ok(Held::No),
        };
        let running = std::mem::replace(&mut self.stage, Stage::Idle);
        match (recorded, running) {
            (Ok(Held::Yes), _) => Ok(()),
            (Err(error), Stage::Running { lease, .. }) => {
                telemetry::step_not_recorded(&self.scope, self.store.name(), name, &error);
                // Another attempt may have run the step by now, and have another result.
                let is_over = lease.is_known_to_be_over();
                tokio::spawn(self.keep_trying(record, lease));
                Err(if is_over { StepErrorKind::ClaimLost } else { StepErrorKind::NotRecorded(error) })
            }
            (Ok(Held::No) | Err(_), _) => Err(StepErrorKind::ClaimLost),
        }
    }

    /// The lease is renewed meanwhile: a later attempt waits for the result, and does not run the step beside it.
    async fn keep_trying(self, mut record: Record, lease: KeptLease) {
        let _counted = self.registry.running().token();
        let forgotten = Deadline::after(self.ttl);
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        while !forgotten.is_over()
            && let Err(error) = complete(&lease, &record, self.ttl).await
        {
            if matches!(error, StoreError::RecordTooLarge(_)) {
                // A later attempt must not run the step again.
                record = record.without_response();
            }
            backoff.wait().await;
        }
    }

    /// Ends a step that has failed: the next one with its name runs.
    pub(crate) async fn release(mut self) {
        let Stage::Running { attempt, lease } = std::mem::replace(&mut self.stage, Stage::Idle) else { return };
        if attempt > 1 {
            // An earlier one may have had its effect: another request with this key must not take its place.
            return lapse(lease).await;
        }
        let released = self.store.persistently(|| lease.release()).await;
        if released.is_err() {
            self.store.let_lapse(lease, self.request.lease);
        }
    }
}

async fn complete(lease: &KeptLease, record: &Record, ttl: Duration) -> Result<Held, StoreError> {
    lease.end(|token| lease.store.complete(&lease.key, token, record.clone(), ttl)).await
}

async fn lapse(lease: KeptLease) {
    // If the store is away, it lapses with what is left of its lease.
    let _ = lease.store.persistently(|| lease.lapse()).await;
}

impl Drop for StepClaim {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::Idle => {}
            Stage::Claiming => self.store.give_back(&self.key, &self.request),
            Stage::Running { lease, .. } => self.store.let_lapse(lease, self.request.lease),
        }
    }
}
