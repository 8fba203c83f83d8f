//! The spans of OpenTelemetry, if the application's subscriber creates them.

use http::HeaderValue;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Returns the `traceparent` of the span. Returns `None` if the span has no valid context.
pub(super) fn of_span(span: &Span) -> Option<HeaderValue> {
    let context = span.context();
    let context = context.span().span_context().clone();
    if !context.is_valid() {
        return None;
    }
    let (trace, span, flags) = (context.trace_id(), context.span_id(), context.trace_flags());
    HeaderValue::from_str(&format!("00-{trace}-{span}-{flags:02x}")).ok()
}

/// Links the span to the span with these ids and flags.
pub(super) fn link(span: &Span, (trace, parent, flags): (&str, &str, &str)) {
    if let (Ok(trace), Ok(parent)) = (TraceId::from_hex(trace), SpanId::from_hex(parent)) {
        let flags = u8::from_str_radix(flags, 16).map(TraceFlags::new).unwrap_or_default();
        span.add_link(SpanContext::new(trace, parent, flags, true, TraceState::NONE));
    }
}
