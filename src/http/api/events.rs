//! Publishing events, and reading a room's log.

use std::time::Instant;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::task::yield_now;
use utoipa::{IntoParams, ToSchema};

use crate::auth::Permission;
use crate::broker::{Appended, IdempotencyKey, ReadRange};
use crate::http::caller::Caller;
use crate::http::extract::{Media, Object, Query, RoomPath, body, event_name, json, media, text};
use crate::http::page::{add_link, escape, page_limit};
use crate::http::problem::{Code, Document, Problem};
use crate::http::{App, idempotency};
use crate::live::LogPage;
use crate::log::{Gap, Next, next};
use crate::names::{Data, Event, EventId, EventName, RoomName, SubscriberId};
use crate::trace;

/// Subscribers that an event can leave out.
const MAX_EXCEPT: usize = 100;
const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;

/// An event to publish.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"event": "chat", "data": {"text": "hello"}}))]
pub struct Publish {
    /// Names the kind of event; browsers call one without a name `message`.
    #[schema(value_type = Option<String>, max_length = 128, example = "chat")]
    event: Option<EventName>,
    /// Any JSON. It reaches subscribers as it was sent: numbers keep their digits.
    #[schema(value_type = serde_json::Value)]
    data: Box<RawValue>,
    /// Subscribers that do not get it.
    #[serde(default)]
    #[schema(value_type = Vec<String>, max_items = 100)]
    except: Vec<SubscriberId>,
}

/// Where an event was stored.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({"room": "lobby", "id": "1790000000000000-42"}))]
pub struct Published {
    /// The room.
    pub(super) room: String,
    /// The event's id.
    pub(super) id: String,
}

/// How a text body is published.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PublishQuery {
    /// Names the event of a text body; a JSON body names its own.
    #[param(max_length = 128)]
    event: Option<String>,
}

pub(super) fn event(
    app: &App,
    name: Option<EventName>,
    data: Data,
    except: Vec<SubscriberId>,
    publish_id: Option<String>,
) -> Result<Event, Problem> {
    let limit = app.settings.requests.max_event_bytes;
    if data.as_text().len() > limit {
        return Err(Problem::new(Code::BodyTooLarge, format!("an event's data is at most {limit} bytes")));
    }
    if except.len() > MAX_EXCEPT {
        let detail = format!("an event can leave out {MAX_EXCEPT} subscribers at most");
        return Err(Problem::new(Code::InvalidBody, detail));
    }
    Ok(Event {
        name,
        data,
        published_at: format!("{:.3}", jiff::Timestamp::now()),
        except,
        publish_id,
        traceparent: trace::current(),
    })
}

pub(super) async fn store(
    app: &App,
    room: &RoomName,
    event: &Event,
    idempotency_key: Option<&IdempotencyKey>,
) -> Result<Appended, Problem> {
    let began = Instant::now();
    let appended = app.log.append(&room.clone().into(), event, idempotency_key).await?;
    if !appended.replayed {
        app.metrics.published(began.elapsed());
    }
    Ok(appended)
}

pub(super) fn json_data(raw: &RawValue) -> Result<Data, Problem> {
    Data::json(raw).map_err(|why| Problem::new(Code::InvalidBody, format!("the data is refused: {why}")))
}

