//! Streams that are refused for now, and the headers of streams.

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use super::resume_point;
use crate::delivery::EndReason;
use crate::http::App;
use crate::http::extract::canonical_query;
use crate::http::problem::{Code, Problem};
use crate::names::{Cursor, EventId};

/// Answers every request on a connection above the limit of connections.
pub async fn refuse_overload(State(app): State<App>, request: Request) -> Response {
    let mut response = if request.uri().path().ends_with("/stream") {
        #[derive(Default, Deserialize)]
        struct ResumeQuery {
            #[serde(default, rename = "lastEventId")]
            last_event_id: Vec<String>,
            after: Option<String>,
        }
        let query = canonical_query(request.uri().query().unwrap_or_default());
        let query: ResumeQuery = serde_html_form::from_str(&query).unwrap_or_default();
        let last_id = resume_point(request.headers(), &query.last_event_id, query.after.as_deref()).ok().flatten();
        refuse(&app, EndReason::TooManyConnections, last_id.filter(is_position))
    } else {
        let detail = "the replica has reached --max-connections, or the client's address --max-connections-per-address; \
                      try again, or try another replica";
        Problem::new(Code::TooManyConnections, detail).into_response()
    };
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Answers a caller that could not be identified. If the reason is temporary, the stream is refused for now.
pub(super) fn refuse_caller(app: &App, problem: Problem, last_id: Option<&str>) -> Result<Response, Problem> {
    let reason = match problem.code() {
        Code::KeysUnavailable | Code::Unavailable => EndReason::Unavailable,
        Code::TooManyRequests => EndReason::TooManyRequests,
        _ => return Err(problem),
    };
    Ok(refuse(app, reason, last_id.filter(is_position)))
}

/// Whether a text from a request is a position, so that a block may repeat it as its `id:`.
fn is_position(id: &&str) -> bool {
    id.parse::<EventId>().is_ok() || Cursor::decode(id).is_ok()
}

/// A stream of one block, which says that there is no stream now, why, and when to reconnect.
pub(super) fn refuse(app: &App, reason: EndReason, last_id: Option<&str>) -> Response {
    (stream_headers(), app.delivery.refusal(reason, last_id)).into_response()
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
