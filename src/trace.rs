//! Traces across processes: a publish and its delivery on each replica are one trace. While traces are off, every
//! function here does nothing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use opentelemetry::propagation::TextMapPropagator;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The header of W3C Trace Context. Its value has the id of a trace and of the parent span.
pub const TRACEPARENT: &str = "traceparent";

static ENABLED: AtomicBool = AtomicBool::new(false);

/// Turns traces on.
pub fn enable() {
    ENABLED.store(true, Ordering::SeqCst);
}

/// Whether traces are on.
pub fn is_enabled() -> bool {
    ENABLED.load(Ordering::Relaxed)
}

/// The value of [`TRACEPARENT`] for the current span; none if its trace is not sent.
pub fn current() -> Option<String> {
    if !is_enabled() {
        return None;
    }
    let mut headers = HashMap::new();
    TraceContextPropagator::new().inject_context(&Span::current().context(), &mut headers);
    // The last digit says whether the trace is sent.
    headers.remove(TRACEPARENT).filter(|traceparent| traceparent.ends_with('1'))
}

/// Makes a span a child of the span in a `traceparent`. A malformed value leaves the span in a trace of its own.
pub fn set_parent(span: &Span, traceparent: &str) {
    let headers = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    // This fails only if the span has been entered already. It then stays in its own trace.
    let _ = span.set_parent(TraceContextPropagator::new().extract(&headers));
}
