//! Classifies the handler's response by the policy: whether it is recorded, and how its claim ends.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use axum::body::Body;
use axum::response::Response;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, header, response};

use crate::fingerprint::Fingerprint;
use crate::observe::telemetry::Outcome;
use crate::observe::traceparent::TraceParent;
use crate::policy::CacheIf;
use crate::policy::handle::PolicyHandle;
use crate::policy::values::{Oversize, Stream};
use crate::record::headers::Length;
use crate::record::now_in_millis;
use crate::record::{Record, RecordedBody, headers, trailers};
use crate::request::active_guard::ActiveGuard;
use crate::request::coverage::{polled_in, polled_in_each_poll};
use crate::request::response_body::{Content, Piece, is_of_unknown_length};
use crate::request::response_mark::{Mark, without_record};
use crate::sync::tokio::runtime::Handle;

pub(super) type Panic = Box<dyn Any + Send>;

/// How the claim of a response ends.
pub(super) enum Classification {
    /// The response is recorded.
    Record(Record),
    /// The status of the response frees the key.
    Free,
    /// The response cannot be recorded, and the policy lets a retry run the handler again.
    Rerun,
    /// The service beneath a layer failed, or another execution ran under this claim, so the outcome is unknown.
    Failed,
}

/// The response for the client, how its claim ends, and the outcome that is reported.
pub(super) type Classified = (Response, Classification, Outcome);

/// The classification that is known without waiting for the body.
pub(super) enum ClassifiedNow {
    Whole(Classified),
    /// The response is recorded, and its body must be awaited.
    Later(Response),
    /// The response is recorded, and its client learns from the end of the body that it is complete.
    Streams(Response),
}

/// Classifies the response of one claim.
pub(super) struct ResponseClassifier {
    pub(super) policy: PolicyHandle,
    pub(super) fingerprint: Fingerprint,
    pub(super) cache_if: Option<CacheIf>,
    pub(super) trace: Option<Box<TraceParent>>,
    pub(super) is_head: bool,
}

impl ResponseClassifier {
    /// Classifies a response whose body is available at once.
    pub(super) fn classify_now(&self, response: Response, guard: &ActiveGuard) -> Result<ClassifiedNow, Panic> {
        // A body or a predicate is the user's code and may panic, like the handler.
        let classify = AssertUnwindSafe(|| {
            let (mut parts, body) = response.into_parts();
            let marked = match parts.extensions.remove::<Mark>() {
                Some(Mark::Failed) => Some((Classification::Failed, Outcome::Failed)),
                Some(Mark::NotCalled) => Some((Classification::Free, Outcome::Failed)),
                Some(Mark::SecondRun(covering)) if guard.is_beneath(&covering) => {
                    if !guard.is_of(&covering) {
                        // The guards around this one need the mark.
                        parts.extensions.insert(Mark::SecondRun(covering));
                    }
                    Some((Classification::Failed, Outcome::Failed))
                }
                // The guards of another request have set this mark.
                None | Some(Mark::SecondRun(_)) => None,
                Some(Mark::OfAnotherGuard(_)) => Some((Classification::Free, Outcome::LeftToHandler)),
            };
            if let Some((classification, outcome)) = marked {
                return ClassifiedNow::Whole((Response::from_parts(parts, body), classification, outcome));
            }
            if guard.is_rejection(&mut parts) || !self.admits(&parts) {
                return ClassifiedNow::Whole((
                    Response::from_parts(parts, body),
                    Classification::Free,
                    Outcome::NotRecorded,
                ));
            }
            let streams = self.streams(&parts, &body, guard);
            match Content::read_now(body, self.policy.max_body()) {
                Ok(piece) if self.has_other_length(&parts, piece.bytes.len()) => {
                    ClassifiedNow::Later(Response::from_parts(parts, piece.body))
                }
                Ok(Piece { bytes, alone, body }) => {
                    let record = self.record(&parts, RecordedBody::Whole(bytes), None);
                    let record = Record { alone, ..record };
                    let response = Response::from_parts(parts, body);
                    ClassifiedNow::Whole((response, Classification::Record(record), Outcome::Recorded))
                }
                Err(body) if streams => ClassifiedNow::Streams(Response::from_parts(parts, body)),
                Err(body) => ClassifiedNow::Later(Response::from_parts(parts, body)),
            }
        });
        polled_in(guard.execution(), || catch_unwind(classify))
    }

