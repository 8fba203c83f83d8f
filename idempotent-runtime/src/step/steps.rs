//! The steps of one handler. Begins a step, or returns the result that an earlier attempt has recorded.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join;

use crate::backoff::Backoff;
use crate::deadline::Deadline;
use crate::fingerprint::Fingerprint;
use crate::fingerprint::difference::Difference;
use crate::lease::state::Lease;
use crate::observe::telemetry;
use crate::policy::scope::Scope;
use crate::record::Record;
use crate::record::envelope::Opened;
use crate::record::fingerprints::{Compared, Fingerprints, incomparable};
use crate::registry::Registry;
use crate::retries::Retries;
use crate::step::claim::{Stage, StepClaim};
use crate::step::error::StepErrorKind;
use crate::step::names::{Owner, Owners};
use crate::store::claim::{Claim, Held, Token};
use crate::sync::tokio::time::Instant;

/// The steps of one handler that runs under a claim.
pub(crate) struct Steps {
    pub(crate) registry: Registry,
    /// The handler's own claim.
    pub(crate) handler: Arc<Lease>,
    /// How long a result is kept after the end of the handler.
    pub(crate) ttl: Duration,
    /// The most bytes of JSON that a result may have.
    pub(crate) max_result: usize,
    pub(crate) fingerprints: Fingerprints,
    /// True if a caller is named, so that credentials are not part of the fingerprint.
    pub(crate) is_partitioned: bool,
    pub(crate) owners: Owners,
}

/// The state of a step before its closure runs.
pub(crate) enum Begun {
    /// An earlier attempt has recorded this result, as JSON. The closure does not run.
    Recorded(Bytes),
    Running(Box<StepClaim>),
}

impl Steps {
    pub(crate) fn registry_and_scope(&self) -> (Registry, Scope) {
        (self.registry.clone(), self.handler.scope.clone())
    }

    fn claim_of(&self, name: &str, owner: &Owner) -> StepClaim {
        self.handler.begin_step(self.ttl);
        StepClaim {
            registry: self.registry.clone(),
            store: self.handler.store.clone(),
            scope: self.handler.scope.clone(),
            key: self.handler.key.step(name),
            request: self.handler.request().with_fingerprint(self.fingerprints.first).with_token(Token::unique()),
            ttl: self.ttl,
            max_result: self.max_result,
            handler: Arc::clone(&self.handler),
            owner: owner.digest.clone(),
            stage: Stage::Idle,
        }
    }

    pub(crate) async fn begin(&self, name: &str, owner: &Owner) -> Result<Begun, StepErrorKind> {
        self.owners.take(name, owner)?;
        let mut claim = self.claim_of(name, owner);
        // If the other attempt has crashed, its lease expires before this deadline.
        let two_leases = Deadline::after(self.handler.request().lease.saturating_mul(2));
        let mut retries = Retries::until(two_leases, Backoff::BETWEEN_CHECKS);
        loop {
            let asked_at = Instant::now();
            // The handler's claim is confirmed at every poll: an attempt that has lost its key must not begin a step,
            // because the next attempt may already have undone the step's effects.
            let confirmed = self.handler.store.persistently(|| self.handler.confirm());
            let (claimed, confirmed) = join(claim.ask(), confirmed).await;
            let claimed = claimed.map_err(StepErrorKind::Store)?;
            if confirmed.map_err(StepErrorKind::Store)? == Held::No {
                return Err(StepErrorKind::ClaimLost);
            }
            match claimed {
                Claim::Acquired { attempt } => {
                    if claim.keep(attempt, asked_at).await {
                        return Ok(Begun::Running(Box::new(claim)));
                    }
                }
                Claim::Completed(record) => return self.recorded(&claim, record).map(Begun::Recorded),
                Claim::InFlight { fingerprint } | Claim::Lapsed { fingerprint } if !self.is_same(fingerprint) => {
                    return Err(self.of_another(fingerprint));
                }
                Claim::InFlight { .. } => {
                    if !retries.pause().await {
                        return Err(StepErrorKind::StillRunning);
                    }
                }
                // The step was claimed with another secret of the registry, so the store knows the request only by that
                // fingerprint.
                Claim::Lapsed { fingerprint } if claim.ask_as(fingerprint) => {}
                Claim::Lapsed { .. } => return Err(StepErrorKind::OutcomeUnknown),
            }
        }
    }

    fn is_same(&self, fingerprint: Fingerprint) -> bool {
        self.registry.at_rest().is_same(&self.fingerprints, fingerprint)
    }

    /// Returns the error for a step that belongs, as far as is known, to another request. `fingerprint` is that of the
    /// other request.
    fn of_another(&self, fingerprint: Fingerprint) -> StepErrorKind {
        let names = if self.is_partitioned { &[] } else { self.registry.credential_headers() };
        let difference = match self.registry.at_rest().compare(&self.fingerprints, fingerprint, names) {
            Compared::Other(difference) => difference,
            Compared::Same => return StepErrorKind::OtherRequest,
            Compared::Incomparable(id) => return StepErrorKind::Store(incomparable(id)),
        };
        telemetry::other_request(&self.handler.scope, &difference);
        match difference {
            Difference::Credentials(_) => StepErrorKind::OtherCredentials,
            Difference::Target | Difference::Body => StepErrorKind::OtherRequest,
        }
    }

    fn recorded(&self, claim: &StepClaim, record: Record) -> Result<Bytes, StepErrorKind> {
        let fingerprint = record.fingerprint;
        // The record is opened first: if it was changed in the store, its fingerprint says nothing about the request.
        let opened = self.registry.at_rest().open(claim.place(), record).map_err(StepErrorKind::Store)?;
        if !self.is_same(fingerprint) {
            return Err(self.of_another(fingerprint));
        }
        match opened {
            Opened::Whole(headers, json) if claim.is_owner(&headers) => {
                claim.keep_earlier();
                Ok(json)
            }
            Opened::Whole(..) => Err(StepErrorKind::OfAnotherHandler),
            Opened::NotRecorded => Err(StepErrorKind::TooLarge),
        }
    }
}
