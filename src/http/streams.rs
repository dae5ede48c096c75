//! Rooms as Server-Sent Events.
//!
//! `EventSource` takes anything but 200 for final, so what the client should retry is a 200 with a `retry:` and a
//! `stream.end`; what it must not is a problem document.

mod event_stream;
mod fan;
mod reader;
mod socket;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use self::event_stream::{EventStream, Form, end_block};
pub use self::fan::Fans;
use self::reader::{Reader, Wish};
pub use self::socket::{Held, Offer};
use super::App;
use super::caller::By;
use super::events::position;
use super::extract::{Query, Room, header_text, name};
use super::problem::{Code, Problem};
use crate::access::Permission;
use crate::broker::BrokerError;
use crate::hub::{Start, Subscription};
use crate::room::{Cursor, EventId, RoomName};

/// Most events that `recent` can ask for.
const MAX_RECENT: u64 = 1000;

/// How to stream a room.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StreamQuery {
    /// The position to go on from: the last `id:` that an earlier stream gave. For clients that can't send
    /// `Last-Event-ID`, which wins over it.
    after: Option<String>,
    /// `earliest`: start with the oldest retained event. A position wins over it.
    #[param(inline)]
    from: Option<From>,
    /// Start with the last so many events. A position wins over it.
    #[param(maximum = 1000)]
    recent: Option<u64>,
    /// Only events of this name; may be repeated.
    #[serde(default)]
    event: Vec<String>,
    /// The subscriber's own id, the same at each reconnect; `except` names it. Where the room knows who is in it, it belongs to the
    /// caller, and an older stream with it ends.
    #[param(max_length = 128)]
    subscriber: Option<String>,
    /// Also receive `presence.join` and `presence.leave`.
    #[serde(default)]
    presence: bool,
    /// Any JSON that others are shown of the subscriber, up to 1,024 bytes, if the gateway allows it (`--presence-info query`).
    #[param(max_length = 1024, example = json!("{\"name\":\"Ann\"}"))]
    info: Option<String>,
}

/// Where a stream starts that has no position.
#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum From {
    /// With the oldest retained event.
    Earliest,
}

/// How to stream several rooms.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RoomsQuery {
    /// A room; repeated for each.
    #[serde(default)]
    #[param(required = true, min_items = 1, example = json!(["lobby", "news"]))]
    room: Vec<String>,
    /// The cursor to go on from: the last `id:` that an earlier stream gave. For clients that can't send
    /// `Last-Event-ID`, which wins over it.
    after: Option<String>,
    /// `earliest`: start with the oldest retained event of each room. A cursor wins over it.
    #[param(inline)]
    from: Option<From>,
    /// Start with the last so many events of each room. A cursor wins over it.
    #[param(maximum = 1000)]
    recent: Option<u64>,
    /// Only events of this name; may be repeated.
    #[serde(default)]
    event: Vec<String>,
    /// The subscriber's own id, the same at each reconnect; `except` names it. Where the room knows who is in it, it belongs to the
    /// caller, and an older stream with it ends.
    #[param(max_length = 128)]
    subscriber: Option<String>,
    /// Also receive `presence.join` and `presence.leave`.
    #[serde(default)]
    presence: bool,
    /// Any JSON that others are shown of the subscriber, up to 1,024 bytes, if the gateway allows it (`--presence-info query`).
    #[param(max_length = 1024, example = json!("{\"name\":\"Ann\"}"))]
    info: Option<String>,
}

/// One event of a stream (OpenAPI 3.2's item).
#[derive(Serialize, ToSchema)]
#[allow(dead_code, reason = "describes the text that Block writes")]
pub struct ServerEvent {
    /// The position after it: what to send back as `Last-Event-ID`.
    id: Option<String>,
    /// The event's name, or one of the gateway's own: `stream.open`, `stream.gap`, `stream.position`, `stream.end`.
    event: Option<String>,
    /// The event's data, as text.
    data: Option<String>,
    /// How long to wait before reconnecting, in milliseconds.
    retry: Option<u64>,
}

