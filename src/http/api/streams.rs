//! Rooms as Server-Sent Events.
//!
//! `EventSource` takes any status but 200 for final. So what a client should retry is answered with 200, a `retry:` and a
//! `stream.end`, and what it must not retry is answered with a problem document.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::events::position;
use crate::auth::{MAX_INFO_BYTES, MAX_INFO_DEPTH, Permission};
use crate::broker::{BrokerError, Member, sha1_hex};
use crate::config::PresenceInfo;
use crate::delivery::{DetachableStream, EndReason, NameTaken, Session, StreamFormat, Subscriber};
use crate::http::App;
use crate::http::caller::Caller;
use crate::http::extract::{Query, RoomPath, event_name, header_text, name};
use crate::http::problem::{Code, Problem};
use crate::live::{Start, Subscription};
use crate::names::{Cursor, EventId, EventName, RoomName, SubscriberId, nesting};

/// Most events that `recent` can ask for.
const MAX_RECENT: u64 = 1000;
/// Event names that one stream can select.
const MAX_SELECTED: usize = 50;

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
    from: Option<StartFrom>,
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
pub enum StartFrom {
    /// With the oldest retained event.
    Earliest,
}

/// How to stream several rooms.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StreamRoomsQuery {
    /// A room; repeated for each.
    #[serde(default)]
    #[param(required = true, min_items = 1, example = json!(["lobby", "news"]))]
    room: Vec<String>,
    /// The cursor to go on from: the last `id:` that an earlier stream gave. For clients that can't send
    /// `Last-Event-ID`, which wins over it.
    after: Option<String>,
    /// `earliest`: start with the oldest retained event of each room. A cursor wins over it.
    #[param(inline)]
    from: Option<StartFrom>,
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
    caller: Result<Caller, Problem>,
    RoomPath(room): RoomPath,
    Query(query): Query<StreamQuery>,
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let last_id = resume_point(&headers, query.after.as_deref())?;
    let caller = match caller {
        Ok(caller) => caller,
        Err(problem) => return refuse_caller(&app, problem, last_id),
    };
    caller.require(Permission::Subscribe, room.as_str())?;
    let resume = last_id.map(|id| position("Last-Event-ID or after", id)).transpose()?;
    let start = resume.map_or(fresh_start(query.from, query.recent)?, Start::After);
    let options = StreamOptions {
        format: StreamFormat::Single,
        event: &query.event,
        subscriber: query.subscriber,
        presence: query.presence,
        info: query.info,
        last_id: resume.map(|id| id.to_string()),
    };
    open(&app, caller, vec![(room, start)], options).await
}

/// Stream several rooms
///
/// One connection for several rooms. Each event comes in an envelope `{"room","id","event","data","published_at"}`, and the
/// SSE `id:` is one opaque cursor for all of them. The list of rooms may change between connections.
#[utoipa::path(
    get, path = "/v1/stream", operation_id = "streamRooms", tag = "Streams",
    params(StreamRoomsQuery,
        ("Last-Event-ID" = Option<String>, Header, description = "The cursor to go on from; browsers send it")),
    responses((status = 204, description = "The caller was removed from the room, and is kept out for now"),
        (status = 200, description = "The stream, or its refusal as one `stream.end`",
        content((serde_json::Value = "text/event-stream", item_schema = ServerEvent,
            example = "retry: 2000\nid: c1.AAAA\nevent: stream.open\ndata: {}\n\n")))),
)]
pub async fn stream_rooms(
    caller: Result<Caller, Problem>,
    Query(query): Query<StreamRoomsQuery>,
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let last_id = resume_point(&headers, query.after.as_deref())?;
    let caller = match caller {
        Ok(caller) => caller,
        Err(problem) => return refuse_caller(&app, problem, last_id),
    };
    caller.require_some(Permission::Subscribe)?;
    let limit = usize::from(app.settings.streams.max_rooms_per_stream);
    if query.room.len() > limit {
        return Err(Problem::new(Code::TooManyRooms, format!("one stream reads {limit} rooms at most")));
    }
    let cursor = last_id.map(Cursor::decode).transpose();
    let cursor = cursor.map_err(|why| Problem::new(Code::InvalidPosition, why.to_string()))?;
    let fresh = fresh_start(query.from, query.recent)?;
    let mut rooms: Vec<(RoomName, Start)> = Vec::with_capacity(query.room.len());
    for text in &query.room {
        let room = name("the room", text, RoomName::new)?;
        caller.require(Permission::Subscribe, room.as_str())?;
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
    let options = StreamOptions {
        format: StreamFormat::Enveloped,
        event: &query.event,
        subscriber: query.subscriber,
        presence: query.presence,
        info: query.info,
        last_id: last_id.map(str::to_owned),
    };
    open(&app, caller, rooms, options).await
}

/// Where a stream without a position starts.
fn fresh_start(from: Option<StartFrom>, recent: Option<u64>) -> Result<Start, Problem> {
    match (from, recent) {
        (None, None) => Ok(Start::Now),
        (Some(StartFrom::Earliest), None) => Ok(Start::Earliest),
        (None, Some(count)) if count <= MAX_RECENT => Ok(Start::Recent(count)),
        (None, Some(_)) => Err(Problem::new(Code::InvalidQuery, format!("recent is {MAX_RECENT} at most"))),
        (Some(_), Some(_)) => Err(Problem::new(Code::InvalidQuery, "from and recent exclude each other")),
    }
}

/// The position from which a client resumes: the header wins over `after` in the query.
fn resume_point<'a>(headers: &'a HeaderMap, after: Option<&'a str>) -> Result<Option<&'a str>, Problem> {
    let given = header_text(headers, &header::HeaderName::from_static("last-event-id"))?;
    Ok(given.filter(|id| !id.is_empty()).or_else(|| after.filter(|id| !id.is_empty())))
}

/// What a request says of its stream, beside the rooms.
struct StreamOptions<'a> {
    format: StreamFormat,
    /// Names of events; all events if there are none.
    event: &'a [String],
    /// The subscriber id that the client has chosen.
    subscriber: Option<String>,
    /// Whether it asks for `presence.join` and `presence.leave`.
    presence: bool,
    /// What others are shown of the subscriber, as JSON.
    info: Option<String>,
    /// The client's position, which a refusal repeats.
    last_id: Option<String>,
}

