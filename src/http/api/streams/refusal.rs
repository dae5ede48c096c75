//! Streams that are refused for now, and the headers of streams.

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::{EndOption, resume_point};
use crate::delivery::{EndReason, Ending, cut_after};
use crate::http::App;
use crate::http::extract::canonical_query;
use crate::http::middleware::{IsCut, close_after};
use crate::http::problem::{Code, Problem};
use crate::names::{Bookmark, Cursor};

/// Answers every request on a connection above the limit of connections.
pub async fn refuse_overload(State(app): State<App>, request: Request) -> Response {
    let mut response = if request.uri().path().ends_with("/stream") {
        #[derive(Default, Deserialize)]
        struct RefusalQuery {
            #[serde(default, rename = "lastEventId")]
            last_event_id: Vec<String>,
            after: Option<String>,
            end: Option<EndOption>,
        }
        let query = canonical_query(request.uri().query().unwrap_or_default());
        let query: RefusalQuery = serde_html_form::from_str(&query).unwrap_or_default();
        let last_id = resume_point(request.headers(), &query.last_event_id, query.after.as_deref()).ok().flatten();
        refuse(&app, EndReason::TooManyConnections, last_id.filter(is_position), EndOption::ending(query.end))
    } else {
        let detail = "the replica has reached --max-connections, or the client's address --max-connections-per-address; \
                      try again, or try another replica";
        Problem::new(Code::TooManyConnections, detail).into_response()
    };
    close_after(&mut response);
    response
}

/// Answers a caller that could not be identified. If the reason is temporary, the stream is refused for now.
pub(super) fn refuse_caller(
    app: &App,
    problem: Problem,
    last_id: Option<&str>,
    ending: Ending,
) -> Result<Response, Problem> {
    let reason = match problem.code() {
        Code::KeysUnavailable | Code::Unavailable => EndReason::Unavailable,
        Code::TooManyRequests => EndReason::TooManyRequests,
        _ => return Err(problem),
    };
    Ok(refuse(app, reason, last_id.filter(is_position), ending))
}

/// Whether a text from a request is a position, so that a block may repeat it as its `id:`.
fn is_position(id: &&str) -> bool {
    id.parse::<Bookmark>().is_ok() || Cursor::decode(id).is_ok()
}

/// A stream of one block, which says that there is no stream now, why, and when to reconnect.
pub(super) fn refuse(app: &App, reason: EndReason, last_id: Option<&str>, ending: Ending) -> Response {
    let block = Bytes::from(app.delivery.refusal(reason, last_id));
    if ending.cuts(reason) {
        (stream_headers(), Extension(IsCut), Body::from_stream(cut_after(block))).into_response()
    } else {
        (stream_headers(), block).into_response()
    }
}

/// The headers of every stream.
pub(super) fn stream_headers() -> [(HeaderName, HeaderValue); 3] {
    [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, no-transform")),
        // Without it, nginx fills a buffer before it passes anything on.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ]
}
