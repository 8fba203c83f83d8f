//! What the policy makes of the handler's outcome.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use axum::response::Response;
use futures_util::FutureExt;
use http::response;

use crate::fingerprint::Fingerprint;
use crate::observe::telemetry::Outcome;
use crate::observe::traceparent::TraceParent;
use crate::policy::CacheIf;
use crate::policy::handle::PolicyHandle;
use crate::policy::values::Oversize;
use crate::record::now_in_millis;
use crate::record::{Record, RecordedBody, headers};
use crate::request::coverage::{polled_in, polled_in_each_poll};
use crate::request::holding::Holding;
use crate::request::response_body::Content;
use crate::request::response_mark::{Mark, is_of_second_run};

pub(super) type Panic = Box<dyn Any + Send>;

/// What becomes of a response's claim.
pub(super) enum Classification {
    /// It is recorded.
    Record(Record),
    /// Its status frees the key.
    Free,
    /// It cannot be recorded, and the policy lets a retry run the handler again.
    Rerun,
    /// The service beneath a layer failed, or another execution ran under this claim: what was done is unknown.
    Failed,
}

/// What can be said of a response at once.
pub(super) enum ClassifiedNow {
    Whole((Response, Classification, Outcome)),
    /// Its body has to be waited for.
    Later(Response),
}

/// Judges the response of one claim.
pub(super) struct ResponseClassifier {
    pub(super) policy: PolicyHandle,
    pub(super) fingerprint: Fingerprint,
    pub(super) cache_if: Option<CacheIf>,
    pub(super) trace: Option<Box<TraceParent>>,
}

impl ResponseClassifier {
    /// Judges a response whose body is there at once.
    pub(super) fn classify_now(&self, response: Response, holding: &Holding) -> Result<ClassifiedNow, Panic> {
        // A body or a predicate of the user's may panic as the handler may.
        let classify = AssertUnwindSafe(|| {
            let (mut parts, body) = response.into_parts();
            let marked = match parts.extensions.remove::<Mark>() {
                Some(Mark::Failed) => Some((Classification::Failed, Outcome::Failed)),
                Some(Mark::SecondRun(covering)) if holding.is_beneath(&covering) => {
                    if !holding.is_of(&covering) {
                        // For the guards around this one.
                        parts.extensions.insert(Mark::SecondRun(covering));
                    }
                    Some((Classification::Failed, Outcome::Failed))
                }
                // The mark is that of another request's guards.
                None | Some(Mark::SecondRun(_)) => None,
                Some(Mark::OfAnotherGuard(_)) => Some((Classification::Free, Outcome::LeftToHandler)),
            };
            if let Some((classification, outcome)) = marked {
                return ClassifiedNow::Whole((Response::from_parts(parts, body), classification, outcome));
            }
            if !self.admits(&parts) || holding.is_rejection_of_a_step(parts.status) {
                return ClassifiedNow::Whole((
                    Response::from_parts(parts, body),
                    Classification::Free,
                    Outcome::NotRecorded,
                ));
            }
            match Content::read_now(&parts, body, self.policy.max_body()) {
                Ok((whole, body)) => {
                    let record = self.record(&parts, RecordedBody::Whole(whole));
                    let response = Response::from_parts(parts, body);
                    ClassifiedNow::Whole((response, Classification::Record(record), Outcome::Recorded))
                }
                Err(body) => ClassifiedNow::Later(Response::from_parts(parts, body)),
            }
        });
        polled_in(holding.execution(), || catch_unwind(classify))
    }

    pub(super) async fn classify(
        &self,
        response: Response,
        holding: &Holding,
    ) -> Result<(Response, Classification, Outcome), Panic> {
        let observing = polled_in_each_poll(holding.execution(), self.observe(response, holding));
        AssertUnwindSafe(observing).catch_unwind().await
    }

    /// Whether the policy records a response with this head.
    pub(super) fn admits(&self, parts: &response::Parts) -> bool {
        self.policy.admits(self.cache_if, parts)
    }

    async fn observe(&self, response: Response, holding: &Holding) -> (Response, Classification, Outcome) {
        if is_of_second_run(&response, holding) {
            return (response, Classification::Failed, Outcome::Failed);
        }
        let (parts, body) = response.into_parts();
        if !self.admits(&parts) || holding.is_rejection_of_a_step(parts.status) {
            return (Response::from_parts(parts, body), Classification::Free, Outcome::NotRecorded);
        }
        let (recorded, body, outcome) = match Content::read(&parts, body, self.policy.max_body()).await {
            Content::Whole(whole, body) => (RecordedBody::Whole(whole), body, Outcome::Recorded),
            Content::Broken(body) => (RecordedBody::NotRecorded, body, Outcome::Broken),
            Content::TooLarge(body) if self.policy.oversize() == Oversize::Rerun => {
                return (Response::from_parts(parts, body), Classification::Rerun, Outcome::TooLarge);
            }
            Content::TooLarge(body) => (RecordedBody::NotRecorded, body, Outcome::TooLarge),
        };
        let record = self.record(&parts, recorded);
        (Response::from_parts(parts, body), Classification::Record(record), outcome)
    }

    fn record(&self, parts: &response::Parts, body: RecordedBody) -> Record {
        let headers = match body {
            RecordedBody::Whole(_) => {
                let mut lines = headers::recorded(&parts.headers, &self.policy);
                lines.extend(self.trace.as_ref().map(|trace| trace.line()));
                lines
            }
            RecordedBody::NotRecorded | RecordedBody::Sealed(_) => Vec::new(),
        };
        Record { status: parts.status, headers, body, fingerprint: self.fingerprint, recorded_at: now_in_millis() }
    }
}
