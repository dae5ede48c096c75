//! A read of a room's log that waits for events. While it waits, it is a stream: it is delivered, limited and ended as one.

use std::ops::RangeInclusive;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};

use super::log_view;
use crate::delivery::{
    DetachableStream, Ending, HeartbeatOptions, SessionOptions, StreamFormat, StreamSession, Subscriber,
};
use crate::http::App;
use crate::http::api::streams::opening::{OpenError, begin, random_subscriber_id, too_many_streams};
use crate::http::caller::Caller;
use crate::http::problem::{Code, Problem};
use crate::live::Start;
use crate::log::LogView;
use crate::names::{EventId, RoomName};
use crate::timestamp;

/// The seconds that a read can wait.
const WAIT_SECONDS: RangeInclusive<u64> = 1..=60;
/// Reads end at multiples of this time, so that those of a room end together: a broadcaster looks through all its streams
/// whenever one may have to end.
const END_GRID: Duration = Duration::from_millis(100);

/// Whether a read has to wait.
pub(super) enum WaitOutcome {
    /// Something follows this position already.
    Follows(EventId),
    /// Nothing follows yet. The body of this response comes later.
    Waits(Response),
}

/// The time that a read waits.
pub(super) fn wait_time(seconds: u64) -> Result<Duration, Problem> {
    if WAIT_SECONDS.contains(&seconds) {
        return Ok(Duration::from_secs(seconds));
    }
    let (least, most) = WAIT_SECONDS.into_inner();
    Err(Problem::new(Code::InvalidQuery, format!("wait must be between {least} and {most}")))
}

/// Waits for events after a position, or for those that are published from now on.
///
/// The position is held from the start, and only then is asked what follows. So there is no moment in which an event
/// could come unnoticed.
pub(super) async fn wait(
    app: &App,
    caller: &Caller,
    room: &RoomName,
    after: Option<EventId>,
    time: Duration,
    limit: usize,
) -> Result<WaitOutcome, Problem> {
    // It takes one of its subject's streams.
    caller.require_allowed_page(false)?;
    // Counted first, so that every termination is checked that comes meanwhile.
    let terminations = app.moderation.terminations();
    let wants_presence = log_view(caller, room) == LogView::All;
    let mut subscriber = Subscriber::new(random_subscriber_id(), caller.identity().clone(), caller.address())
        .with_presence(wants_presence);
    let topics = vec![(room.clone().into(), after.map_or(Start::Now, Start::After))];
    let begun = begin(app, caller, &mut subscriber, std::slice::from_ref(room), topics).await;
    let (mut subscription, _) = begun.map_err(|error| problem(app, caller, error))?;
    let start = after.or_else(|| subscription.bookmarks().next().map(|(_, bookmark)| bookmark.id));
    if let Some(start) = start
        && subscription.has_update(|event| subscriber.wants(event))
    {
        return Ok(WaitOutcome::Follows(start));
    }
    let options = SessionOptions {
        format: StreamFormat::Page(u16::try_from(limit).unwrap_or(u16::MAX)),
        ending: Ending::Proper,
        heartbeat: HeartbeatOptions::never(),
        lifetime: until_grid(time),
    };
    let session = StreamSession::new(app.delivery.clone(), subscription, subscriber, options, terminations);
    let stream = DetachableStream::new(session);
    let mut response = (headers(), Body::from_stream(stream.body())).into_response();
    response.extensions_mut().insert(stream);
    Ok(WaitOutcome::Waits(response))
}

/// The socket leaves hyper, which could read no other request from it.
fn headers() -> [(HeaderName, HeaderValue); 2] {
    [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::CONNECTION, HeaderValue::from_static("close")),
    ]
}

/// The time from now to the first multiple of [`END_GRID`] that is at least `time` away.
fn until_grid(time: Duration) -> Duration {
    let end = timestamp::since_1970() + time;
    let beyond = end.subsec_millis() % u32::try_from(END_GRID.as_millis()).unwrap_or(u32::MAX);
    time + END_GRID.saturating_sub(Duration::from_millis(beyond.into()))
}

fn problem(app: &App, caller: &Caller, error: OpenError) -> Problem {
    let problem = match error {
        OpenError::Token(problem) => return problem,
        OpenError::Broker(error) => return error.into(),
        OpenError::Banned => Problem::new(Code::Forbidden, "the caller was removed, and may not wait yet"),
        OpenError::TooManyStreams(limit) => {
            app.metrics.rejected(limit, "stream");
            too_many_streams(limit)
        }
        OpenError::NameTaken(_) | OpenError::Finished => Problem::new(Code::Internal, "a read has no name"),
    };
    caller.audit(&problem);
    problem
}

#[cfg(test)]
mod tests {
    use axum::http::Request;
    use http_body_util::BodyExt;
    use serde_json::Value;
    use tower::ServiceExt;

    use super::*;
    use crate::http::{router, test_app};
    use crate::live::test_event;
    use crate::names::Topic;
    use crate::rate_limit::RateKey;

    #[tokio::test]
    async fn a_read_holds_its_position_before_its_answer_is_asked_for() {
        let app = test_app();
        let request = Request::get("/v1/rooms/a/events?wait=60").header("host", "localhost");
        let Ok(response) = router(&app).oneshot(request.body(Body::empty()).unwrap()).await;
        let event = test_event("x");
        let topic = Topic::from(RoomName::new("a").unwrap());
        let appended = app.log.append(&topic, &event, None, &RateKey::All).await.unwrap();
        let page = response.into_body().collect().await.unwrap().to_bytes();
        let page: Value = serde_json::from_slice(&page).unwrap();
        assert_eq!((&page["events"][0]["data"], &page["next"]), (&"x".into(), &appended.id.to_string().into()));
    }
}
