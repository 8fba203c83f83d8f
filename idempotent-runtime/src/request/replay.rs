//! From a record to the response that is sent again.

use axum::body::Body;
use axum::response::Response;
use http::HeaderValue;

use crate::observe::event::Event;
use crate::observe::telemetry;
use crate::observe::telemetry::Outcome;
use crate::observe::traceparent::TraceParent;
use crate::record::Record;
use crate::record::headers::REPLAYED;
use crate::record::protection::Opened;
use crate::rejection::problem::Rejection;
use crate::rejection::problem::UNAVAILABLE;
use crate::request::admission::Claiming;

impl Claiming {
    pub(super) fn completed(&self, record: Record) -> Response {
        let (status, fingerprint, recorded_at) = (record.status, record.fingerprint, record.recorded_at);
        // Opened first: of a key that is not listed any more, every fingerprint looks like another request's.
        let opened = match self.registry.at_rest().open(&self.stored_key, record) {
            Ok(opened) => opened,
            Err(error) => {
                telemetry::claim_failed(&self.admission.policy, self.store.name(), &error);
                return self.admission.reject(UNAVAILABLE);
            }
        };
        if !self.fingerprints.contain(fingerprint) {
            return self.reject_other(fingerprint);
        }
        let Opened::Whole(mut lines, body) = opened else {
            return self.admission.reject(Rejection::ResponseNotRecorded { status });
        };
        if let Some(trace) = TraceParent::take(&mut lines) {
            trace.enter(&self.admission.span);
        }
        self.admission.report(Outcome::Replayed { recorded_at }, Event::Replayed);
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        // Two more: the mark of a replay, and the length that axum adds.
        headers.reserve(lines.len() + 2);
        for (name, value) in lines {
            headers.append(name, value);
        }
        headers.insert(&REPLAYED, HeaderValue::from_static("true"));
        response
    }
}
