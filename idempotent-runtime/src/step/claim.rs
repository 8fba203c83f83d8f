//! The claim of one step: asked for, kept while the closure runs, and ended as the closure did.

use std::sync::Arc;
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
use crate::record::envelope::Place;
use crate::record::now_in_millis;
use crate::record::{Record, RecordedBody};
use crate::registry::Registry;
use crate::retries::Retries;
use crate::step::error::StepErrorKind;
use crate::store::claim::{Claim, ClaimRequest, Held};
use crate::store::error::StoreError;
use crate::store::handle::StoreHandle;
use crate::sync::tokio;
use crate::sync::tokio::time::Instant;

/// # Cancel safety
///
/// If it is dropped while its closure runs, the claim lapses at once, as if its process had died and its lease had expired.
pub(crate) struct StepClaim {
    pub(super) registry: Registry,
    pub(super) store: StoreHandle,
    pub(super) scope: Scope,
    pub(super) key: RecordKey,
    pub(super) request: ClaimRequest,
    pub(super) ttl: Duration,
    pub(super) max_result: usize,
    /// The claim of the handler, as long as which the result lives.
    pub(super) handler: Arc<Lease>,
    /// Of the handlers between it and its claim.
    pub(super) owner: Option<Box<str>>,
    pub(super) stage: Stage,
}

/// On the record of a step whose handler does not hold the claim, or which an operator has resolved.
static OWNER: HeaderName = HeaderName::from_static("idempotent-step-owner");

/// In place of an owner: an operator does not know which of the handlers under the claim has begun the step.
static ANY_OWNER: HeaderValue = HeaderValue::from_static("*");

/// The header lines of a result that an operator records.
#[cfg(feature = "operate")]
pub(crate) fn headers_of_resolved() -> Vec<(HeaderName, HeaderValue)> {
    headers_of_result(Some(ANY_OWNER.clone()))
}

fn headers_of_result(owner: Option<HeaderValue>) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = vec![(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    headers.extend(owner.map(|owner| (OWNER.clone(), owner)));
    headers
}

pub(super) enum Stage {
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
    pub(super) fn place(&self) -> Place<'_> {
        Place { store: self.store.name(), key: &self.key }
    }

    /// Whether the record with these headers is of the same handler.
    pub(super) fn is_owner(&self, headers: &[(HeaderName, HeaderValue)]) -> bool {
        let owner = headers.iter().find_map(|(name, value)| (name == OWNER).then_some(value));
        owner == Some(&ANY_OWNER)
            || owner.map(HeaderValue::as_bytes) == self.owner.as_ref().map(|owner| owner.as_bytes())
    }

    pub(super) async fn ask(&mut self) -> Result<Claim, StoreError> {
        self.stage = Stage::Claiming;
        let claimed = self.store.persistently(|| self.store.claim(&self.key, self.request)).await;
        if !matches!(claimed, Ok(Claim::Acquired { .. }) | Err(StoreError::Unavailable(_) | StoreError::TimedOut(_))) {
            self.stage = Stage::Idle;
        }
        claimed
    }

    /// Uses another digest of the same request from now on. Returns false if this digest is already in use.
    pub(super) fn ask_as(&mut self, fingerprint: Fingerprint) -> bool {
        let is_another = !self.request.is_same_as(fingerprint);
        if is_another {
            self.request.former_fingerprint = Some(fingerprint);
        }
        is_another
    }

    /// Keeps the lease of the claim that was acquired; false when it may have expired meanwhile.
    pub(super) async fn keep(&mut self, attempt: u32, asked_at: Instant) -> bool {
        let lease = Lease::new(self.store.clone(), self.key.clone(), &self.request, self.scope.clone(), asked_at);
        let lease = self.registry.renewer().keep(lease);
        // The lease began before its answer came; what is left of it must last until it is renewed.
        if asked_at.elapsed() >= self.request.lease / 3 && !matches!(lease.confirm().await, Ok(Held::Yes)) {
            return false;
        }
        self.stage = Stage::Running { attempt, lease };
        true
    }

    /// Once this returns, every later attempt gets `json` in place of another execution, even after a crash.
    pub(crate) async fn record(self, name: &str, json: Vec<u8>) -> Result<(), StepErrorKind> {
        let owner = self.owner.as_deref().map(|owner| HeaderValue::from_str(owner).expect("hexadecimal digits"));
        let (headers, body) = (headers_of_result(owner), RecordedBody::Whole(json.into()));
        let record = Record::new(StatusCode::OK, headers, body, self.request.fingerprint, now_in_millis());
        if record.body_bytes().is_none_or(|json| json.len() <= self.max_result) {
            match self.try_to_complete(&record).await {
                Err(StoreError::RecordRejected(_)) => {}
                recorded => return self.end(name, record, recorded),
            }
        }
        // A later attempt must not run the step again.
        let record = record.without_response();
        let recorded = self.try_to_complete(&record).await;
        self.end(name, record, recorded).and(Err(StepErrorKind::TooLarge))
    }

    async fn try_to_complete(&self, record: &Record) -> Result<Held, StoreError> {
        match &self.stage {
            Stage::Running { lease, .. } => self.store.persistently(|| self.complete(lease, record)).await,
            Stage::Idle | Stage::Claiming => Ok(Held::No),
        }
    }

    /// Its store has answered so, or has not.
    fn end(mut self, name: &str, record: Record, recorded: Result<Held, StoreError>) -> Result<(), StepErrorKind> {
        match (recorded, std::mem::replace(&mut self.stage, Stage::Idle)) {
            (Ok(Held::Yes), _) => {
                self.keep_record();
                Ok(())
            }
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
        let mut retries = Retries::until(Deadline::after(self.ttl), Backoff::OF_A_RECORD);
        loop {
            match self.complete(&lease, &record).await {
                Ok(Held::Yes) => return self.keep_record(),
                Ok(Held::No) => return,
                // A later attempt must not run the step again.
                Err(StoreError::RecordRejected(_)) => record = record.without_response(),
                Err(_) => {}
            }
            if !retries.pause().await {
                return;
            }
        }
    }

    async fn complete(&self, lease: &KeptLease, record: &Record) -> Result<Held, StoreError> {
        let life = self.handler.life_of_step().min(self.request.ttl);
        // How long it is kept is said again when its handler ends.
        let record = self.registry.at_rest().seal(self.place(), record, None);
        lease.end(|token| lease.store.complete(&lease.key, token, Record::clone(&record), life)).await
    }

    /// The result is recorded.
    fn keep_record(&self) {
        self.handler.keep_step(&self.key);
        // A store that cannot extend it must not keep it for ever either: so it is recorded with a ttl first.
        if !self.request.after_crash.may_rerun() || self.handler.has_ended() {
            self.extend();
        }
    }

    /// Keeps the result that an earlier attempt has recorded. From now on it is kept as long as the claim of this attempt.
    pub(super) fn keep_earlier(&self) {
        self.handler.keep_step(&self.key);
        self.extend();
    }

    /// Says how long the result is kept: as long as the handler's claim, which may end meanwhile.
    fn extend(&self) {
        let (handler, step, counted) = (Arc::clone(&self.handler), self.key.clone(), self.registry.running().token());
        tokio::spawn(async move {
            handler.extend_step(&step).await;
            drop(counted);
        });
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
