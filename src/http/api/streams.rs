//! Streams: rooms and hashes as Server-Sent Events.
//!
//! `EventSource` never reconnects after a status other than 200. So a refusal that a client should retry is a 200
//! with a `retry:` and a `stream.end`, and a refusal that it must not retry is a problem document.

pub(super) mod opening;
pub mod refusal;

use std::collections::BTreeSet;

use axum::extract::State;
use axum::http::{HeaderMap, Method};
use axum::response::Response;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use self::opening::{StreamOptions, open};
use self::refusal::refuse_caller;
use super::events::parse_position;
use crate::auth::Permission;
use crate::delivery::{Ending, StreamFormat};
use crate::http::App;
use crate::http::caller::Caller;
use crate::http::extract::{HashPath, QueryParams, RoomPath, parse_name};
use crate::http::problem::{Code, Problem};
use crate::live::Start;
use crate::names::{Bookmark, Cursor, HashName, MAX_NUMBER, RoomName, Topic, digest};

/// Most events that `recent` can ask for.
const MAX_RECENT: u64 = 1000;

/// The query of a stream of one room.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StreamQuery {
    /// The position to continue after: the last `id:` of an earlier stream. `Last-Event-ID` and `lastEventId`, which
    /// clients add when they reconnect, are newer and win over this parameter.
    after: Option<String>,
    /// Where clients that can't set headers put the last `id:` when they reconnect. It wins over `after`, and the header
    /// `Last-Event-ID` over both. `lastEventID` and `Last-Event-ID` are the same parameter; the last one counts.
    #[serde(default, rename = "lastEventId")]
    // Generated clients would give it the header's name.
    #[param(ignore)]
    last_event_id: Vec<String>,
    /// `earliest`: start with the oldest event in the log. A position wins over this parameter.
    #[param(inline)]
    from: Option<StartFrom>,
    /// Start with this number of the last events. A position wins over this parameter.
    #[param(maximum = 1000)]
    recent: Option<u64>,
    /// Only events with this name. Can be repeated.
    #[serde(default)]
    event: Vec<String>,
    /// `cut`: after a `stream.end` that asks the client to reconnect, the connection is cut instead of ended properly.
    /// For clients that reconnect only after an error.
    #[param(inline)]
    end: Option<EndOption>,
    /// Seconds after which an idle stream gets a heartbeat, in place of the gateway's `--heartbeat`.
    #[param(minimum = 5, maximum = 300)]
    heartbeat: Option<u64>,
    /// Whether a heartbeat is a `stream.position`, which a page sees, in place of a comment.
    #[serde(default)]
    heartbeat_event: bool,
    /// The subscriber's id, the same at each reconnect; random by default. The stream skips events that name it in
    /// `except`. In rooms with presence, the id is the subscriber's name in the member list: it belongs to the
    /// caller, and a newer stream with it ends the older one.
    subscriber: Option<String>,
    /// Whether the stream also carries `presence.join` and `presence.leave`.
    #[serde(default)]
    presence: bool,
    /// The profile that other members see: any JSON, up to 1,024 bytes. Allowed only if the gateway runs with
    /// `--presence-info query`.
    #[param(max_length = 1024, example = json!("{\"name\":\"Ann\"}"))]
    info: Option<String>,
}

/// The start of a stream without a position.
#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StartFrom {
    /// The oldest event in the log.
    Earliest,
}

/// How the response of a stream ends.
#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndOption {
    /// By a cut of the connection, if the client should reconnect.
    Cut,
}

impl EndOption {
    fn ending(option: Option<Self>) -> Ending {
        option.map_or(Ending::Proper, |Self::Cut| Ending::Cut)
    }
}