/// Stream a room
///
/// Server-Sent Events: `stream.open` first, with a position, then the room's events as they were published, and a
/// comment when idle. A client that reconnects with the last `id:` it got (browsers do so by themselves) misses
/// nothing that the log still holds; what it no longer holds is told by `stream.gap`.
#[utoipa::path(
    get, path = "/v1/rooms/{room}/stream", operation_id = "streamRoom", tag = "Streams",
    params(("room" = String, Path, description = "The room's name", max_length = 128, example = "lobby"),
        StreamQuery,
        ("Last-Event-ID" = Option<String>, Header, description = "The position to go on from; browsers send it")),
    responses((status = 204, description = "The caller was removed from the room, and is kept out for now"),
        (status = 200, description = "The stream, or its refusal as one `stream.end`",
        content((serde_json::Value = "text/event-stream", item_schema = ServerEvent,
            example = "retry: 2000\nid: 1790000000000000-41\nevent: stream.open\ndata: {}\n\nid: 1790000000000000-42\nevent: chat\ndata: {\"text\":\"hello\"}\n\n")))),
)]
pub async fn stream_room(
    by: Result<By, Problem>,
    Room(room): Room,
    Query(query): Query<StreamQuery>,
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let last_id = resume_point(&headers, query.after.as_deref())?;
    let by = match by {
        Ok(by) => by,
        Err(problem) => return refuse_unknown(&app, problem, last_id),
    };
    by.require(Permission::Subscribe, room.as_str())?;
    let resume = last_id.map(|id| position("Last-Event-ID or after", id)).transpose()?;
    let start = resume.map_or(fresh_start(query.from, query.recent)?, Start::After);
    let wish =
        Wish { event: &query.event, subscriber: query.subscriber, presence: query.presence, info: query.info };
    let last_id = resume.map(|id| id.to_string());
    open(&app, by, vec![(room, start)], wish, Form::Single, last_id).await
}

/// Stream several rooms
///
/// One connection for several rooms. Each event comes in an envelope `{"room","id","event","data","published_at"}`, and the
/// SSE `id:` is one opaque cursor for all of them. The list of rooms may change between connections.
#[utoipa::path(
    get, path = "/v1/stream", operation_id = "streamRooms", tag = "Streams",
    params(RoomsQuery,
        ("Last-Event-ID" = Option<String>, Header, description = "The cursor to go on from; browsers send it")),
    responses((status = 204, description = "The caller was removed from the room, and is kept out for now"),
        (status = 200, description = "The stream, or its refusal as one `stream.end`",
        content((serde_json::Value = "text/event-stream", item_schema = ServerEvent,
            example = "retry: 2000\nid: c1.AAAA\nevent: stream.open\ndata: {}\n\n")))),
)]
pub async fn stream_rooms(
    by: Result<By, Problem>,
    Query(query): Query<RoomsQuery>,
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let last_id = resume_point(&headers, query.after.as_deref())?;
    let by = match by {
        Ok(by) => by,
        Err(problem) => return refuse_unknown(&app, problem, last_id),
    };
    by.require_some(Permission::Subscribe)?;
    let limit = usize::from(app.settings.max_rooms_per_stream);
    if query.room.len() > limit {
        return Err(Problem::new(Code::TooManyRooms, format!("one stream reads {limit} rooms at most")));
    }
    let cursor = last_id.map(Cursor::decode).transpose();
    let cursor = cursor.map_err(|why| Problem::new(Code::InvalidPosition, why.to_string()))?;
    let fresh = fresh_start(query.from, query.recent)?;
    let mut rooms: Vec<(RoomName, Start)> = Vec::with_capacity(query.room.len());
    for text in &query.room {
        let room = name("the room", text, RoomName::new)?;
        by.require(Permission::Subscribe, room.as_str())?;
        if rooms.iter().any(|(other, _)| *other == room) {
            return Err(Problem::new(Code::InvalidQuery, format!("the room {text:?} is named twice")));
        }
        let start = match &cursor {
            Some(cursor) => cursor.position(&room).map_or(Start::Now, Start::After),
            None => fresh,
        };
        rooms.push((room, start));
    }
    if rooms.is_empty() {
        return Err(Problem::new(Code::InvalidQuery, "name at least one room: ?room=lobby"));
    }
    let wish =
        Wish { event: &query.event, subscriber: query.subscriber, presence: query.presence, info: query.info };
    let last_id = last_id.map(str::to_owned);
    open(&app, by, rooms, wish, Form::Enveloped, last_id).await
}

fn fresh_start(from: Option<From>, recent: Option<u64>) -> Result<Start, Problem> {
    match (from, recent) {
        (None, None) => Ok(Start::Now),
        (Some(From::Earliest), None) => Ok(Start::Earliest),
        (None, Some(count)) if count <= MAX_RECENT => Ok(Start::Recent(count)),
        (None, Some(_)) => Err(Problem::new(Code::InvalidQuery, format!("recent is {MAX_RECENT} at most"))),
        (Some(_), Some(_)) => Err(Problem::new(Code::InvalidQuery, "from and recent exclude each other")),
    }
}

/// The position from which a client resumes: the header wins over its twin in the query.
fn resume_point<'a>(headers: &'a HeaderMap, twin: Option<&'a str>) -> Result<Option<&'a str>, Problem> {
    let given = header_text(headers, &header::HeaderName::from_static("last-event-id"))?;
    Ok(given.filter(|id| !id.is_empty()).or_else(|| twin.filter(|id| !id.is_empty())))
}

