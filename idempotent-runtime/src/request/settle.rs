//! From the handler's outcome to the end of its claim: recorded, released, or left to lapse.

use std::time::Duration;

use axum::response::Response;
use futures_util::future::BoxFuture;
use tracing::{Instrument, Span};

use crate::backoff::Backoff;
use crate::caller_limit::Permit;
use crate::deadline::Deadline;
use crate::lease::renewer::KeptLease;
use crate::observe::InFlight;
use crate::observe::telemetry;
use crate::observe::telemetry::Outcome;
use crate::policy::values::{AfterCrash, Oversize};
use crate::record::Record;
use crate::registry::Registry;
use crate::rejection::problem::CLAIM_LOST;
use crate::request::holding::Holding;
use crate::request::response::{Classification, ClassifiedNow, Panic, ResponseClassifier};
use crate::store::claim::Held;
use crate::store::error::StoreError;
use crate::sync::tokio;

/// A handler that runs under a claim.
pub(super) struct Claimed {
    pub(super) registry: Registry,
    pub(super) lease: KeptLease,
    pub(super) attempt: u32,
    pub(super) classifier: ResponseClassifier,
    pub(super) span: Span,
    /// Until it is settled, what is forwarded runs under its claim.
    pub(super) holding: Holding,
    pub(super) _permit: Option<Permit>,
    pub(super) _in_flight: InFlight,
}

/// A response, or what it has to wait for.
pub(super) enum Settling {
    Done(Response),
    Later(BoxFuture<'static, Response>),
}

/// How a claim ends.
enum Ending {
    Record(Record),
    Release,
    /// It is unknown what the handler did, now or in an earlier attempt: the claim stays, as if the process had died.
    Lapse,
}

impl Ending {
    fn name(&self) -> &'static str {
        match self {
            Self::Record(_) => "record",
            Self::Release | Self::Lapse => "release",
        }
    }
}

impl Claimed {
    /// Ends the claim, and only then lets the response go: at once where body and store are there at once.
    pub(super) fn settle(self, ran: Result<Response, Panic>) -> Settling {
        // Bodies and predicates are the handler's own code too, and a task of its own is polled in no other span.
        let span = self.span.clone();
        let _entered = span.enter();
        let classified = match ran.and_then(|mut response| {
            self.holding.take_answer(&mut response);
            self.classifier.classify_now(response, &self.holding)
        }) {
            Ok(ClassifiedNow::Whole(classified)) => Ok(classified),
            Ok(ClassifiedNow::Later(response)) => {
                let settling = async move {
                    let classified = self.classifier.classify(response, &self.holding).await;
                    self.settle_classified(classified).await
                };
                return Settling::Later(Box::pin(settling.in_current_span()));
            }
            Err(panic) => Err(panic),
        };
        match (classified, self.lease.store.immediate()) {
            (Ok((response, Classification::Record(record), outcome)), Some(store)) => {
                let record = self.registry.at_rest().seal(&self.lease.key, record);
                let complete = |token| store.complete(&self.lease.key, token, &record, self.classifier.policy.ttl());
                if self.lease.end_now(complete) {
                    Settling::Done(self.recorded(response, outcome))
                } else {
                    Settling::Later(Box::pin(self.record(response, record, outcome).in_current_span()))
                }
            }
            (classified, _) => Settling::Later(Box::pin(self.settle_classified(classified).in_current_span())),
        }
    }

    async fn settle_classified(self, classified: Result<(Response, Classification, Outcome), Panic>) -> Response {
        match classified {
            Ok((response, Classification::Record(record), outcome)) => {
                let record = self.registry.at_rest().seal(&self.lease.key, record);
                self.record(response, record, outcome).await
            }
            Ok((response, classification, outcome)) => {
                let is_unknown = matches!(classification, Classification::Failed);
                self.end_without_record(is_unknown, outcome).await;
                response
            }
            Err(panic) => {
                self.end_without_record(true, Outcome::Panicked).await;
                std::panic::resume_unwind(panic)
            }
        }
    }

    /// What runs beneath under this claim ends first, or another attempt would run beside it: its response is not waited for.
    /// When nothing runs, nothing begins any more.
    async fn end_without_record(self, is_unknown: bool, outcome: Outcome) {
        if self.holding.covered_runs().close() {
            self.end_now_without_record(is_unknown, outcome).await;
        } else {
            let ending = async move {
                self.holding.covered_runs().until_closed().await;
                self.end_now_without_record(is_unknown, outcome).await;
            };
            tokio::spawn(Box::pin(ending).in_current_span());
        }
    }

    async fn end_now_without_record(self, is_unknown: bool, outcome: Outcome) {
        let has_unknown_run = self.holding.covered_runs().has_unknown_outcome();
        let ending = if is_unknown || has_unknown_run { self.end_of_unknown() } else { self.release() };
        let outcome = if has_unknown_run && !is_unknown { Outcome::Failed } else { outcome };
        let _ = self.end(ending, outcome).await;
    }