async fn open(
    app: &App,
    caller: Caller,
    rooms: Vec<(RoomName, Start)>,
    options: StreamOptions<'_>,
) -> Result<Response, Problem> {
    let (format, last_id) = (options.format, options.last_id.clone());
    let names: Vec<_> = rooms.iter().map(|(room, _)| room.clone()).collect();
    // Before everything that could be terminated.
    let terminations = app.moderation.terminations();
    let mut subscriber = subscriber(app, &caller, &names, options)?;
    let refuse = |reason| Ok(refuse(app, format, reason, last_id.as_deref()));
    if app.drain.is_leaving() {
        return refuse(EndReason::Draining);
    }
    match begin(app, &mut subscriber, &names, rooms).await {
        Ok(subscription) => {
            let session = Session::new(app.delivery.clone(), subscription, subscriber, format, terminations);
            let stream = DetachableStream::new(session);
            let mut response = (stream_headers(), Body::from_stream(stream.body())).into_response();
            response.extensions_mut().insert(stream);
            Ok(response)
        }
        // An EventSource that gets 204 does not reconnect.
        Err(OpenError::Banned) => {
            app.metrics.stream_refused(EndReason::Banned.name());
            caller.audit(&Problem::new(Code::Forbidden, "the subscriber was removed, and may not come back yet"));
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        Err(OpenError::Broker(BrokerError::Unavailable(fault) | BrokerError::OutcomeUnknown(fault))) => {
            tracing::debug!(%fault, "a stream was told to come back later");
            refuse(EndReason::Unavailable)
        }
        Err(OpenError::Broker(error)) => Err(error.into()),
        Err(OpenError::TooManyStreams(limit)) => {
            let detail = format!("the limit of streams for each {limit} is reached");
            app.metrics.rejected(limit, "stream");
            caller.audit(&Problem::new(Code::TooManyRequests, detail));
            refuse(EndReason::TooManyStreams)
        }
        Err(OpenError::NameTaken(NameTaken(room))) => {
            let detail =
                format!("another caller has this subscriber id in the room {room:?}; choose another subscriber=");
            let problem = Problem::new(Code::SubscriberTaken, detail);
            caller.audit(&problem);
            Err(problem)
        }
    }
}

/// Checks what a request says of its subscriber.
fn subscriber(
    app: &App,
    caller: &Caller,
    rooms: &[RoomName],
    options: StreamOptions<'_>,
) -> Result<Subscriber, Problem> {
    if options.event.len() > MAX_SELECTED {
        let detail = format!("a stream selects {MAX_SELECTED} event names at most");
        return Err(Problem::new(Code::InvalidQuery, detail));
    }
    let selected: Box<[EventName]> = options.event.iter().map(|name| event_name(name)).collect::<Result<_, _>>()?;
    if options.presence {
        for room in rooms {
            caller.require(Permission::Presence, room.as_str())?;
        }
        if !rooms.iter().all(|room| app.presence.is_enabled(room)) {
            let detail =
                "presence: one of the rooms has no presence; --presence of the gateway says which rooms do";
            return Err(Problem::new(Code::InvalidQuery, detail));
        }
    }
    // A random id would be another one at each reconnect, so it is not listed.
    let is_chosen = options.subscriber.is_some();
    let id = options.subscriber.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let id = name("the subscriber", &id, SubscriberId::new)?;
    let info = info(app, caller, options.info)?;
    let identity = caller.identity();
    let member = is_chosen.then(|| Member {
        subscriber: id.clone(),
        owner: sha1_hex(caller.owner().as_bytes()).into(),
        address: caller.address().filter(|_| identity.subject.is_none()),
        profile: profile(&id, identity.subject.as_deref(), info.as_deref()),
    });
    Ok(Subscriber::new(id, identity.clone(), caller.address())
        .with_selected(selected)
        .with_member(member)
        .with_presence(options.presence))
}

/// What others are shown of the subscriber: what its token says, or the request, where that is allowed.
fn info(app: &App, caller: &Caller, requested: Option<String>) -> Result<Option<Box<RawValue>>, Problem> {
    let allowed = app.settings.presence.info;
    if requested.is_some() && allowed != PresenceInfo::Query {
        let detail = "info: the gateway does not take it from requests (--presence-info)";
        return Err(Problem::new(Code::InvalidQuery, detail));
    }
    let signed = caller.identity().info.clone().filter(|_| allowed != PresenceInfo::None);
    let text = match (signed, requested) {
        (Some(signed), _) => signed.to_string(),
        (None, Some(requested)) if requested.len() <= MAX_INFO_BYTES => {
            let value: serde_json::Value = serde_json::from_str(&requested)
                .map_err(|why| Problem::new(Code::InvalidQuery, format!("info is not JSON: {why}")))?;
            let text = value.to_string();
            if nesting(&text) > MAX_INFO_DEPTH {
                let detail = format!("info nests arrays and objects deeper than {MAX_INFO_DEPTH}");
                return Err(Problem::new(Code::InvalidQuery, detail));
            }
            text
        }
        (None, Some(_)) => {
            return Err(Problem::new(Code::InvalidQuery, format!("info has {MAX_INFO_BYTES} bytes at most")));
        }
        (None, None) => return Ok(None),
    };
    Ok(RawValue::from_string(text).ok())
}

/// A member's profile as brokers store it.
fn profile(subscriber: &SubscriberId, user: Option<&str>, info: Option<&RawValue>) -> Arc<str> {
    #[derive(Serialize)]
    struct ProfileText<'a> {
        subscriber: &'a SubscriberId,
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        info: Option<&'a RawValue>,
    }
    let text = serde_json::to_string(&ProfileText { subscriber, user, info }).expect("names and JSON are JSON");
    // Without the braces: brokers add to it what only they know.
    text[1..text.len() - 1].into()
}