async fn open(
    app: &App,
    by: By,
    rooms: Vec<(RoomName, Start)>,
    wish: Wish<'_>,
    form: Form,
    last_id: Option<String>,
) -> Result<Response, Problem> {
    let names: Vec<_> = rooms.iter().map(|(room, _)| room.clone()).collect();
    let mut reader = Reader::new(app, by, &names, wish)?;
    if app.drain.is_leaving() {
        return Ok(refuse(app, "draining", "now", last_id.as_deref()));
    }
    match begin(app, &mut reader, &names, rooms).await {
        Ok(Some(subscription)) => {
            let offer = Offer::new(EventStream::new(app.clone(), subscription, reader, form));
            let mut response = (stream_headers(), offer.body()).into_response();
            response.extensions_mut().insert(offer);
            Ok(response)
        }
        // What an EventSource takes for "never again".
        Ok(None) => {
            app.metrics.stream_refused("removed");
            reader.refused(&Problem::new(Code::Forbidden, "it was removed, and is kept out for now"));
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        Err(Unopened::Broker(BrokerError::Unavailable(fault) | BrokerError::OutcomeUnknown(fault))) => {
            tracing::debug!(%fault, "a stream was told to come back later");
            Ok(refuse(app, "unavailable", "later", last_id.as_deref()))
        }
        Err(Unopened::Broker(error)) => Err(error.into()),
        Err(Unopened::NoPlace(limit)) => {
            let problem = Problem::new(Code::TooManyRequests, format!("no stream more for each {limit}"));
            app.metrics.limited(limit, "stream");
            reader.refused(&problem);
            Ok(refuse(app, "too_many_streams", "later", last_id.as_deref()))
        }
        Err(Unopened::Taken(room)) => {
            let detail = format!("somebody else is in the room {room:?} under this name; take another subscriber=");
            let problem = Problem::new(Code::SubscriberTaken, detail);
            reader.refused(&problem);
            Err(problem)
        }
    }
}

/// Why a stream was not opened.
enum Unopened {
    Broker(BrokerError),
    /// By which limit.
    NoPlace(&'static str),
    /// In which room the name is another's.
    Taken(RoomName),
}

impl std::convert::From<BrokerError> for Unopened {
    fn from(error: BrokerError) -> Self {
        Self::Broker(error)
    }
}

/// Subscribes, and puts the subscriber on the rosters. None for one who is kept out.
async fn begin(
    app: &App,
    reader: &mut Reader,
    names: &[RoomName],
    rooms: Vec<(RoomName, Start)>,
) -> Result<Option<Subscription>, Unopened> {
    reader.take_place(app).map_err(Unopened::NoPlace)?;
    if app.hub.denies(names.iter().cloned(), &reader.whose()).await? {
        return Ok(None);
    }
    let subscription = app.hub.subscribe(rooms).await?;
    // After it has subscribed, so that it hears of itself.
    reader.check_in(app, names).await.map_err(Unopened::Taken)?;
    Ok(Some(subscription))
}

/// Answers everything on a connection above the limit.
pub async fn refuse_overload(State(app): State<App>, request: Request) -> Response {
    let mut response = if request.uri().path().ends_with("/stream") {
        #[derive(Deserialize)]
        struct Twin {
            after: Option<String>,
        }
        let twin: Option<Twin> = serde_html_form::from_str(request.uri().query().unwrap_or_default()).ok();
        let twin = twin.and_then(|twin| twin.after);
        let last_id = resume_point(request.headers(), twin.as_deref()).ok().flatten();
        refuse(&app, "too_many_connections", "later", last_id.filter(reads_like_position))
    } else {
        Problem::new(Code::TooManyConnections, "try again, or another replica").into_response()
    };
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Answers a caller that has not shown who it is, or has asked too often. A token that can't be checked yet is not wrong: its client comes
/// back.
fn refuse_unknown(app: &App, problem: Problem, last_id: Option<&str>) -> Result<Response, Problem> {
    let reason = match problem.code() {
        Code::KeysUnavailable | Code::Unavailable => "unavailable",
        Code::TooManyRequests => "too_many_requests",
        _ => return Err(problem),
    };
    Ok(refuse(app, reason, "later", last_id.filter(reads_like_position)))
}

/// What may go back unchecked: it will be a line of the stream.
fn reads_like_position(id: &&str) -> bool {
    id.parse::<EventId>().is_ok() || Cursor::decode(id).is_ok()
}

/// A stream that only says that there is none now, and when to come back.
fn refuse(app: &App, reason: &'static str, reconnect: &str, last_id: Option<&str>) -> Response {
    app.metrics.stream_refused(reason);
    let block = end_block(app.settings.retry, reason, reconnect, last_id);
    (stream_headers(), block).into_response()
}

fn stream_headers() -> [(header::HeaderName, HeaderValue); 3] {
    [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, no-transform")),
        // nginx would collect a buffer's worth before it passes anything on.
        (header::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ]
}
