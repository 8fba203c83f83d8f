//! The trace in which a handler ran. It is kept with the record, and replays refer to it.

use http::{HeaderMap, HeaderName, HeaderValue};
use tracing::Span;

#[cfg(feature = "opentelemetry")]
use crate::observe::open_telemetry::{link, of_span};

/// The header of W3C Trace Context that carries the trace of a request.
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The name under which the trace is kept among the headers of a record. So stores need no support for it, and older
/// records without it stay valid.
pub(crate) static RECORDED_BY: HeaderName = HeaderName::from_static("idempotency-recorded-by");

/// A well-formed `traceparent`.
#[derive(Clone)]
pub(crate) struct TraceParent(HeaderValue);

impl TraceParent {
    /// Returns the `traceparent` of the request. Returns `None` if the header is malformed, as the specification
    /// requires.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut lines = headers.get_all(&TRACEPARENT).iter();
        let only = lines.next().filter(|_| lines.next().is_none())?;
        Self::new(only)
    }

    /// Returns the `traceparent` of the handler's span if the span has one, and of the request otherwise.
    pub(crate) fn of_handler(span: &Span, request: Option<Box<Self>>) -> Option<Box<Self>> {
        of_span(span).and_then(|value| Self::new(&value)).map(Box::new).or(request)
    }

    /// Removes the trace from the headers of a record.
    pub(crate) fn take(lines: &mut Vec<(HeaderName, HeaderValue)>) -> Option<Self> {
        let place = lines.iter().rposition(|(name, _)| *name == RECORDED_BY)?;
        Self::new(&lines.remove(place).1)
    }

    /// Records in the span of a replay the trace in which the response was made.
    pub(crate) fn link_to(&self, span: &Span) {
        span.record("idempotency.recorded_by", self.trace_id());
        link(span, self.parts());
    }

    /// Reads only the parts of version 00. Every later version begins with them.
    fn new(value: &HeaderValue) -> Option<Self> {
        const LENGTH: usize = 55;
        let (known, rest) = value.as_bytes().split_at_checked(LENGTH)?;
        let parts: Vec<&[u8]> = known.split(|&byte| byte == b'-').collect();
        let [version, trace, parent, flags] = parts[..] else { return None };
        let is_hex = |part: &[u8], length: usize| {
            part.len() == length && part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        let is_named = |part: &[u8]| part.iter().any(|&byte| byte != b'0');
        let is_well_formed = is_hex(version, 2)
            && version != b"ff"
            && is_hex(trace, 32)
            && is_named(trace)
            && is_hex(parent, 16)
            && is_named(parent)
            && is_hex(flags, 2)
            && (rest.is_empty() || version != b"00" && rest[0] == b'-');
        let value = if rest.is_empty() { value.clone() } else { HeaderValue::from_bytes(known).ok()? };
        is_well_formed.then_some(Self(value))
    }

    /// Returns the trace id, in 32 hexadecimal digits.
    fn trace_id(&self) -> &str {
        // The value is well-formed, so it is ASCII of a fixed length.
        self.0.to_str().map_or("", |text| &text[3..35])
    }

    /// Returns the trace id, the span id and the flags.
    fn parts(&self) -> (&str, &str, &str) {
        self.0.to_str().map_or(("", "", ""), |text| (&text[3..35], &text[36..52], &text[53..55]))
    }

    pub(crate) fn line(&self) -> (HeaderName, HeaderValue) {
        (RECORDED_BY.clone(), self.0.clone())
    }
}

#[cfg(not(feature = "opentelemetry"))]
fn of_span(_: &Span) -> Option<HeaderValue> {
    None
}

#[cfg(not(feature = "opentelemetry"))]
fn link(_: &Span, _: (&str, &str, &str)) {}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace_id(traceparent: &str) -> Option<String> {
        let value = HeaderValue::from_str(traceparent).expect("a header's value");
        TraceParent::new(&value).map(|trace| trace.trace_id().to_owned())
    }

    #[test]
    fn what_the_specification_calls_well_formed_is_taken() {
        let id = Some("4bf92f3577b34da6a3ce929d0e0e4736".to_owned());
        for well_formed in [
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-ff",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-the-future-will-be-like",
        ] {
            assert_eq!(trace_id(well_formed), id, "{well_formed}");
        }
    }

    #[test]
    fn anything_else_is_none() {
        for malformed in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01more",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(trace_id(malformed), None, "{malformed}");
        }
    }

    #[test]
    fn two_lines_are_none() {
        let value = HeaderValue::from_static("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let mut headers = HeaderMap::new();
        headers.append(&TRACEPARENT, value.clone());
        assert!(TraceParent::of(&headers).is_some());
        headers.append(&TRACEPARENT, value);
        assert!(TraceParent::of(&headers).is_none());
    }
}
