//! The trailers of a recorded response. Each is a line among the header lines, so stores need not know of trailers.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::store::error::StoreError;

/// The name of such a line. Its value is `name: value`.
static RECORDED_TRAILER: HeaderName = HeaderName::from_static("idempotency-recorded-trailer");

const SEPARATOR: &[u8] = b": ";

/// Returns the line for one trailer. Returns `None` if the value is not valid in a header, which does not happen.
pub(crate) fn line(name: &HeaderName, value: &HeaderValue) -> Option<(HeaderName, HeaderValue)> {
    let line = [name.as_str().as_bytes(), SEPARATOR, value.as_bytes()].concat();
    let mut line = HeaderValue::from_bytes(&line).ok()?;
    line.set_sensitive(value.is_sensitive());
    Some((RECORDED_TRAILER.clone(), line))
}

/// Removes the trailers from the lines of a record and returns them.
///
/// # Errors
///
/// Fails if there are more than a response can have.
pub(crate) fn take(lines: &mut Vec<(HeaderName, HeaderValue)>) -> Result<HeaderMap, StoreError> {
    let mut trailers = HeaderMap::new();
    for (_, value) in lines.extract_if(.., |(name, _)| *name == RECORDED_TRAILER) {
        if let Some((name, value)) = parse(&value) {
            let too_many = |_| StoreError::damaged("the record has more trailers than a response can have");
            trailers.try_append(name, value).map_err(too_many)?;
        }
    }
    Ok(trailers)
}

fn parse(line: &HeaderValue) -> Option<(HeaderName, HeaderValue)> {
    let (line, is_sensitive) = (line.as_bytes(), line.is_sensitive());
    let colon = line.windows(SEPARATOR.len()).position(|window| window == SEPARATOR)?;
    let (name, value) = (&line[..colon], &line[colon + SEPARATOR.len()..]);
    let mut value = HeaderValue::from_bytes(value).ok()?;
    value.set_sensitive(is_sensitive);
    Some((HeaderName::from_bytes(name).ok()?, value))
}
