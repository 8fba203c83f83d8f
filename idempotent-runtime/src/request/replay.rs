//! Builds the replay of a record.

use std::time::SystemTime;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::TRAILER;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body::Frame;

use crate::observe::event::Event;
use crate::observe::telemetry::Outcome;
use crate::observe::traceparent::TraceParent;
use crate::policy::handle::PolicyHandle;
use crate::record::Record;
use crate::record::envelope::Opened;
use crate::record::headers::{Length, of_replay, recorded};
use crate::record::trailers;
use crate::rejection::problem::Rejection;
use crate::request::body::Resumed;
use crate::request::keyed_request::KeyedRequest;
use crate::request::response_mark::told;
use crate::store::error::StoreError;

impl KeyedRequest {
    /// Returns the response from the record of this key, or a rejection.
    pub(super) fn completed(&self, record: Record) -> Response {
        let (status, fingerprint, recorded_at) = (record.status, record.fingerprint, record.recorded_at);
        // The record is opened first: if it was changed in the store, its fingerprint says nothing about the request.
        let opened = match self.registry.at_rest().open(self.place(), record) {
            Ok(opened) => opened,
            Err(error) => return self.reject_damaged(&error),
        };
        if !self.is_same(fingerprint) {
            return self.reject_other(fingerprint);
        }
        let Opened::Whole(mut lines, body) = opened else {
            return self.admission.reject(Rejection::ResponseNotRecorded { status });
        };
        let trace = TraceParent::take(&mut lines);
        let length = Length::of(self.admission.execution.head().is_some_and(|head| head.is_head), status);
        let replay = match replay(status, lines, body, &self.admission.policy, recorded_at, length) {
            Ok(replay) => replay,
            Err(error) => return self.reject_damaged(&error),
        };
        if let Some(trace) = trace {
            trace.link_to(&self.admission.span);
        }
        self.admission.report(Outcome::Replayed { recorded_at }, Event::Replayed);
        replay
    }
}

/// Returns the recorded response, marked as a replay.
///
/// # Errors
///
/// If the record does not contain a valid response.
fn replay(
    status: StatusCode,
    mut lines: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
    policy: &PolicyHandle,
    recorded_at: SystemTime,
    length: Length,
) -> Result<Response, StoreError> {
    // The rules for headers apply to trailers too, whatever the store contains.
    let trailers: HeaderMap = recorded(&trailers::take(&mut lines)?, policy, Length::OfBody).into_iter().collect();
    let mut headers = of_replay(lines, policy, recorded_at, length)?;
    // A server sends no trailer over HTTP/1.1 that is not announced.
    let names: Vec<&str> = trailers.keys().map(HeaderName::as_str).collect();
    if let (false, Ok(names)) = (names.is_empty(), HeaderValue::from_str(&names.join(", "))) {
        headers.insert(TRAILER, names);
    }
    let body = if trailers.is_empty() {
        Body::from(body)
    } else {
        Body::new(Resumed::new([Ok(Frame::data(body)), Ok(Frame::trailers(trailers))], Body::empty()))
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(told(response))
}
