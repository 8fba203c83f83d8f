//! What the policy makes of the handler's outcome.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use axum::response::Response;
use futures_util::FutureExt;
use http::response;

use super::CacheIf;
use super::content::Content;
use crate::policy::Oversize;
use crate::record::now_in_millis;
use crate::telemetry::Outcome;
use crate::trace::TraceParent;
use crate::{Fingerprint, Policy, Record, RecordedBody, headers};

pub(super) type Panic = Box<dyn Any + Send>;

/// What becomes of a response's claim.
pub(super) enum Verdict {
    /// It is recorded.
    Record(Record),
    /// Its status frees the key.
    Free,
    /// It cannot be recorded, and the policy lets a retry run the handler again.
    Rerun,
    /// It stands for an error of the service beneath a layer, or comes after another execution under this claim: what has been
    /// done is unknown.
    Failed,
}

/// What a layer knows of the response of the service beneath it before that is judged.
#[derive(Clone, Copy)]
enum Mark {
    Failed,
    OfAnotherGuard,
    SecondRun,
}

/// A response that is never recorded and never sent: the layer knows the error that it stands for.
pub(crate) fn failed() -> Response {
    let mut response = Response::default();
    response.extensions_mut().insert(Mark::Failed);
    response
}

/// A response that a guard beneath a layer answers for, because it has recorded it or refused the request: the layer records
/// nothing. The mark is on the response, since what is made of the request beneath a layer need not be what the layer sends.
pub(crate) fn of_another_guard(mut response: Response) -> Response {
    if is_of_second_run(&response) {
        return response;
    }
    response.extensions_mut().insert(Mark::OfAnotherGuard);
    response
}

pub(crate) fn is_of_another_guard(response: &Response) -> bool {
    matches!(response.extensions().get(), Some(Mark::OfAnotherGuard))
}

/// A rejection of what would have been a second execution under one claim. No guard on its way records it; and what the first
/// execution has done, they do not know.
pub(super) fn of_second_run(mut response: Response) -> Response {
    response.extensions_mut().insert(Mark::SecondRun);
    response
}

fn is_of_second_run(response: &Response) -> bool {
    matches!(response.extensions().get(), Some(Mark::SecondRun))
}

/// The response as one that no guard has answered for yet.
pub(crate) fn its_own(mut response: Response) -> Response {
    if !is_of_second_run(&response) {
        response.extensions_mut().remove::<Mark>();
    }
    response
}

/// What can be said of a response at once.
pub(super) enum JudgedNow {
    Whole((Response, Verdict, Outcome)),
    /// Its body has to be waited for.
    Later(Response),
}

/// Judges the response of one claim.
pub(super) struct Judge {
    pub(super) policy: &'static Policy,
    pub(super) fingerprint: Fingerprint,
    pub(super) cache_if: Option<CacheIf>,
    pub(super) trace: Option<Box<TraceParent>>,
}

impl Judge {
    /// Judges a response whose body is there at once.
    pub(super) fn judge_now(&self, response: Response) -> Result<JudgedNow, Panic> {
        // A body or a predicate of the user's may panic as the handler may.
        catch_unwind(AssertUnwindSafe(|| {
            let (mut parts, body) = response.into_parts();
            let marked = match parts.extensions.remove::<Mark>() {
                None => None,
                Some(Mark::Failed) => Some((Verdict::Failed, Outcome::Failed)),
                Some(Mark::SecondRun) => {
                    // For the guards around this one.
                    parts.extensions.insert(Mark::SecondRun);
                    Some((Verdict::Failed, Outcome::Failed))
                }
                Some(Mark::OfAnotherGuard) => Some((Verdict::Free, Outcome::LeftToHandler)),
            };
            if let Some((verdict, outcome)) = marked {
                return JudgedNow::Whole((Response::from_parts(parts, body), verdict, outcome));
            }
            if !self.admits(&parts) {
                return JudgedNow::Whole((Response::from_parts(parts, body), Verdict::Free, Outcome::NotRecorded));
            }
            match Content::read_now(&parts, body, self.policy.max_body) {
                Ok((whole, body)) => {
                    let record = self.record(&parts, RecordedBody::Whole(whole));
                    let response = Response::from_parts(parts, body);
                    JudgedNow::Whole((response, Verdict::Record(record), Outcome::Recorded))
                }
                Err(body) => JudgedNow::Later(Response::from_parts(parts, body)),
            }
        }))
    }

    pub(super) async fn judge(&self, response: Response) -> Result<(Response, Verdict, Outcome), Panic> {
        AssertUnwindSafe(self.observe(response)).catch_unwind().await
    }

    /// Whether the policy records a response with this head.
    pub(super) fn admits(&self, parts: &response::Parts) -> bool {
        self.policy.cache.admits(parts.status).or_else(|| self.cache_if.map(|admits| admits(parts))).unwrap_or(false)
    }

    async fn observe(&self, response: Response) -> (Response, Verdict, Outcome) {
        if is_of_second_run(&response) {
            return (response, Verdict::Failed, Outcome::Failed);
        }
        let (parts, body) = response.into_parts();
        if !self.admits(&parts) {
            return (Response::from_parts(parts, body), Verdict::Free, Outcome::NotRecorded);
        }
        let (recorded, body, outcome) = match Content::read(&parts, body, self.policy.max_body).await {
            Content::Whole(whole, body) => (RecordedBody::Whole(whole), body, Outcome::Recorded),
            Content::Broken(body) => (RecordedBody::NotRecorded, body, Outcome::Broken),
            Content::TooLarge(body) if self.policy.oversize == Oversize::Rerun => {
                return (Response::from_parts(parts, body), Verdict::Rerun, Outcome::TooLarge);
            }
            Content::TooLarge(body) => (RecordedBody::NotRecorded, body, Outcome::TooLarge),
        };
        let record = self.record(&parts, recorded);
        (Response::from_parts(parts, body), Verdict::Record(record), outcome)
    }

    fn record(&self, parts: &response::Parts, body: RecordedBody) -> Record {
        let headers = match body {
            RecordedBody::Whole(_) => {
                let mut lines = headers::recorded(&parts.headers, self.policy);
                lines.extend(self.trace.as_ref().map(|trace| trace.line()));
                lines
            }
            RecordedBody::NotRecorded | RecordedBody::Sealed(_) => Vec::new(),
        };
        Record { status: parts.status, headers, body, fingerprint: self.fingerprint, recorded_at: now_in_millis() }
    }
}
