//! Ends the claim after the handler: the response is recorded, the claim is released, or the claim stays until its
//! lease expires.

use std::borrow::Cow;

use axum::response::Response;
use futures_util::future::BoxFuture;
use tracing::Instrument;

use crate::backoff::Backoff;
use crate::deadline::Deadline;
use crate::lease::renewer::KeptLease;
use crate::observe::telemetry;
use crate::observe::telemetry::Outcome;
use crate::policy::values::Oversize;
use crate::record::Record;
use crate::record::envelope::Place;
use crate::rejection::problem::CLAIM_LOST;
use crate::request::guarded_run::GuardedRun;
use crate::request::respond::{Classification, Classified, ClassifiedNow, Panic};
use crate::request::response_mark::without_record;
use crate::retries::Retries;
use crate::store::claim::Held;
use crate::store::error::StoreError;
use crate::sync::tokio;

/// A handler that runs under a claim.
pub(super) struct Claimed {
    pub(super) lease: KeptLease,
    pub(super) attempt: u32,
    pub(super) run: GuardedRun,
}

/// A response, or the work that it must wait for.
pub(super) enum Settling {
    Done(Response),
    Later(BoxFuture<'static, Response>),
    /// The response is sent while it is recorded.
    Streams(Box<Claimed>, Response),
}

/// How a claim ends.
enum PlannedEnd {
    Record(Record),
    Release,
    /// It is unknown what the handler did, now or in an earlier attempt: the claim stays, as if the process had died.
    Lapse,
}

/// How the claim has ended, as far as that is known.
enum ActualEnd {
    AsPlanned,
    /// The response may be sent, and retries do not get it, at least not yet.
    Unrecorded,
    Lost,
}

impl PlannedEnd {
    fn name(&self) -> &'static str {
        match self {
            Self::Record(_) => "record",
            Self::Release => "release",
            Self::Lapse => "lapse",
        }
    }

    fn consequence(&self) -> &'static str {
        match self {
            Self::Record(_) => "retries of the request get its result",
            Self::Release => "a retry runs the handler",
            Self::Lapse => "the claim stays until its lease expires",
        }
    }
}

impl Claimed {
    /// Ends the claim, and only then returns the response. This happens at once if the body is available and the store
    /// answers at once.
    pub(super) fn settle(self, ran: Result<Response, Panic>) -> Settling {
        // Bodies and predicates are the handler's own code too, so they need its span. A separate task is polled in no
        // other span.
        let span = self.run.span.clone();
        let _entered = span.enter();
        let classified = match ran.and_then(|mut response| {
            self.run.guard.take_answer(&mut response);
            self.run.classifier.classify_now(response, &self.run.guard)
        }) {
            Ok(ClassifiedNow::Whole(classified)) => Ok(classified),
            Ok(ClassifiedNow::Later(response)) => {
                let settling = async move {
                    let classified = self.run.classifier.classify_later(response, &self.run.guard).await;
                    self.settle_classified(classified).await
                };
                return Settling::Later(Box::pin(settling.in_current_span()));
            }
            Ok(ClassifiedNow::Streams(response)) => return Settling::Streams(Box::new(self), response),
            Err(panic) => Err(panic),
        };
        match (classified, self.lease.store.immediate()) {
            (Ok((response, Classification::Record(record), outcome)), Some(store)) => {
                let complete = |token| {
                    store.complete(&self.lease.key, token, &self.sealed(&record), self.run.classifier.policy.ttl())
                };
                if self.lease.end_now(complete) {
                    self.end_steps(Held::Yes);
                    Settling::Done(self.recorded(response, outcome))
                } else {
                    Settling::Later(Box::pin(self.record(response, record, outcome).in_current_span()))
                }
            }
            (classified, _) => Settling::Later(Box::pin(self.settle_classified(classified).in_current_span())),
        }
    }