/// Why a stream was not opened.
enum OpenError {
    /// The caller was removed for a time.
    Banned,
    Broker(BrokerError),
    /// By which limit.
    TooManyStreams(&'static str),
    NameTaken(NameTaken),
}

impl From<BrokerError> for OpenError {
    fn from(error: BrokerError) -> Self {
        Self::Broker(error)
    }
}

/// Subscribes to the rooms, and then joins them: a member hears of its own join.
async fn begin(
    app: &App,
    subscriber: &mut Subscriber,
    names: &[RoomName],
    rooms: Vec<(RoomName, Start)>,
) -> Result<Subscription, OpenError> {
    if let Some(limits) = &app.limits {
        let permit = limits.open_stream(subscriber.identity.subject.as_ref(), subscriber.address);
        subscriber.hold(permit.map_err(OpenError::TooManyStreams)?);
    }
    if app.moderation.is_banned(names.iter().cloned(), &subscriber.stream_identity()).await? {
        return Err(OpenError::Banned);
    }
    let topics = rooms.into_iter().map(|(room, start)| (room.into(), start)).collect();
    let subscription = app.live.subscribe(topics).await?;
    subscriber.join(&app.presence, names).await.map_err(OpenError::NameTaken)?;
    Ok(subscription)
}

/// Answers every request on a connection above the limit.
pub async fn refuse_overload(State(app): State<App>, request: Request) -> Response {
    let mut response = if request.uri().path().ends_with("/stream") {
        #[derive(Deserialize)]
        struct AfterQuery {
            after: Option<String>,
        }
        let query: Option<AfterQuery> = serde_html_form::from_str(request.uri().query().unwrap_or_default()).ok();
        let after = query.and_then(|query| query.after);
        let last_id = resume_point(request.headers(), after.as_deref()).ok().flatten();
        refuse(&app, StreamFormat::Single, EndReason::TooManyConnections, last_id.filter(is_position))
    } else {
        Problem::new(Code::TooManyConnections, "try again, or another replica").into_response()
    };
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Answers a caller that could not be identified. If its token can't be checked yet, or it asks too often, its client comes back.
fn refuse_caller(app: &App, problem: Problem, last_id: Option<&str>) -> Result<Response, Problem> {
    let reason = match problem.code() {
        Code::KeysUnavailable | Code::Unavailable => EndReason::Unavailable,
        Code::TooManyRequests => EndReason::TooManyRequests,
        _ => return Err(problem),
    };
    Ok(refuse(app, StreamFormat::Single, reason, last_id.filter(is_position)))
}

/// Whether a text may be repeated unchecked as a line of the stream.
fn is_position(id: &&str) -> bool {
    id.parse::<EventId>().is_ok() || Cursor::decode(id).is_ok()
}

/// A stream that only says that there is none now, and when to come back.
fn refuse(app: &App, format: StreamFormat, reason: EndReason, last_id: Option<&str>) -> Response {
    (stream_headers(), app.delivery.refusal(format, reason, last_id)).into_response()
}

fn stream_headers() -> [(header::HeaderName, HeaderValue); 3] {
    [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, no-transform")),
        // nginx would collect a buffer's worth before it passes anything on.
        (header::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ]
}