/// The query of a stream of several rooms.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StreamRoomsQuery {
    /// The name of a room. Repeated for each room. A stream has at least one room or hash.
    #[serde(default)]
    #[param(example = json!(["lobby", "news"]))]
    room: Vec<String>,
    /// The name of a hash to watch. Repeated for each hash.
    #[serde(default)]
    hash: Vec<String>,
    /// Only changes of fields with this name, in all hashes. Can be repeated.
    #[serde(default)]
    field: Vec<String>,
    /// The cursor to continue after: the last `id:` of an earlier stream. `Last-Event-ID` and `lastEventId`, which
    /// clients add when they reconnect, are newer and win over this parameter.
    after: Option<String>,
    /// Where clients that can't set headers put the last `id:` when they reconnect. It wins over `after`, and the header
    /// `Last-Event-ID` over both. `lastEventID` and `Last-Event-ID` are the same parameter; the last one counts.
    #[serde(default, rename = "lastEventId")]
    // Generated clients would give it the header's name.
    #[param(ignore)]
    last_event_id: Vec<String>,
    /// `earliest`: start with the oldest event in the log of each room. A cursor wins over this parameter.
    #[param(inline)]
    from: Option<StartFrom>,
    /// Start with this number of the last events of each room. A cursor wins over this parameter.
    #[param(maximum = 1000)]
    recent: Option<u64>,
    /// Only events with this name. Can be repeated.
    #[serde(default)]
    event: Vec<String>,
    /// `cut`: after a `stream.end` that asks the client to reconnect, the connection is cut instead of ended properly.
    /// For clients that reconnect only after an error.
    #[param(inline)]
    end: Option<EndOption>,
    /// Seconds after which an idle stream gets a heartbeat, in place of the gateway's `--heartbeat`.
    #[param(minimum = 5, maximum = 300)]
    heartbeat: Option<u64>,
    /// Whether a heartbeat is a `stream.position`, which a page sees, in place of a comment.
    #[serde(default)]
    heartbeat_event: bool,
    /// The subscriber's id, the same at each reconnect; random by default. The stream skips events that name it in
    /// `except`. In rooms with presence, the id is the subscriber's name in the member list: it belongs to the
    /// caller, and a newer stream with it ends the older one.
    subscriber: Option<String>,
    /// Whether the stream also carries `presence.join` and `presence.leave`.
    #[serde(default)]
    presence: bool,
    /// The profile that other members see: any JSON, up to 1,024 bytes. Allowed only if the gateway runs with
    /// `--presence-info query`.
    #[param(max_length = 1024, example = json!("{\"name\":\"Ann\"}"))]
    info: Option<String>,
}

/// Stream a room
///
/// The response is a stream of Server-Sent Events. It begins with `stream.open`, which has a position. The room's
/// events follow as they were published. An idle stream gets comments. A client that reconnects with the last `id:`
/// that it got, as browsers do, misses no event that the log still holds. `stream.gap` reports events that may be
/// missing. After the room's final event, the stream ends with `finished`.
#[utoipa::path(
    get, path = "/v1/rooms/{room}/stream", operation_id = "streamRoom", tag = "Streams",
    params(("room" = String, Path, description = "The room's name", example = "lobby"),
        StreamQuery,
        ("Last-Event-ID" = Option<String>, Header, description = "The position to continue after; browsers send it. Of several, separated by commas, the last one counts")),
    responses(
        (status = 204, description = "The caller was removed from the room for a time; or nothing follows its position, since the room has its final event; an `EventSource` gives up"),
        (status = 200, description = "The stream; or, if it is refused for now, one `stream.end`",
            body = String, content_type = "text/event-stream"),
    ),
)]
pub async fn stream_room(
    caller: Result<Caller, Problem>,
    RoomPath(room): RoomPath,
    QueryParams(query): QueryParams<StreamQuery>,
    State(app): State<App>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let last_id = resume_point(&headers, &query.last_event_id, query.after.as_deref())?;
    let ending = EndOption::ending(query.end);
    let caller = match caller {
        Ok(caller) => caller,
        Err(problem) => return refuse_caller(&app, problem, last_id, ending),
    };
    caller.require(Permission::Subscribe, room.as_str())?;
    let resume = last_id.map(|id| parse_position("Last-Event-ID, lastEventId or after", id)).transpose()?;
    let start = resume.map_or(fresh_start(query.from, query.recent)?, Start::After);
    let options = StreamOptions {
        format: StreamFormat::Single,
        ending,
        heartbeat: query.heartbeat,
        heartbeat_event: query.heartbeat_event,
        event: &query.event,
        field: &[],
        subscriber: query.subscriber,
        presence: query.presence,
        info: query.info,
        is_head: method == Method::HEAD,
        last_id: resume.map(|id| id.to_string()),
    };
    open(&app, caller, vec![(room.into(), start)], options).await
}

