//! Which headers of a response are recorded.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use idempotent_policy::NEVER_RECORDED;

use crate::policy::Policy;

/// Left out unless `keep_headers` names them: they belong to one moment, or hand a secret to one client. The headers of a
/// connection (RFC 9110, section 7.6.1) are in [`NEVER_RECORDED`].
static LEFT_OUT_BY_DEFAULT: [HeaderName; 4] = [
    header::DATE,
    header::PROXY_AUTHENTICATE,
    HeaderName::from_static("proxy-authentication-info"),
    header::SET_COOKIE,
];

/// The header that marks a replay.
pub(crate) static REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The header that carries the key, unless the policy names another one.
pub(crate) static IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static(idempotent_policy::HEADER);

/// The header lines to record, multi-valued ones line by line and in order.
pub(crate) fn recorded(headers: &HeaderMap, policy: &Policy) -> Vec<(HeaderName, HeaderValue)> {
    let named_by_connection: Vec<&str> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .collect();
    let is_recorded = |name: &HeaderName, value: &HeaderValue| {
        let kept = policy.keep_headers().contains(name.as_str());
        let left_out = NEVER_RECORDED.contains(&name.as_str())
            || LEFT_OUT_BY_DEFAULT.contains(name)
            || *name == REPLAYED
            || (*name == header::RETRY_AFTER && is_relative(value))
            || named_by_connection.iter().any(|named| named.eq_ignore_ascii_case(name.as_str()));
        (kept || !left_out) && !policy.drop_headers().contains(name.as_str())
    };
    headers
        .iter()
        .filter(|(name, value)| is_recorded(name, value))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// A number of seconds counts from a moment that is over at the replay; a date still says the same.
fn is_relative(retry_after: &HeaderValue) -> bool {
    retry_after.as_bytes().trim_ascii().iter().all(u8::is_ascii_digit)
}
