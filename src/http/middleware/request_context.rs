//! The lines that the current request logs: its id, method and path go with them, and their size and number are limited.
//!
//! Id, method and path are logged as a span. To format a span for each request costs much, and few requests log
//! anything. So the span is created in advance only if every request is logged, and otherwise with the first line that
//! needs it.

use std::borrow::Cow;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::http::Uri;
use quick_cache::sync::Cache;
use tracing::level_filters::LevelFilter;
use tracing::{Instrument, Span, info_span};

/// Most bytes of a caller's text in a log line.
const MAX_TEXT_BYTES: usize = 256;
/// Most lines of one address about refusals or failures of one kind in a [`WINDOW`].
const LINES_OF_AN_ADDRESS: u32 = 10;
/// Most such lines of all addresses in a [`WINDOW`].
const LINES: u32 = 200;
const WINDOW: Duration = Duration::from_secs(1);
/// Counts that are kept: one for each address and kind. Those that were used least recently are forgotten.
const MAX_COUNTS: usize = 10_000;

tokio::task_local! {
    static REQUEST: RequestContext;
}

/// What identifies a request in the log.
pub(in crate::http) struct RequestContext {
    pub(in crate::http) id: String,
    pub(in crate::http) method: &'static str,
    pub(in crate::http) uri: Uri,
    /// The client's address; for IPv6 the first address of its /64.
    pub(in crate::http) address: Option<IpAddr>,
    pub(in crate::http) lines: Arc<LineLimits>,
}

impl RequestContext {
    /// Runs `answer` as the current request, in `span` if there is one.
    pub(in crate::http) fn run<T>(
        self,
        span: Option<Span>,
        answer: impl Future<Output = T>,
    ) -> impl Future<Output = T> {
        let is_verbose = LevelFilter::current() >= LevelFilter::DEBUG;
        let span = span.unwrap_or_else(|| if is_verbose { self.span() } else { Span::none() });
        REQUEST.scope(self, answer).instrument(span)
    }

    /// The span has no query, which may contain a token.
    fn span(&self) -> Span {
        let path = &*cut(self.uri.path());
        info_span!("request", request_id = %self.id, method = %self.method, path)
    }
}

/// Calls `log` in the span of the current request, if there is a current request.
pub(in crate::http) fn log(log: impl FnOnce()) {
    let has_span = !Span::current().is_none();
    match REQUEST.try_with(|request| (!has_span).then(|| request.span())) {
        Ok(Some(span)) => span.in_scope(log),
        _ => log(),
    }
}

/// Like [`log()`], for lines of a kind that a caller can cause as often as it likes. Some are left out; the next one gets
/// their number, if it is not 0.
pub(in crate::http) fn log_limited(kind: &'static str, write: impl FnOnce(Option<u64>)) {
    let accepted = REQUEST.try_with(|request| request.lines.accept(request.address, kind)).unwrap_or(Some(0));
    if let Some(omitted) = accepted {
        log(|| write((omitted > 0).then_some(omitted)));
    }
}

/// The beginning of a caller's text, short enough for a log line.
pub(in crate::http) fn cut(text: &str) -> Cow<'_, str> {
    if text.len() <= MAX_TEXT_BYTES {
        return text.into();
    }
    format!("{}…", &text[..text.floor_char_boundary(MAX_TEXT_BYTES)]).into()
}

/// Counts the lines of each address by kind.
pub(in crate::http) struct LineLimits {
    counts: Cache<(Option<IpAddr>, &'static str), Arc<Mutex<LineCount>>>,
    all: Mutex<LineCount>,
}

/// The lines of a window.
#[derive(Default)]
struct LineCount {
    began: Option<Instant>,
    written: u32,
    /// Lines that were left out since the last one that was written.
    omitted: u64,
}

impl Default for LineLimits {
    fn default() -> Self {
        Self { counts: Cache::new(MAX_COUNTS), all: Mutex::default() }
    }
}

impl LineLimits {
    /// Counts a line. Returns how many were left out before it, or `None` if it has to be left out itself.
    fn accept(&self, address: Option<IpAddr>, kind: &'static str) -> Option<u64> {
        let Ok(own) = self.counts.get_or_insert_with(&(address, kind), || Ok::<_, Infallible>(Arc::default()));
        let accept = |count: &Mutex<LineCount>, most, omitted| {
            count.lock().expect("no holder of the lock panics").accept(most, omitted, Instant::now())
        };
        accept(&own, LINES_OF_AN_ADDRESS, 0).and_then(|omitted| accept(&self.all, LINES, omitted))
    }
}

impl LineCount {
    /// Counts a line. `omitted` lines were left out before it, besides those that are counted here.
    fn accept(&mut self, most: u32, omitted: u64, now: Instant) -> Option<u64> {
        if self.began.is_none_or(|began| now >= began + WINDOW) {
            (self.began, self.written) = (Some(now), 0);
        }
        if self.written == most {
            self.omitted += omitted + 1;
            return None;
        }
        self.written += 1;
        Some(omitted + std::mem::take(&mut self.omitted))
    }
}
