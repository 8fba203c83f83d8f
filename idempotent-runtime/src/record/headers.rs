//! The headers of a response that are recorded and replayed.

use std::time::SystemTime;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use idempotent_policy::NEVER_RECORDED;

use crate::policy::Policy;
use crate::policy::handle::PolicyHandle;
use crate::store::error::StoreError;

/// Headers that belong to one moment. They are not recorded unless `keep_headers` names them. [`NEVER_RECORDED`] lists
/// the headers that no policy can keep.
static OF_ONE_MOMENT: [HeaderName; 3] =
    [HeaderName::from_static("clear-site-data"), header::DATE, header::WWW_AUTHENTICATE];

/// The ends of the names of headers that give a secret to one client, or that are valid once. They are not recorded
/// unless `keep_headers` names them.
const OF_ONE_CLIENT: [&str; 11] = [
    "api-key",
    "apikey",
    "authorization",
    "cookie",
    "cookie2",
    "nonce",
    "password",
    "secret",
    "session",
    "session-id",
    "token",
];

/// The headers by which a response says whether a cache may store it, and for how long (RFC 9111, section 5, and RFC 9213).
static ABOUT_CACHING: [HeaderName; 5] = [
    header::CACHE_CONTROL,
    HeaderName::from_static("cdn-cache-control"),
    header::EXPIRES,
    header::PRAGMA,
    HeaderName::from_static("surrogate-control"),
];

/// The header that marks a replay.
pub(crate) static REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The header of a first response that says, by `false`, that a retry will not get the response.
pub(crate) static RECORDED: HeaderName = HeaderName::from_static("idempotent-recorded");

/// The header that carries the key, unless the policy names another one.
pub(crate) static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static(idempotent_policy::HEADER);

/// The meaning of the header `Content-Length` of a response.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Length {
    /// The length of the body. A server computes it for each answer.
    OfBody,
    /// The length of the body that another response would have. This response has no body.
    OfAbsentBody,
}

impl Length {
    /// Returns the meaning for a response. The answer to a `HEAD` request and a 304 state the length of a body that
    /// they do not send (RFC 9110, section 8.6).
    pub(crate) fn of(is_head: bool, status: StatusCode) -> Self {
        if is_head || status == StatusCode::NOT_MODIFIED { Self::OfAbsentBody } else { Self::OfBody }
    }
}

/// Returns the header lines to record, multi-valued ones line by line and in order.
pub(crate) fn recorded(headers: &HeaderMap, policy: &PolicyHandle, length: Length) -> Vec<(HeaderName, HeaderValue)> {
    let of_connection = named_by(headers.get_all(header::CONNECTION));
    headers
        .iter()
        .filter(|(name, value)| is_repeatable(name, value, policy, &of_connection, length))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// Returns the headers of a replay of these lines, with the mark of a replay, and with its age (RFC 9111, section 5.1)
/// or the directive not to store it.
///
/// A store may contain lines that this version or this policy does not record. They are left out.
///
/// # Errors
///
/// Fails if a response cannot have that many header lines.
pub(crate) fn of_replay(
    lines: Vec<(HeaderName, HeaderValue)>,
    policy: &PolicyHandle,
    recorded_at: SystemTime,
    length: Length,
) -> Result<HeaderMap, StoreError> {
    let of_connection = named_by(lines.iter().filter(|(name, _)| *name == header::CONNECTION).map(|(_, value)| value));
    // There are three more lines: the two below, and the length that axum adds.
    let too_many = |_| StoreError::damaged("the record has more header lines than a response can have");
    let mut headers = HeaderMap::try_with_capacity(lines.len() + 3).map_err(too_many)?;
    let mut says_for_how_long = false;
    for (name, value) in lines {
        if is_repeatable(&name, &value, policy, &of_connection, length) {
            says_for_how_long |= ABOUT_CACHING.contains(&name) || name == header::AGE;
            headers.try_append(name, value).map_err(too_many)?;
        }
    }
    let is_dropped = |name: &HeaderName| policy.drop_headers().contains(name.as_str());
    if says_for_how_long {
        if !is_dropped(&header::AGE) {
            // The recorded age, if there is one, is that of a cache beneath the handler.
            let before = headers.get(header::AGE).and_then(|age| age.to_str().ok()?.trim().parse::<u64>().ok());
            // Another process's clock may be ahead of this one.
            let since = SystemTime::now().duration_since(recorded_at).unwrap_or_default().as_secs();
            headers.insert(header::AGE, before.unwrap_or_default().saturating_add(since).into());
        }
    } else if !is_dropped(&header::CACHE_CONTROL) {
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    headers.insert(&REPLAYED, HeaderValue::from_static("true"));
    Ok(headers)
}

fn is_repeatable(
    name: &HeaderName,
    value: &HeaderValue,
    policy: &PolicyHandle,
    of_connection: &[String],
    length: Length,
) -> bool {
    let name_text = name.as_str();
    if *name == header::CONTENT_LENGTH && length == Length::OfAbsentBody {
        return is_number(value) && !policy.drop_headers().contains(name_text);
    }
    if NEVER_RECORDED.contains(&name_text) || policy.drop_headers().contains(name_text) {
        return false;
    }
    let left_out = is_of_one(name)
        || (*name == header::RETRY_AFTER && is_number(value))
        || (policy.is_of_layer() && is_cross_origin(name))
        || of_connection.iter().any(|named| named.eq_ignore_ascii_case(name_text));
    !left_out || policy.keep_headers().contains(name_text)
}

/// Returns whether a response with these headers has a `CorsLayer` beneath the layer whose headers the policy does not
/// all keep.
pub(crate) fn has_cross_origin_left_out(headers: &HeaderMap, policy: &Policy) -> bool {
    headers.keys().any(|name| is_cross_origin(name) && !policy.keep_headers().contains(name.as_str()))
}

/// Returns whether the header allows pages of an origin to read the response. It allows the origin of the first
/// request, which may differ from that of the retry.
fn is_cross_origin(name: &HeaderName) -> bool {
    name.as_str().starts_with("access-control-")
}

/// Returns whether the header belongs to one client or one moment.
fn is_of_one(name: &HeaderName) -> bool {
    OF_ONE_MOMENT.contains(name) || OF_ONE_CLIENT.iter().any(|end| name.as_str().ends_with(end))
}

/// Returns the names that these values of `Connection` list.
fn named_by<'a>(connection: impl IntoIterator<Item = &'a HeaderValue>) -> Vec<String> {
    let values = connection.into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|name| name.trim().to_owned()).collect()
}

/// Checks a header line that an operator provides, by the rules of [`recorded`] without a policy.
#[cfg(feature = "operate")]
pub(crate) fn check_replayable(name: &HeaderName, value: &HeaderValue) -> Result<(), String> {
    idempotent_policy::check_kept_header(name.as_str())?;
    if is_of_one(name) {
        return Err(format!("`{name}` belongs to one client or one moment and is not replayed; remove it"));
    }
    if *name == header::RETRY_AFTER && is_number(value) {
        return Err("`retry-after` in seconds counts from a moment that is over at the replay; write a date".to_owned());
    }
    Ok(())
}

/// Returns whether the value is a number of seconds. Such a number counts from a moment that has passed at the replay,
/// while a date keeps its meaning.
fn is_number(value: &HeaderValue) -> bool {
    value.as_bytes().trim_ascii().iter().all(u8::is_ascii_digit)
}
