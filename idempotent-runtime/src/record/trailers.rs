//! The trailers of a recorded response: each is a line among those of its headers, so that stores need not know of them.

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::store::error::StoreError;

/// The name of such a line, whose value is `name: value`.
static RECORDED_TRAILER: HeaderName = HeaderName::from_static("idempotency-recorded-trailer");

const SEPARATOR: &[u8] = b": ";

/// The line for one trailer. `None` if its value is not one of a header, which it always is.
pub(crate) fn line(name: &HeaderName, value: &HeaderValue) -> Option<(HeaderName, HeaderValue)> {
    let line = [name.as_str().as_bytes(), SEPARATOR, value.as_bytes()].concat();
    let mut line = HeaderValue::from_bytes(&line).ok()?;
    line.set_sensitive(value.is_sensitive());
    Some((RECORDED_TRAILER.clone(), line))
}

/// The trailers among the lines of a record, which are taken out of them.
///
/// # Errors
///
/// When there are more than a response can have.
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
