//! From a record to the response that is sent again.

use std::time::SystemTime;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header::TRAILER;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body::Frame;

use crate::policy::handle::PolicyHandle;
use crate::record::headers::{Length, of_replay, recorded};
use crate::record::trailers;
use crate::request::body::Resumed;
use crate::request::response_mark::told;
use crate::store::error::StoreError;

/// The response with what was recorded, marked as a replay.
///
/// # Errors
///
/// When the record is that of no response.
pub(super) fn replay(
    status: StatusCode,
    mut lines: Vec<(HeaderName, HeaderValue)>,
    body: Bytes,
    policy: &PolicyHandle,
    recorded_at: SystemTime,
    length: Length,
) -> Result<Response, StoreError> {
    // By the rules of headers, whatever the store contains.
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
