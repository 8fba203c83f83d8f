//! Parts of a handler that run once for each record key: what each came to is recorded as it ends.
//!
//! A step's record stands in the handler's store under [`RecordKey::step`](crate::RecordKey::step), and is made as a
//! response's is: claimed, its lease renewed, completed.
//!
//! ```text
//! step ──claim──▶ recorded before: its result, the closure does not run
//!          │
//!          ├──▶ acquired ──closure──▶ Ok: completed(result) ──ttl──▶ absent
//!          │                     ├──▶ Err: released
//!          │                     └──▶ dropped, panicked: lapsed; process dead: lapses with its lease
//!          └──▶ in flight: another attempt that lost the key runs it; waited for
//! ```

mod claim;
mod error;
mod names;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join;

pub(crate) use self::claim::StepClaim;
pub use self::error::{StepError, StepErrorKind};
pub(crate) use self::names::Names;
use crate::at_rest::{Fingerprints, Opened};
use crate::fingerprint::Difference;
use crate::lease::Lease;
use crate::store::{Claim, ClaimRequest, Held, StoreError};
use crate::sync::tokio;
use crate::sync::tokio::time::Instant;
use crate::{Fingerprint, Record, RecordKey, Registry, telemetry};

/// How long an attempt sleeps between two looks at a step that another one runs.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The steps of one handler that runs under a claim.
pub(crate) struct Steps {
    pub(crate) registry: Registry,
    /// The handler's own claim.
    pub(crate) handler: Arc<Lease>,
    /// What that claim asked for.
    pub(crate) request: ClaimRequest,
    /// How long a result is kept.
    pub(crate) ttl: Duration,
    pub(crate) fingerprints: Fingerprints,
    /// A caller is named, so that credentials do not count.
    pub(crate) is_partitioned: bool,
}

/// Where a step stands before its closure.
pub(crate) enum Begun {
    /// Its result, as JSON.
    Recorded(Bytes),
    Running(StepClaim),
}

impl Steps {
    pub(crate) async fn begin(&self, name: &str) -> Result<Begun, StepErrorKind> {
        let mut claim = StepClaim::new(self, name);
        let mut next_look = FIRST_LOOK;
        loop {
            let asked_at = Instant::now();
            // Confirmed with every look: an attempt that lost its key must not begin what its successor may have undone.
            let confirmed = self.handler.store.persistently(|| self.handler.confirm());
            let (claimed, confirmed) = join(claim.ask(), confirmed).await;
            let claimed = claimed.map_err(StepErrorKind::Store)?;
            if confirmed.map_err(StepErrorKind::Store)? == Held::No {
                return Err(StepErrorKind::ClaimLost);
            }
            match claimed {
                Claim::Acquired { attempt } => {
                    if claim.keep(attempt, asked_at).await {
                        return Ok(Begun::Running(claim));
                    }
                }
                Claim::Completed(record) => return self.recorded(claim.key(), record).map(Begun::Recorded),
                Claim::InFlight { fingerprint } | Claim::Lapsed { fingerprint }
                    if !self.fingerprints.contain(fingerprint) =>
                {
                    return Err(self.of_another(fingerprint));
                }
                Claim::InFlight { .. } => {
                    tokio::time::sleep(next_look).await;
                    next_look = LOOK_EVERY.min(next_look * 2);
                }
                // Claimed when the registry had other sealing keys: the store knows the request by that digest alone.
                Claim::Lapsed { fingerprint } if claim.ask_as(fingerprint) => {}
                Claim::Lapsed { .. } => return Err(StepErrorKind::OutcomeUnknown),
            }
        }
    }

    /// The step belongs to the request with this fingerprint.
    fn of_another(&self, fingerprint: Fingerprint) -> StepErrorKind {
        let names = if self.is_partitioned { &[] } else { self.registry.credential_headers() };
        let difference = self.fingerprints.difference(fingerprint, names);
        telemetry::other_request(self.handler.scope, &difference);
        match difference {
            Difference::Credentials(_) => StepErrorKind::OtherCredentials,
            Difference::Target | Difference::Body => StepErrorKind::OtherRequest,
        }
    }

    fn recorded(&self, key: &RecordKey, record: Record) -> Result<Bytes, StepErrorKind> {
        let fingerprint = record.fingerprint;
        // Opened first: of a key that is not listed any more, every fingerprint looks like another request's.
        let opened = self.registry.at_rest().open(key, record).map_err(StepErrorKind::Store)?;
        if !self.fingerprints.contain(fingerprint) {
            return Err(self.of_another(fingerprint));
        }
        match opened {
            Opened::Whole(_, json) => Ok(json),
            Opened::NotRecorded => Err(StepErrorKind::Store(StoreError::damaged("the step's result was not recorded"))),
        }
    }
}