/// Stream several rooms and hashes
///
/// One connection carries the events of several rooms and the changes of several hashes, which are told as on a stream of
/// one hash. Each event of a room is in an envelope, `{"room", "id", "event", "data",
/// "published_at", "publish_id"?, "final"?}`, and the `id:` of its block is an opaque cursor for all. The lists of rooms and
/// hashes may change between connections. Without hashes, the stream ends with `finished` after the final events of all
/// rooms.
#[utoipa::path(
    get, path = "/v1/stream", operation_id = "streamRooms", tag = "Streams",
    params(StreamRoomsQuery,
        ("Last-Event-ID" = Option<String>, Header, description = "The cursor to continue after; browsers send it. Of several, separated by commas, the last one counts")),
    responses(
        (status = 204,
            description = "The caller was removed from one of the rooms for a time; or nothing follows its position, since all the rooms have their final events; an `EventSource` gives up"),
        (status = 200, description = "The stream; or, if it is refused for now, one `stream.end`",
            body = String, content_type = "text/event-stream"),
    ),
)]
pub async fn stream_rooms(
    caller: Result<Caller, Problem>,
    QueryParams(query): QueryParams<StreamRoomsQuery>,
    State(app): State<App>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let last_id = resume_point(&headers, &query.last_event_id, query.after.as_deref())?;
    let ending = EndOption::ending(query.end);
    let caller = match caller {
        Ok(caller) => caller,
        Err(problem) => return refuse_caller(&app, problem, last_id, ending),
    };
    if query.hash.is_empty() {
        caller.require_some(Permission::Subscribe)?;
    }
    let limit = usize::from(app.settings.streams.max_rooms_per_stream);
    if query.room.len() + query.hash.len() > limit {
        let detail = format!("the query names more than {limit} rooms and hashes (--max-rooms-per-stream)");
        return Err(Problem::new(Code::TooManyRooms, detail));
    }
    let cursor = last_id.map(Cursor::decode).transpose();
    let cursor = cursor.map_err(|why| Problem::new(Code::InvalidPosition, why.to_string()))?;
    let fresh = fresh_start(query.from, query.recent)?;
    let mut topics: Vec<(Topic, Start)> = Vec::with_capacity(query.room.len() + query.hash.len());
    let mut add = |topic: Topic, fresh| {
        if topics.iter().any(|(other, _)| *other == topic) {
            return Err(Problem::new(Code::InvalidQuery, format!("the query names the {topic} twice")));
        }
        let bookmark = cursor.as_ref().map(|cursor| cursor.bookmark(&topic));
        let start = match (&topic, bookmark) {
            (Topic::Room(_), None) => fresh,
            (Topic::Room(_), Some(bookmark)) => bookmark.map_or(Start::Now, |bookmark| Start::After(bookmark.id)),
            (Topic::Hash(_), bookmark) => Start::Watch(bookmark.flatten(), selection(&query.field)),
        };
        topics.push((topic, start));
        Ok(())
    };
    for text in &query.room {
        let room = parse_name("the room", text, RoomName::new)?;
        caller.require(Permission::Subscribe, room.as_str())?;
        add(room.into(), fresh)?;
    }
    for text in &query.hash {
        let hash = parse_name("the hash", text, HashName::new)?;
        caller.require(Permission::Read, hash.as_str())?;
        add(hash.into(), fresh)?;
    }
    if topics.is_empty() {
        let detail = "the query must name a room or a hash, as in ?room=lobby&hash=lamp";
        return Err(Problem::new(Code::InvalidQuery, detail));
    }
    if let Err(problem) = caller.spend(&app, topics.len(), 0).await {
        return refuse_caller(&app, problem, last_id, ending);
    }
    let options = StreamOptions {
        format: StreamFormat::Enveloped,
        ending,
        heartbeat: query.heartbeat,
        heartbeat_event: query.heartbeat_event,
        event: &query.event,
        field: &query.field,
        subscriber: query.subscriber,
        presence: query.presence,
        info: query.info,
        is_head: method == Method::HEAD,
        last_id: last_id.map(str::to_owned),
    };
    open(&app, caller, topics, options).await
}

/// The query of a stream of a hash.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WatchQuery {
    /// Only this field. Can be repeated.
    #[serde(default)]
    field: Vec<String>,
    /// The position to continue after: the last `id:` of an earlier stream, or `position` of a list of the hash's fields.
    /// `Last-Event-ID` and `lastEventId`, which clients add when they reconnect, are newer and win over this parameter.
    after: Option<String>,
    /// Where clients that can't set headers put the last `id:` when they reconnect. It wins over `after`, and the header
    /// `Last-Event-ID` over both. `lastEventID` and `Last-Event-ID` are the same parameter; the last one counts.
    #[serde(default, rename = "lastEventId")]
    // Generated clients would give it the header's name.
    #[param(ignore)]
    last_event_id: Vec<String>,
    /// `cut`: after a `stream.end` that asks the client to reconnect, the connection is cut instead of ended properly.
    /// For clients that reconnect only after an error.
    #[param(inline)]
    end: Option<EndOption>,
    /// Seconds after which an idle stream gets a heartbeat, in place of the gateway's `--heartbeat`.
    #[param(minimum = 5, maximum = 300)]
    heartbeat: Option<u64>,
    /// Whether a heartbeat is a `stream.position`, which a page sees, in place of a comment.
    #[serde(default)]
    heartbeat_event: bool,
}

