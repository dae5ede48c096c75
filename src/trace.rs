//! Traces over processes: a publish, and its arrival on each replica, are one. Where no traces are sent, nothing here does anything.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use opentelemetry::propagation::TextMapPropagator;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The header of W3C Trace Context that names a trace, and a span in it.
pub const TRACEPARENT: &str = "traceparent";

static SENT: AtomicBool = AtomicBool::new(false);

/// From now on traces are sent.
pub fn begin() {
    SENT.store(true, Ordering::SeqCst);
}

/// Whether traces are sent.
pub fn is_sent() -> bool {
    SENT.load(Ordering::Relaxed)
}

/// The present span, as [`TRACEPARENT`] names it; none if it is not among those that are sent.
pub fn current() -> Option<String> {
    if !is_sent() {
        return None;
    }
    let mut words = HashMap::new();
    TraceContextPropagator::new().inject_context(&Span::current().context(), &mut words);
    // The last digit says whether the trace is sent.
    words.remove(TRACEPARENT).filter(|named| named.ends_with('1'))
}

/// Makes a span one of the trace that was named. What names none is not listened to.
pub fn follow(span: &Span, named: &str) {
    let words = HashMap::from([(TRACEPARENT.to_owned(), named.to_owned())]);
    // Refused only once the span has been entered, in which case it stays in its own trace.
    let _ = span.set_parent(TraceContextPropagator::new().extract(&words));
}