    /// Classifies a response, and waits for its body if it is recorded.
    pub(super) async fn classify(&self, response: Response, guard: &ActiveGuard) -> Result<Classified, Panic> {
        match self.classify_now(response, guard)? {
            ClassifiedNow::Whole(classified) => Ok(classified),
            ClassifiedNow::Later(response) | ClassifiedNow::Streams(response) => {
                self.classify_later(response, guard).await
            }
        }
    }

    /// Classifies a response whose body must be awaited.
    pub(super) async fn classify_later(&self, response: Response, guard: &ActiveGuard) -> Result<Classified, Panic> {
        let reading = polled_in_each_poll(guard.execution(), self.read(response));
        AssertUnwindSafe(reading).catch_unwind().await
    }

    /// Returns whether the policy records a response with this head.
    pub(super) fn admits(&self, parts: &response::Parts) -> bool {
        self.policy.admits(self.cache_if, parts)
    }

    /// Reads the body of a response that the policy records.
    async fn read(&self, response: Response) -> Classified {
        let (parts, body) = response.into_parts();
        let (recorded, body, outcome) = match Content::read(&parts, body, &self.policy).await {
            Content::Whole(whole, _, body) if self.has_other_length(&parts, whole.len()) => {
                (RecordedBody::NotRecorded, body, Outcome::Broken)
            }
            Content::Whole(whole, trailers, body) => {
                let record = self.record(&parts, RecordedBody::Whole(whole), trailers.as_ref());
                return (Response::from_parts(parts, body), Classification::Record(record), Outcome::Recorded);
            }
            Content::Broken(body) => (RecordedBody::NotRecorded, body, Outcome::Broken),
            Content::TooLarge(body) if self.policy.oversize() == Oversize::Rerun => {
                let response = without_record(Response::from_parts(parts, body));
                return (response, Classification::Rerun, Outcome::TooLarge);
            }
            Content::TooLarge(body) => (RecordedBody::NotRecorded, body, Outcome::TooLarge),
        };
        let record = self.record(&parts, recorded, None);
        (without_record(Response::from_parts(parts, body)), Classification::Record(record), outcome)
    }

    /// Returns whether the head states another length than the body has. The client sees such a response break off, but
    /// a replay of the same bytes would be complete.
    fn has_other_length(&self, parts: &response::Parts, bytes: usize) -> bool {
        let told = parts.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        told.is_some_and(|told: usize| told != bytes) && Length::of(self.is_head, parts.status) == Length::OfBody
    }

    /// Returns whether the response may be sent before its body is recorded: the policy records it, and the client does
    /// not consider it complete without the end of the body.
    fn streams(&self, parts: &response::Parts, body: &Body, guard: &ActiveGuard) -> bool {
        self.policy.stream() == Stream::Record
            && is_of_unknown_length(parts, body)
            && guard.execution().head().is_none_or(|head| !head.has_response_without_an_end)
            && Handle::try_current().is_ok()
    }

    /// Returns the header lines of a record for these trailers, by the rules for headers.
    pub(super) fn trailer_lines(&self, trailers: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
        let recorded = headers::recorded(trailers, &self.policy, Length::OfBody);
        recorded.iter().filter_map(|(name, value)| trailers::line(name, value)).collect()
    }

    pub(super) fn record(&self, parts: &response::Parts, body: RecordedBody, trailers: Option<&HeaderMap>) -> Record {
        let headers = match body {
            RecordedBody::Whole(_) => {
                let length = Length::of(self.is_head, parts.status);
                let mut lines = headers::recorded(&parts.headers, &self.policy, length);
                lines.extend(self.trace.as_ref().map(|trace| trace.line()));
                lines.extend(trailers.into_iter().flat_map(|trailers| self.trailer_lines(trailers)));
                lines
            }
            RecordedBody::NotRecorded | RecordedBody::Sealed(_) => Vec::new(),
        };
        Record::new(parts.status, headers, body, self.fingerprint, now_in_millis())
    }
}