/// Stream a hash
///
/// The response is a stream of Server-Sent Events: `stream.open`; then the present fields as `hash.snapshot`, in one or
/// more parts, of which the last one has `"last":true`; then each change as `hash.set`, `hash.delete` or `hash.clear`.
/// Values come with their entity tags, so that a client can write with `If-Match` what it has seen. A client that
/// reconnects with the last `id:` that it got gets the changes since, or a new snapshot. `stream.gap` reports that
/// changes may be missing; a snapshot follows.
#[utoipa::path(
    get, path = "/v1/hashes/{hash}/stream", operation_id = "streamHash", tag = "Streams",
    params(("hash" = String, Path, description = "The hash's name", example = "lamp"), WatchQuery,
        ("Last-Event-ID" = Option<String>, Header, description = "The position to continue after; browsers send it. Of several, separated by commas, the last one counts")),
    responses(
        (status = 204, description = "The caller was removed for a time; an `EventSource` gives up"),
        (status = 200, description = "The stream; or, if it is refused for now, one `stream.end`",
            body = String, content_type = "text/event-stream"),
        (status = 409, description = "The key in Redis has another type; or the hash is too large to be watched"),
    ),
)]
pub async fn stream_hash(
    caller: Result<Caller, Problem>,
    HashPath(hash): HashPath,
    QueryParams(query): QueryParams<WatchQuery>,
    State(app): State<App>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let last_id = resume_point(&headers, &query.last_event_id, query.after.as_deref())?;
    let ending = EndOption::ending(query.end);
    let caller = match caller {
        Ok(caller) => caller,
        Err(problem) => return refuse_caller(&app, problem, last_id, ending),
    };
    caller.require(Permission::Read, hash.as_str())?;
    let bookmark = last_id.map(str::parse::<Bookmark>).transpose();
    let bookmark = bookmark.map_err(|why| Problem::new(Code::InvalidPosition, why.to_string()))?;
    let options = StreamOptions {
        ending,
        heartbeat: query.heartbeat,
        heartbeat_event: query.heartbeat_event,
        field: &query.field,
        is_head: method == Method::HEAD,
        last_id: last_id.map(str::to_owned),
        ..StreamOptions::default()
    };
    open(&app, caller, vec![(hash.into(), Start::Watch(bookmark, selection(&query.field)))], options).await
}

/// A number for the fields that a stream selects; 0 for all.
fn selection(fields: &[String]) -> u64 {
    let names: BTreeSet<_> = fields.iter().map(String::as_str).collect();
    if names.is_empty() {
        return 0;
    }
    // No name has a control character.
    digest(names.into_iter().collect::<Vec<_>>().join("\n").as_bytes()) & MAX_NUMBER
}

/// The start of a stream without a position.
fn fresh_start(from: Option<StartFrom>, recent: Option<u64>) -> Result<Start, Problem> {
    match (from, recent) {
        (None, None) => Ok(Start::Now),
        (Some(StartFrom::Earliest), None) => Ok(Start::Earliest),
        (None, Some(count)) if count <= MAX_RECENT => Ok(Start::Recent(count)),
        (None, Some(_)) => Err(Problem::new(Code::InvalidQuery, format!("recent must be {MAX_RECENT} or less"))),
        (Some(_), Some(_)) => {
            Err(Problem::new(Code::InvalidQuery, "the query may have from or recent, but not both"))
        }
    }
}

/// The newest position that a client has. It sends the header when it reconnects, or `lastEventId` if it can't; `after`
/// is in the address from the start. A client that has set a header of its own sends both: `first, newest`. A client
/// without a position may send it empty.
fn resume_point<'a>(
    headers: &'a HeaderMap,
    last_event_id: &'a [String],
    after: Option<&'a str>,
) -> Result<Option<&'a str>, Problem> {
    let lines = headers.get_all("last-event-id").iter().map(|line| line.to_str());
    let lines = lines.collect::<Result<Vec<_>, _>>().map_err(|_| {
        Problem::new(Code::InvalidHeader, "last-event-id has characters that are not visible ASCII")
    })?;
    let mut given = lines.into_iter().flat_map(|line| line.split(',')).map(str::trim);
    let header = given.rfind(|id| !id.is_empty());
    Ok(header.or_else(|| last_event_id.last().map(String::as_str)).or(after).filter(|id| !id.is_empty()))
}
