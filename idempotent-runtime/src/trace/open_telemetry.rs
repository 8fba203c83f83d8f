//! The spans of OpenTelemetry, where the application's subscriber makes some.

use http::HeaderValue;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::TraceParent;

pub(super) fn of_span(span: &Span) -> Option<TraceParent> {
    let context = span.context();
    let context = context.span().span_context().clone();
    if !context.is_valid() {
        return None;
    }
    let (trace, span, flags) = (context.trace_id(), context.span_id(), context.trace_flags());
    TraceParent::new(&HeaderValue::from_str(&format!("00-{trace}-{span}-{flags:02x}")).ok()?)
}

pub(super) fn link(span: &Span, to: &TraceParent) {
    let (trace, parent, flags) = to.parts();
    if let (Ok(trace), Ok(parent)) = (TraceId::from_hex(trace), SpanId::from_hex(parent)) {
        let flags = u8::from_str_radix(flags, 16).map(TraceFlags::new).unwrap_or_default();
        span.add_link(SpanContext::new(trace, parent, flags, true, TraceState::NONE));
    }
}