    async fn settle_classified(self, classified: Result<Classified, Panic>) -> Response {
        match classified {
            Ok((response, Classification::Record(record), outcome)) => self.record(response, record, outcome).await,
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

    /// Ends the claim without a record. It first waits for all runs beneath the guard, because another attempt would
    /// otherwise run beside them. The response does not wait for them. When no run is in progress, no further run can
    /// begin.
    pub(super) async fn end_without_record(self, is_unknown: bool, outcome: Outcome) {
        if self.run.guard.covered_runs().close() {
            self.end_now_without_record(is_unknown, outcome).await;
        } else {
            let ending = async move {
                self.run.guard.covered_runs().until_closed().await;
                self.end_now_without_record(is_unknown, outcome).await;
            };
            tokio::spawn(Box::pin(ending).in_current_span());
        }
    }

    async fn end_now_without_record(self, is_unknown: bool, outcome: Outcome) {
        let has_unknown_run = self.run.guard.covered_runs().has_unknown_outcome();
        let planned = if is_unknown || has_unknown_run { self.end_of_unknown() } else { self.release() };
        let outcome = if has_unknown_run && !is_unknown { Outcome::Failed } else { outcome };
        let _ = self.end(planned, outcome).await;
    }

    /// Ends the claim with a record. If the claim was lost, its response must not reach a client as a complete one.
    pub(super) async fn end_with_record(self, record: Record, outcome: Outcome) -> Held {
        match self.end(PlannedEnd::Record(record), outcome).await {
            ActualEnd::AsPlanned | ActualEnd::Unrecorded => Held::Yes,
            ActualEnd::Lost => Held::No,
        }
    }

    async fn record(self, response: Response, record: Record, outcome: Outcome) -> Response {
        let reject = self.run.rejecter();
        match self.end(PlannedEnd::Record(record), outcome).await {
            ActualEnd::AsPlanned => response,
            ActualEnd::Unrecorded => without_record(response),
            // A retry may get the response of another attempt, and a key must have only one response.
            ActualEnd::Lost => reject(CLAIM_LOST),
        }
    }

    fn recorded(&self, response: Response, outcome: Outcome) -> Response {
        self.run.registry.ended_claims().notify(&self.lease.key);
        outcome.report(&self.run.span, &self.run.classifier.policy);
        response
    }

    /// Plans the end of a claim that may be released. A release deletes the number of attempts: after a crash, the next
    /// attempt would count as the first.
    fn release(&self) -> PlannedEnd {
        let has_changed_hands = self.lease.has_changed_hands_for_good();
        if self.attempt == 1 && !has_changed_hands { PlannedEnd::Release } else { PlannedEnd::Lapse }
    }

    /// Plans the end of a claim if it is unknown what the handler did.
    fn end_of_unknown(&self) -> PlannedEnd {
        if self.run.classifier.policy.after_crash().may_rerun() { self.release() } else { PlannedEnd::Lapse }
    }

    /// Plans the end of a claim whose record the store never accepts. It is the same as for a response over `max_body`.
    fn end_of_too_large(&self, record: &Record, error: &StoreError) -> PlannedEnd {
        telemetry::record_rejected(&self.run.classifier.policy, self.lease.store.name(), error);
        match self.run.classifier.policy.oversize() {
            Oversize::Reject => PlannedEnd::Record(record.without_response()),
            Oversize::Rerun => self.release(),
        }
    }

    /// Ends the claim. Returns what is known about its end.
    async fn end(self, mut planned: PlannedEnd, mut outcome: Outcome) -> ActualEnd {
        let has_record = matches!(planned, PlannedEnd::Record(_));
        let ended = self.end_within_limit(&planned).await;
        let was_rejected = matches!(ended, Err(StoreError::RecordRejected(_)));
        let ended = self.or_without_response(&mut planned, ended).await;
        if was_rejected && !matches!(ended, Err(StoreError::RecordRejected(_))) {
            outcome = Outcome::TooLarge;
        }
        match ended {
            Ok(Held::Yes) => {
                outcome.report(&self.run.span, &self.run.classifier.policy);
                if was_rejected { ActualEnd::Unrecorded } else { ActualEnd::AsPlanned }
            }
            Ok(Held::No) => {
                // A key that was purged or forgotten needs no release.
                if !matches!(planned, PlannedEnd::Release) || self.lease.is_known_to_be_over() {
                    self.lose();
                }
                // If the response was to be recorded, the client gets `claim_lost` in its place. The client gets any
                // other response as it is.
                let outcome = if has_record { Outcome::ClaimLost } else { outcome };
                outcome.report(&self.run.span, &self.run.classifier.policy);
                ActualEnd::Lost
            }
            Err(error) => {
                // Another process may already have run the request and sent another response.
                let is_over = self.lease.is_known_to_be_over();
                telemetry::settling_failed(
                    &self.run.classifier.policy,
                    self.lease.store.name(),
                    planned.name(),
                    is_over,
                    &error,
                );
                Outcome::RecordingFailed.report(&self.run.span, &self.run.classifier.policy);
                tokio::spawn(Box::new(self).keep_trying(planned).in_current_span());
                if is_over { ActualEnd::Lost } else { ActualEnd::Unrecorded }
            }
        }
    }

    /// Ends the claim without the response if the store never accepts the record. If the store rejects a record without
    /// a response too, it rejects every record, perhaps only for a while. Then the whole record remains the one to
    /// write.
    async fn or_without_response(
        &self,
        planned: &mut PlannedEnd,
        ended: Result<Held, StoreError>,
    ) -> Result<Held, StoreError> {
        let (PlannedEnd::Record(record), Err(error @ StoreError::RecordRejected(_))) = (&*planned, &ended) else {
            return ended;
        };
        let without = self.end_of_too_large(record, error);
        let ended = self.end_within_limit(&without).await;
        if !matches!(ended, Err(StoreError::RecordRejected(_))) {
            *planned = without;
        }
        ended
    }

    /// Ends the claim, and retries for as long as one store call may take. This bridges a short outage of the store: a
    /// response that is sent before it is recorded would be lost if the process died in between.
    async fn end_within_limit(&self, planned: &PlannedEnd) -> Result<Held, StoreError> {
        match planned {
            PlannedEnd::Record(_) => self.lease.store.persistently(|| self.try_end(planned)).await,
            PlannedEnd::Release | PlannedEnd::Lapse => self.try_end(planned).await,
        }
    }

    async fn try_end(&self, planned: &PlannedEnd) -> Result<Held, StoreError> {
        let lease = &self.lease;
        let held = match planned {
            PlannedEnd::Record(record) => {
                let (record, ttl) = (self.sealed(record), self.run.classifier.policy.ttl());
                lease.end(|token| lease.store.complete(&lease.key, token, Record::clone(&record), ttl)).await
            }
            PlannedEnd::Release => lease.release().await,
            PlannedEnd::Lapse => lease.lapse().await,
        };
        if let Ok(held) = held {
            self.run.registry.ended_claims().notify(&lease.key);
            if !matches!(planned, PlannedEnd::Lapse) {
                self.end_steps(held);
            }
        }
        held
    }

    /// Seals the record. Each try seals it anew, because the ttl begins with the try that succeeds.
    fn sealed<'r>(&self, record: &'r Record) -> Cow<'r, Record> {
        let place = Place { store: self.lease.store.name(), key: &self.lease.key };
        self.run.registry.at_rest().seal(place, record, Some(self.run.classifier.policy.ttl()))
    }