    async fn record(self, response: Response, record: Record, outcome: Outcome) -> Response {
        let (registry, scope) = (self.registry.clone(), self.classifier.policy.owned_scope());
        match self.end(Ending::Record(record), outcome).await {
            Held::Yes => response,
            // A retry may get the response of another attempt, and a key must have only one response.
            Held::No => registry.reject(&scope, CLAIM_LOST),
        }
    }

    fn recorded(&self, response: Response, outcome: Outcome) -> Response {
        self.registry.ended_claims().notify(&self.lease.key);
        outcome.enter(&self.span, &self.classifier.policy);
        response
    }

    /// A release deletes the number of attempts: after a crash, the next attempt would look like the first.
    fn release(&self) -> Ending {
        let has_changed_hands = self.lease.has_changed_hands_for_good();
        if self.attempt == 1 && !has_changed_hands { Ending::Release } else { Ending::Lapse }
    }

    /// How the claim ends if it is unknown what the handler did.
    fn end_of_unknown(&self) -> Ending {
        match self.classifier.policy.after_crash() {
            AfterCrash::Rerun => self.release(),
            AfterCrash::Reject => Ending::Lapse,
        }
    }

    /// How the claim ends instead of with a record that its store never takes, as with a response over `max_body`.
    fn end_of_too_large(&self, record: &Record) -> Ending {
        telemetry::record_too_large(&self.classifier.policy, self.lease.store.name());
        match self.classifier.policy.oversize() {
            Oversize::Reject => Ending::Record(record.without_response()),
            Oversize::Rerun => self.release(),
        }
    }

    /// Whether the claim held until its end, as far as that is known.
    async fn end(self, mut ending: Ending, mut outcome: Outcome) -> Held {
        let mut ended = self.end_within_limit(&ending).await;
        if let (Err(StoreError::RecordTooLarge(_)), Ending::Record(record)) = (&ended, &ending) {
            (ending, outcome) = (self.end_of_too_large(record), Outcome::TooLarge);
            ended = self.end_within_limit(&ending).await;
        }
        match ended {
            Ok(Held::Yes) => {
                outcome.enter(&self.span, &self.classifier.policy);
                Held::Yes
            }
            // It was purged or forgotten: there was nothing to free.
            Ok(Held::No) if matches!(ending, Ending::Release) && !self.lease.is_known_to_be_over() => {
                outcome.enter(&self.span, &self.classifier.policy);
                Held::No
            }
            Ok(Held::No) => {
                self.lost().enter(&self.span, &self.classifier.policy);
                Held::No
            }
            Err(error) => {
                // Another process may have run the request by now, and have sent another response.
                let is_over = self.lease.is_known_to_be_over();
                telemetry::settling_failed(
                    &self.classifier.policy,
                    self.lease.store.name(),
                    ending.name(),
                    is_over,
                    &error,
                );
                Outcome::RecordingFailed.enter(&self.span, &self.classifier.policy);
                tokio::spawn(Box::new(self).keep_trying(ending).in_current_span());
                if is_over { Held::No } else { Held::Yes }
            }
        }
    }

    /// A response that is sent before it is recorded is lost if the process dies in between. So this retries a store that is
    /// briefly unavailable, for as long as one call may take.
    async fn end_within_limit(&self, ending: &Ending) -> Result<Held, StoreError> {
        match ending {
            Ending::Record(_) => self.lease.store.persistently(|| self.try_end(ending)).await,
            Ending::Release | Ending::Lapse => self.try_end(ending).await,
        }
    }

    async fn try_end(&self, ending: &Ending) -> Result<Held, StoreError> {
        let lease = &self.lease;
        let held = match ending {
            Ending::Record(record) => {
                let ttl = self.classifier.policy.ttl();
                lease.end(|token| lease.store.complete(&lease.key, token, record.clone(), ttl)).await
            }
            Ending::Release => lease.release().await,
            Ending::Lapse => lease.lapse().await,
        };
        if held.is_ok() {
            self.registry.ended_claims().notify(&lease.key);
        }
        held
    }

    /// Meanwhile the lease is renewed, so no other request runs. If it is lost, the store rejects the token.
    async fn keep_trying(self: Box<Self>, mut ending: Ending) {
        let forgotten = Deadline::after(self.classifier.policy.ttl());
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        while !forgotten.is_over() {
            backoff.wait().await;
            match self.try_end(&ending).await {
                Ok(Held::Yes) => {
                    tracing::info!(
                        scope = self.classifier.policy.scope(),
                        "a later {} succeeded: retries of the request get its result",
                        ending.name()
                    );
                    return;
                }
                // The first try had freed the key, but its answer was lost.
                Ok(Held::No) if !matches!(ending, Ending::Record(_)) => return,
                Ok(Held::No) => return self.lost().correct(&self.span),
                Err(StoreError::RecordTooLarge(_)) => {
                    if let Ending::Record(record) = &ending {
                        ending = self.end_of_too_large(record);
                    }
                }
                Err(_) => {}
            }
        }
        telemetry::settling_given_up(&self.classifier.policy, self.lease.store.name(), ending.name());
    }

    fn lost(&self) -> Outcome {
        self.lease.count_as_lost();
        telemetry::claim_lost(&self.classifier.policy, self.lease.store.name());
        Outcome::ClaimLost
    }
}
