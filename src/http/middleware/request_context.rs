//! The id, the method and the path of the current request, for the lines that it logs.
//!
//! They are logged as a span. To format a span for each request costs much, and few requests log anything. So the
//! span is created in advance only if every request is logged, and otherwise with the first line that needs it.

use axum::http::Uri;
use tracing::level_filters::LevelFilter;
use tracing::{Instrument, Span, info_span};

tokio::task_local! {
    static REQUEST: RequestContext;
}

/// What identifies a request in the log.
pub(in crate::http) struct RequestContext {
    pub(in crate::http) id: String,
    pub(in crate::http) method: &'static str,
    pub(in crate::http) uri: Uri,
}

impl RequestContext {
    /// Runs `answer` as the current request, in `span` if there is one.
    pub(in crate::http) async fn run<T>(self, span: Option<Span>, answer: impl Future<Output = T>) -> T {
        let is_verbose = LevelFilter::current() >= LevelFilter::DEBUG;
        let span = span.unwrap_or_else(|| if is_verbose { self.span() } else { Span::none() });
        REQUEST.scope(self, answer).instrument(span).await
    }

    /// The span has no query, which may contain a token.
    fn span(&self) -> Span {
        info_span!("request", request_id = %self.id, method = %self.method, path = self.uri.path())
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