    fn end_steps(&self, held: Held) {
        if self.lease.has_steps() {
            self.lease.share().end_steps(held, self.run.registry.running().token());
        }
    }

    /// Retries until the claim has ended. Meanwhile the lease is renewed, so no other request runs. If the lease is
    /// lost, the store rejects the token.
    async fn keep_trying(self: Box<Self>, mut planned: PlannedEnd) {
        let forgotten = Deadline::after(self.run.classifier.policy.ttl());
        let mut retries = Retries::until(forgotten, Backoff::OF_A_RECORD);
        while retries.pause().await {
            let ended = self.try_end(&planned).await;
            match self.or_without_response(&mut planned, ended).await {
                Ok(Held::Yes) => {
                    tracing::info!(
                        scope = self.run.classifier.policy.scope(),
                        "a later {} succeeded: {}",
                        planned.name(),
                        planned.consequence()
                    );
                    return;
                }
                // The first try freed the key, but the store's answer was lost.
                Ok(Held::No) if !matches!(planned, PlannedEnd::Record(_)) => return,
                Ok(Held::No) => {
                    self.lose();
                    return Outcome::ClaimLost.correct(&self.run.span);
                }
                Err(_) => {}
            }
        }
        telemetry::settling_given_up(&self.run.classifier.policy, self.lease.store.name(), planned.name());
    }

    fn lose(&self) {
        self.lease.count_as_lost();
        telemetry::claim_lost(&self.run.classifier.policy, self.lease.store.name());
    }
}
