//! Names the request that is answered in what is logged of it. The name is a span, whose text would be written for each request and
//! seldom read: so it is made beforehand only where something is logged of every request, and else when there is something to log.

use axum::http::Uri;
use tracing::level_filters::LevelFilter;
use tracing::{Instrument, Span, info_span};

tokio::task_local! {
    static REQUEST: RequestContext;
}

/// What a request is called in the log.
pub(in crate::http) struct RequestContext {
    pub(in crate::http) id: String,
    pub(in crate::http) method: &'static str,
    pub(in crate::http) uri: Uri,
}

impl RequestContext {
    /// Answers the request. If it has a span already, it is in that one.
    pub(in crate::http) async fn answer<T>(self, span: Option<Span>, answer: impl Future<Output = T>) -> T {
        let is_verbose = LevelFilter::current() >= LevelFilter::DEBUG;
        let span = span.unwrap_or_else(|| if is_verbose { self.span() } else { Span::none() });
        REQUEST.scope(self, answer).instrument(span).await
    }

    /// No query in it: that may hold a token.
    fn span(&self) -> Span {
        info_span!("request", request_id = %self.id, method = %self.method, path = self.uri.path())
    }
}

/// Logs something under the name of the request that is answered now, if one is.
pub(in crate::http) fn log(log: impl FnOnce()) {
    let is_named = !Span::current().is_none();
    match REQUEST.try_with(|request| (!is_named).then(|| request.span())) {
        Ok(Some(span)) => span.in_scope(log),
        _ => log(),
    }
}