/// Publish an event to a room
///
/// A JSON body is `{"event"?, "data", "except"?}`. Any text body (`text/plain`, and what `curl -d` sends) is the data
/// itself. 201 means that the event is stored, and that every subscriber of the room on every replica gets it.
/// After `outcome_unknown` it may or may not be stored.
#[utoipa::path(
    post, path = "/v1/rooms/{room}/events", operation_id = "publishEvent", tag = "Rooms",
    params(("room" = String, Path, description = "The room's name", max_length = 128, example = "lobby"), PublishQuery,
        ("Idempotency-Key" = Option<String>, Header, max_length = 255,
            description = "Makes it safe to repeat the request: with the same key and content nothing is stored twice")),
    request_body(description = "The event", content(
        (Publish = "application/json", example = json!({"event": "chat", "data": {"text": "hello"}})),
        (String = "text/plain", example = "hello")
    )),
    responses(
        (status = 201, description = "Stored", body = Published,
            headers(("Idempotency-Replayed" = String, description = "`true` if an earlier request with this key stored it"))),
        (status = 413, description = "The body or the event is too large", body = Document, content_type = "application/problem+json"),
        (status = 415, description = "Neither JSON nor text", body = Document, content_type = "application/problem+json"),
        (status = 422, description = "The key was used for other content", body = Document, content_type = "application/problem+json"),
    )
)]
pub async fn publish_event(
    caller: Caller,
    RoomPath(room): RoomPath,
    Query(query): Query<PublishQuery>,
    State(app): State<App>,
    request: Request,
) -> Result<Response, Problem> {
    caller.require(Permission::Publish, room.as_str())?;
    let key = idempotency::key_of(request.headers())?.map(str::to_owned);
    let media = media(request.headers())?;
    let body = body(request, &app).await?;
    let event = match media {
        Media::Json if query.event.is_some() => {
            return Err(Problem::new(
                Code::InvalidQuery,
                "a JSON body names its event itself, in its field \"event\"",
            ));
        }
        Media::Json => {
            let Object(publish) = json::<Object<Publish>>(&body)?;
            event(&app, publish.event, json_data(&publish.data)?, publish.except, None)?
        }
        Media::Text => {
            let name = query.event.as_deref().map(event_name).transpose()?;
            event(&app, name, text_data(&body)?, Vec::new(), None)?
        }
        Media::Bytes => {
            let detail = "events are JSON or text; application/octet-stream is neither";
            return Err(Problem::new(Code::UnsupportedMediaType, detail));
        }
    };
    let idempotency_key = key.map(|key| idempotency::idempotency_key(&caller.owner(), &key, &event));
    let appended = store(&app, &room, &event, idempotency_key.as_ref()).await?;
    // Subscribers first: whom the event has woken on this thread writes before the publisher is answered.
    yield_now().await;
    let published = Published { room: room.to_string(), id: appended.id.to_string() };
    let mut response = (StatusCode::CREATED, Json(published)).into_response();
    if appended.replayed {
        response.headers_mut().insert(idempotency::REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

fn text_data(body: &[u8]) -> Result<Data, Problem> {
    match text(body)? {
        "" => Err(Problem::new(Code::InvalidBody, "the body is empty; it is the event's data")),
        text => Ok(Data::Text(text.into())),
    }
}

/// Which part of a log to read.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Only events after this id.
    #[param(value_type = Option<String>, example = "1790000000000000-41")]
    after: Option<String>,
    /// Only events before this id; without `after`, the last ones before it.
    #[param(value_type = Option<String>)]
    before: Option<String>,
    /// How many at most.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<usize>,
}

/// A part of a room's log.
#[derive(Serialize, ToSchema)]
pub struct EventList {
    /// The room.
    room: String,
    /// Oldest first.
    events: Vec<LoggedEvent>,
    /// The id of the oldest retained event.
    #[schema(required = true)]
    oldest: Option<String>,
    /// The log's last position: what a stream that is opened now starts after.
    #[schema(example = "1790000000000000-42")]
    head: String,
    /// Set if the log no longer reaches back to `after`: events may be missing.
    #[schema(required = true)]
    gap: Option<GapDescription>,
}

/// An event of a log.
#[derive(Serialize, ToSchema)]
pub struct LoggedEvent {
    /// Its id.
    #[schema(example = "1790000000000000-42")]
    id: String,
    /// Its name, if it was given one.
    #[schema(required = true)]
    event: Option<String>,
    /// Its data as it was published; a text body as a JSON string.
    #[schema(value_type = serde_json::Value)]
    data: Box<RawValue>,
    /// When, RFC 3339 in UTC.
    #[schema(format = DateTime)]
    published_at: String,
    /// Shared by the copies of one publish into several rooms.
    #[serde(skip_serializing_if = "Option::is_none")]
    publish_id: Option<String>,
}

/// What may be missing lies after `from`, up to and with `to`.
#[derive(Serialize, ToSchema)]
pub struct GapDescription {
    /// The last position that certainly holds.
    from: String,
    /// The position from which it goes on.
    to: String,
    /// `trimmed`, `expired`, `log_lost`, `lost_tail`, `diverged` or `unknown_position`.
    reason: String,
}

impl GapDescription {
    pub(super) fn of(gap: &Gap) -> Self {
        Self { from: gap.from.to_string(), to: gap.to.to_string(), reason: gap.reason.name().into() }
    }
}

/// Read a room's log
///
/// The retained events, oldest first, a page at a time: `Link` with `rel="next"` leads to the next one. A page of large
/// events may have fewer than `limit`.
#[utoipa::path(
    get, path = "/v1/rooms/{room}/events", operation_id = "listEvents", tag = "Rooms",
    params(("room" = String, Path, description = "The room's name", max_length = 128, example = "lobby"), ListQuery),
    responses((status = 200, description = "A part of the log", body = EventList,
        headers(("Link" = String, description = "The next page, if there is more")))),
)]
pub async fn list_events(
    caller: Caller,
    RoomPath(room): RoomPath,
    Query(query): Query<ListQuery>,
    State(app): State<App>,
) -> Result<Response, Problem> {
    caller.require(Permission::Subscribe, room.as_str())?;
    let limit = page_limit(query.limit, DEFAULT_LIMIT, MAX_LIMIT)?;
    let after = query.after.as_deref().map(|id| position("after", id)).transpose()?;
    let before = query.before.as_deref().map(|id| position("before", id)).transpose()?;
    let range = match (after, before) {
        (Some(after), _) => ReadRange::After(after),
        (None, Some(before)) => ReadRange::Before(before),
        (None, None) => ReadRange::Oldest,
    };
    // One more than asked for tells whether there is a next page.
    let LogPage { mut slice, is_cut_short } = app.log.read_page(&room.clone().into(), range, limit + 1).await?;
    let gap = after.and_then(|after| match next(&slice.history, &slice, after, None) {
        Next::Gap(gap) => Some(gap),
        Next::Event(_) | Next::Nothing => None,
    });
    if let (Some(_), Some(before)) = (after, before) {
        slice.entries.retain(|entry| entry.id < before);
    }
    let beyond = slice.entries.len() > limit;
    let more = beyond || (is_cut_short && !slice.entries.is_empty());
    let mut next_page = None;
    if more && matches!(range, ReadRange::Before(_)) {
        slice.entries.drain(..usize::from(beyond));
        next_page = slice.entries.first().map(|first| format!("before={}", first.id));
    } else if more {
        slice.entries.truncate(limit);
        let until = before.map(|before| format!("&before={before}")).unwrap_or_default();
        next_page = slice.entries.last().map(|last| format!("after={}{until}", last.id));
    }
    let sees_presence = caller.may(Permission::Presence, room.as_str());
    let events = slice.entries.iter().filter_map(|entry| {
        let event = Event::decode(&entry.stored).ok().filter(|event| sees_presence || !event.is_presence())?;
        Some(LoggedEvent {
            id: entry.id.to_string(),
            data: event.data.as_json().into_owned(),
            event: event.name.map(|name| name.to_string()),
            published_at: event.published_at,
            publish_id: event.publish_id,
        })
    });
    let list = EventList {
        room: room.to_string(),
        events: events.collect(),
        oldest: slice.oldest.map(|id| id.to_string()),
        head: slice.history.end().to_string(),
        gap: gap.as_ref().map(GapDescription::of),
    };
    let mut response = Json(list).into_response();
    if let Some(page) = next_page {
        add_link(&mut response, &format!("/v1/rooms/{}/events?limit={limit}&{page}", escape(room.as_str())));
    }
    Ok(response)
}

/// Empty a room's log
///
/// Drops the retained events, for everyone; the room's position stays. A client that resumes from before it gets
/// `stream.gap`.
#[utoipa::path(
    delete, path = "/v1/rooms/{room}/events", operation_id = "deleteEvents", tag = "Rooms",
    params(("room" = String, Path, description = "The room's name", max_length = 128, example = "lobby")),
    responses((status = 204, description = "The log is empty")),
)]
pub async fn delete_events(
    caller: Caller,
    RoomPath(room): RoomPath,
    State(app): State<App>,
) -> Result<StatusCode, Problem> {
    caller.require_admin()?;
    app.live.clear(&room.into()).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) fn position(what: &str, text: &str) -> Result<EventId, Problem> {
    text.parse().map_err(|why| Problem::new(Code::InvalidPosition, format!("{what}: {text:?} is {why}")))
}

#[cfg(test)]
mod fuzz;
