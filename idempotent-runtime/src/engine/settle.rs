//! From the handler's outcome to the end of its claim: recorded, released, or left to lapse.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::response::Response;
use futures_util::FutureExt;
use http::response;
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::{Instrument, Span};

use super::CacheIf;
use super::content::Content;
use crate::lease::KeptLease;
use crate::policy::{AfterCrash, Oversize};
use crate::record::now_in_millis;
use crate::store::{Held, StoreError};
use crate::telemetry::{self, Outcome};
use crate::{Fingerprint, Policy, Record, RecordedBody, Registry, headers};

/// A handler that runs under a claim.
pub(super) struct Claimed {
    pub(super) policy: &'static Policy,
    pub(super) registry: Registry,
    pub(super) lease: KeptLease,
    pub(super) fingerprint: Fingerprint,
    pub(super) cache_if: Option<CacheIf>,
    pub(super) span: Span,
    /// A drain waits for it.
    pub(super) _running: TaskTrackerToken,
}

/// How a claim ends.
enum Ending {
    Record(Record),
    Release,
    /// Nobody knows what the handler did: the claim stays, as if the process had died.
    Lapse,
}

impl Ending {
    fn name(&self) -> &'static str {
        match self {
            Self::Record(_) => "record",
            Self::Release => "release",
            Self::Lapse => "refusal of retries",
        }
    }
}

impl Claimed {
    pub(super) fn span(&self) -> &Span {
        &self.span
    }

    /// Ends the claim, and only then lets the response go.
    pub(super) async fn settle(self: Box<Self>, ran: Result<Response, Box<dyn Any + Send>>) -> Response {
        let observed = match ran {
            // A body or a predicate of the user's may panic as the handler may.
            Ok(response) => AssertUnwindSafe(self.observe(response)).catch_unwind().await,
            Err(panic) => Err(panic),
        };
        match observed {
            Ok((response, ending, outcome)) => {
                self.end(ending, outcome).await;
                response
            }
            Err(panic) => {
                let ending = match self.policy.after_crash {
                    AfterCrash::Rerun => Ending::Release,
                    AfterCrash::Refuse => Ending::Lapse,
                };
                self.end(ending, Outcome::Panicked).await;
                std::panic::resume_unwind(panic)
            }
        }
    }

    async fn observe(&self, response: Response) -> (Response, Ending, Outcome) {
        let (parts, body) = response.into_parts();
        if !self.admits(&parts) {
            return (Response::from_parts(parts, body), Ending::Release, Outcome::NotRecorded);
        }
        match Content::read(&parts, body, self.policy.max_body).await {
            Content::Whole(whole, body) => {
                let record = self.record(&parts, RecordedBody::Whole(whole));
                (Response::from_parts(parts, body), Ending::Record(record), Outcome::Recorded)
            }
            Content::Broken(body) => {
                let record = self.record(&parts, RecordedBody::NotRecorded);
                (Response::from_parts(parts, body), Ending::Record(record), Outcome::Broken)
            }
            Content::TooLarge(body) => {
                let ending = match self.policy.oversize {
                    Oversize::Refuse => Ending::Record(self.record(&parts, RecordedBody::NotRecorded)),
                    Oversize::Rerun => Ending::Release,
                };
                (Response::from_parts(parts, body), ending, Outcome::TooLarge)
            }
        }
    }

    fn admits(&self, parts: &response::Parts) -> bool {
        self.policy.cache.admits(parts.status).or_else(|| self.cache_if.map(|admits| admits(parts))).unwrap_or(false)
    }

    fn record(&self, parts: &response::Parts, body: RecordedBody) -> Record {
        let headers = match body {
            RecordedBody::Whole(_) => headers::recorded(&parts.headers, self.policy),
            RecordedBody::NotRecorded => Vec::new(),
        };
        Record { status: parts.status, headers, body, fingerprint: self.fingerprint, recorded_at: now_in_millis() }
    }

    async fn end(self: Box<Self>, ending: Ending, outcome: Outcome) {
        let span = self.span.clone();
        async {
            match self.try_end(&ending).await {
                Ok(Held::Yes) => outcome.enter(&self.span),
                Ok(Held::No) => self.lost(),
                Err(error) => {
                    telemetry::settling_failed(self.policy, self.lease.store.name(), ending.name(), &error);
                    Outcome::RecordingFailed.enter(&self.span);
                    let span = self.span.clone();
                    tokio::spawn(self.keep_trying(ending).instrument(span));
                }
            }
        }
        .instrument(span)
        .await;
    }

    async fn try_end(&self, ending: &Ending) -> Result<Held, StoreError> {
        let lease = &self.lease;
        let held = match ending {
            Ending::Record(record) => {
                lease.store.complete(&lease.key, lease.token, record.clone(), self.policy.ttl).await
            }
            Ending::Release => lease.store.release(&lease.key, lease.token).await,
            Ending::Lapse => {
                // A renewal that comes later would bring the lease back to life.
                lease.stop_renewing().await;
                lease.store.renew(&lease.key, lease.token, Duration::ZERO).await
            }
        };
        if held.is_ok() {
            self.registry.settled().bell(&lease.key).notify_waiters();
        }
        held
    }

    /// The lease is renewed meanwhile, so no other request runs while there is hope; the token fences us off otherwise.
    async fn keep_trying(self: Box<Self>, ending: Ending) {
        let forgotten_at = Instant::now() + self.policy.ttl;
        let mut pause = Duration::from_millis(50);
        while Instant::now() < forgotten_at {
            tokio::time::sleep(pause).await;
            match self.try_end(&ending).await {
                Ok(Held::Yes) => {
                    tracing::info!(scope = self.policy.scope, "the {} succeeded after all", ending.name());
                    return;
                }
                // The first try had released it, although its answer did not come.
                Ok(Held::No) if matches!(ending, Ending::Release) => return,
                Ok(Held::No) => return self.lost(),
                Err(_) => pause = Duration::from_secs(1).min(pause * 2),
            }
        }
        telemetry::settling_given_up(self.policy, self.lease.store.name(), ending.name());
    }

    fn lost(&self) {
        telemetry::claim_lost(self.policy, self.lease.store.name());
        Outcome::ClaimLost.enter(&self.span);
    }
}
