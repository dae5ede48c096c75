//! Events of a room: publishing them, and reading and emptying the room's log.

mod wait;

use std::time::Instant;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::task::yield_now;
use utoipa::{IntoParams, ToSchema};

use self::wait::{WaitOutcome, wait, wait_time};
use crate::auth::Permission;
use crate::broker::{Appended, BrokerError, IdempotencyKey, ReadLimit, ReadRange};
use crate::delivery::page::{EventPage, PageEvent, PageGap};
use crate::http::body::read_typed_body;
use crate::http::caller::Caller;
use crate::http::entity_tags::{Tags, quoted};
use crate::http::extract::{BodyType, JsonObject, QueryParams, RoomPath, body_text, parse_event_name, parse_json};
use crate::http::openapi::EventListSchema;
use crate::http::page::{add_link, escape, page_limit};
use crate::http::problem::{Code, Problem};
use crate::http::{App, idempotency};
use crate::live::{AppendError, LogPage};
use crate::log::{LogView, Next};
use crate::names::{Data, Event, EventId, EventName, RoomName, SubscriberId, Topic};
use crate::{timestamp, trace};

/// How many times `--max-event-bytes` an event's data may take in a stream: each line break costs six bytes more, and so
/// do control characters in JSON.
const ENCODED_FACTOR: usize = 2;
/// Subscribers that an event can exclude.
const MAX_EXCEPT: usize = 100;
const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;

/// An event to publish.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"event": "chat", "data": {"text": "hello"}}))]
pub struct Publish {
    /// The event's name. Browsers call an event without a name `message`.
    #[schema(value_type = Option<String>, example = "chat")]
    event: Option<EventName>,
    /// The event's data: any JSON. It reaches subscribers as it was sent; numbers keep their digits.
    #[schema(value_type = serde_json::Value)]
    data: Box<RawValue>,
    /// The subscribers that do not get the event.
    #[schema(value_type = Vec<String>, max_items = 100, required = false)]
    except: Option<Vec<SubscriberId>>,
    /// Whether it is the room's last event.
    #[serde(rename = "final")]
    #[schema(rename = "final", value_type = bool, required = false)]
    is_final: Option<bool>,
}

/// Where an event is stored.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({"room": "lobby", "id": "1790000000000000-42"}))]
pub struct Published {
    /// The room's name.
    pub(super) room: String,
    /// The event's id.
    pub(super) id: String,
}

/// The query of a publish.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PublishQuery {
    /// The name of an event whose body is text. A JSON body has the name itself.
    event: Option<String>,
    /// Whether an event whose body is text is the room's last one. A JSON body has `final` itself.
    #[serde(rename = "final")]
    #[param(rename = "final")]
    is_final: Option<bool>,
}

/// Makes an event that is published now. Checks the limits of its parts.
pub(super) fn new_event(
    app: &App,
    name: Option<EventName>,
    data: Data,
    except: Vec<SubscriberId>,
    publish_id: Option<String>,
    is_final: bool,
) -> Result<Event, Problem> {
    let limit = app.settings.requests.max_event_bytes;
    if data.as_text().len() > limit {
        let detail = format!("the event's data has more than {limit} bytes (--max-event-bytes)");
        return Err(Problem::new(Code::BodyTooLarge, detail));
    }
    if data.most_encoded_bytes() > ENCODED_FACTOR * limit {
        let detail = format!(
            "the event's line breaks or control characters make it take more than {ENCODED_FACTOR} times {limit} bytes \
             in a stream (--max-event-bytes)"
        );
        return Err(Problem::new(Code::BodyTooLarge, detail));
    }
    if except.len() > MAX_EXCEPT {
        let detail = format!("except has more than {MAX_EXCEPT} subscribers");
        return Err(Problem::new(Code::InvalidBody, detail));
    }
    let traceparent = trace::current();
    let published_at = timestamp::now();
    Ok(Event { name, data, published_at, except, publish_id, traceparent, is_final, last_message: None })
}

/// Appends an event of a caller to a room's log, and counts it.
pub(super) async fn store(
    app: &App,
    caller: &Caller,
    room: &RoomName,
    event: &Event,
    after: Option<&[EventId]>,
    idempotency_key: Option<&IdempotencyKey>,
) -> Result<Appended, Problem> {
    let began = Instant::now();
    let topic = room.clone().into();
    let appended = app.log.append_after(&topic, event, after, idempotency_key, &caller.key()).await;
    let appended = match appended {
        Ok(appended) => appended,
        Err(AppendError::Broker(BrokerError::HeadMoved)) => return Err(head_moved(app, &topic).await),
        Err(error) => {
            if matches!(error, AppendError::TooManyTopics { .. }) {
                app.metrics.rejected("written_rooms", "event");
            }
            return Err(error.into());
        }
    };
    if !appended.replayed {
        app.metrics.published(began.elapsed());
    }
    Ok(appended)
}

/// The problem of a publish whose condition failed, with the room's present head.
async fn head_moved(app: &App, topic: &Topic) -> Problem {
    let detail = "events came after the positions in If-Match, or are lost there; read what came, then publish with \
                  If-Match of the present head";
    match app.log.peek(topic, ReadRange::Newest, LogView::Messages, ReadLimit::HISTORY).await {
        Ok(slice) => Problem::head_moved(detail, slice.message_end()),
        // The refusal is certain all the same.
        Err(_) => Problem::new(Code::PreconditionFailed, detail),
    }
}

/// The `ETag` of a room's log: the position of its last message. Presence events do not change it.
pub(super) fn position_tag(position: EventId) -> HeaderValue {
    quoted(&position.to_string())
}

/// The positions in `If-Match` of a publish. A tag that is no position is another server's.
fn positions_to_match(headers: &HeaderMap) -> Result<Option<Vec<EventId>>, Problem> {
    let refuse = |detail| Err(Problem::new(Code::InvalidHeader, detail));
    if headers.contains_key(header::IF_NONE_MATCH) {
        return refuse("a publish does not support If-None-Match; use If-Match with the room's ETag");
    }
    match Tags::from_header(headers, &header::IF_MATCH)? {
        None => Ok(None),
        Some(Tags::These(tags)) => Ok(Some(tags.iter().filter_map(|tag| tag.parse().ok()).collect())),
        Some(Tags::Any) => refuse("If-Match of a publish must be the room's ETag; every room matches *"),
    }
}

/// Checks the data of an event in a JSON body.
pub(super) fn json_data(raw: &RawValue) -> Result<Data, Problem> {
    Data::json(raw).map_err(|why| Problem::new(Code::InvalidBody, format!("the data is not allowed: {why}")))
}

/// Publish an event to a room
///
/// A JSON body is `{"event"?, "data", "except"?, "final"?}`. A text body (`text/*`, or what `curl -d` sends) is the event's
/// data, and `event` in the query is its name. After an event with `final`, the room takes no other one, and its streams
/// end. A JSON object without its `Content-Type` is refused with 415. 201 means that the event is stored, and that every subscriber of the
/// room on every replica gets it. After `outcome_unknown`, the event may or may not be stored. With `If-Match`, the event
/// is stored only if no other one came after one of these positions; presence events do not count.
#[utoipa::path(
    post, path = "/v1/rooms/{room}/events", operation_id = "publishEvent", tag = "Rooms",
    params(("room" = String, Path, description = "The room's name", example = "lobby"), PublishQuery,
        ("If-Match" = Option<String>, Header, description = "Publish only if no event came after one of these positions: \
the `ETag` of the room, of its log or of an earlier publish"),
        ("Idempotency-Key" = Option<String>, Header, max_length = 255,
            description = "Makes the request safe to repeat: the same key with the same content stores nothing twice")),
    request_body(content = Publish, content_type = "application/json", description = "The event. Text, as \
`text/plain`, is possible too.", example = json!({"event": "chat", "data": {"text": "hello"}})),
    responses(
        (status = 201, description = "The event is stored", body = Published,
            headers(("ETag" = String, description = "The event's id, for `If-Match` of the next publish"),
                ("Idempotency-Replayed" = String,
                    description = "`true` if an earlier request with this key has stored the event"))),
        (status = 409, description = "The room has its final event; or the key in Redis has another type"),
        (status = 412, description = "Events came after the positions in `If-Match`, or are lost there; `head` and `ETag` \
are the present position of the last event",
            headers(("ETag" = String, description = "The position of the room's last event"))),
        (status = 413, description = "The body or the event's data is too large"),
        (status = 415, description = "The body is neither JSON nor text"),
        (status = 422, description = "The idempotency key was used for other content"),
    )
)]
pub async fn publish_event(
    caller: Caller,
    RoomPath(room): RoomPath,
    QueryParams(query): QueryParams<PublishQuery>,
    State(app): State<App>,
    request: Request,
) -> Result<Response, Problem> {
    caller.require(Permission::Publish, room.as_str())?;
    let key = idempotency::key_from_headers(request.headers())?.map(str::to_owned);
    let after = positions_to_match(request.headers())?;
    let body_type = BodyType::from_headers(request.headers())?;
    let body = read_typed_body(body_type, request, &app, &caller).await?;
    let event = match body_type {
        BodyType::Json if query.event.is_some() || query.is_final.is_some() => {
            let detail = "a JSON body has the event's name in its field \"event\", and \"final\" beside it; remove event \
                          and final from the query";
            return Err(Problem::new(Code::InvalidQuery, detail));
        }
        BodyType::Json => {
            let JsonObject(publish) = parse_json::<JsonObject<Publish>>(&body)?;
            let (except, is_final) = (publish.except.unwrap_or_default(), publish.is_final.unwrap_or_default());
            new_event(&app, publish.event, json_data(&publish.data)?, except, None, is_final)?
        }
        BodyType::Text | BodyType::Untyped => {
            let name = query.event.as_deref().map(parse_event_name).transpose()?;
            new_event(&app, name, text_data(&body)?, Vec::new(), None, query.is_final.unwrap_or_default())?
        }
        BodyType::Bytes => {
            let detail = "the Content-Type is not supported; an event is application/json or text/plain";
            return Err(Problem::new(Code::UnsupportedMediaType, detail));
        }
    };
    caller.spend(&app, 1, event.sent_bytes()).await?;
    let after = after.as_deref();
    let idempotency_key = key.map(|key| idempotency::idempotency_key(&caller.owner(), &key, &event, after));
    let appended = store(&app, &caller, &room, &event, after, idempotency_key.as_ref()).await?;
    // Subscribers first: tasks that the event has woken on this thread write before the publisher is answered.
    yield_now().await;
    let published = Published { room: room.to_string(), id: appended.id.to_string() };
    let tag = [(header::ETAG, position_tag(appended.id))];
    let mut response = (StatusCode::CREATED, tag, Json(published)).into_response();
    if appended.replayed {
        response.headers_mut().insert(idempotency::REPLAYED, HeaderValue::from_static("true"));
    }
    Ok(response)
}

fn text_data(body: &[u8]) -> Result<Data, Problem> {
    match body_text(body)? {
        "" => Err(Problem::new(Code::InvalidBody, "the body is empty; it must be the event's data")),
        text => Ok(Data::Text(text.into())),
    }
}

/// The query of a log.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Only events after this id.
    #[param(value_type = Option<String>, pattern = "^[0-9]{1,16}-[0-9]{1,16}$", example = "1790000000000000-41")]
    after: Option<String>,
    /// Only events before this id. Without `after`, the last ones before it.
    #[param(value_type = Option<String>, pattern = "^[0-9]{1,16}-[0-9]{1,16}$")]
    before: Option<String>,
    /// The maximum number of events.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<usize>,
    /// Seconds to wait for an event if nothing follows `after`. Without `after`, for one that is published from now on.
    #[param(minimum = 1, maximum = 60)]
    wait: Option<u64>,
}

/// What a caller gets of a room's log.
pub(super) fn log_view(caller: &Caller, room: &RoomName) -> LogView {
    if caller.may(Permission::Presence, room.as_str()) { LogView::All } else { LogView::Messages }
}

/// Read a room's log
///
/// The response has events of the log, oldest first. `Link` with `rel="next"` leads to the next page. A page has fewer
/// than `limit` events if they take more than 1 MiB, or if many events lie between them that the caller does not get.
/// With `wait`, the response comes when an event has come, or is empty after that time. The next request has its `next`
/// as `after`. A read that waits counts as a stream, and ends as one.
#[utoipa::path(
    get, path = "/v1/rooms/{room}/events", operation_id = "listEvents", tag = "Rooms",
    params(("room" = String, Path, description = "The room's name", example = "lobby"), ListQuery),
    responses((status = 200, description = "A part of the log", body = EventListSchema,
        headers(("ETag" = String, description = "The position of the log's last message, for `If-Match` of a publish"),
            ("Link" = String, description = "The next page, if there is one")))),
)]
pub async fn list_events(
    caller: Caller,
    RoomPath(room): RoomPath,
    QueryParams(query): QueryParams<ListQuery>,
    State(app): State<App>,
    method: Method,
) -> Result<Response, Problem> {
    caller.require(Permission::Subscribe, room.as_str())?;
    let limit = page_limit(query.limit, DEFAULT_LIMIT, MAX_LIMIT)?;
    let mut after = query.after.as_deref().map(|id| parse_position("after", id)).transpose()?;
    let before = query.before.as_deref().map(|id| parse_position("before", id)).transpose()?;
    if let Some(seconds) = query.wait {
        let time = wait_time(seconds)?;
        if before.is_some() {
            return Err(Problem::new(Code::InvalidQuery, "a read with before can't wait; leave out wait"));
        }
        if method == Method::GET {
            // In a box: reads that do not wait need no memory for it.
            match Box::pin(wait(&app, &caller, &room, after, time, limit)).await? {
                WaitOutcome::Follows(position) => after = Some(position),
                WaitOutcome::Waits(response) => return Ok(response),
            }
        }
    }
    let range = match (after, before) {
        (Some(after), _) => ReadRange::After(after),
        (None, Some(before)) => ReadRange::Before(before),
        (None, None) => ReadRange::Oldest,
    };
    let topic = Topic::from(room.clone());
    let view = log_view(&caller, &room);
    let reading = app.log.read_page(&topic, range, limit, before, view);
    let LogPage { events, first, next, .. } = caller.read(&app, reading, |page| page.bytes).await?;
    let gap = match after {
        Some(after) => {
            let from = app.log.resume_from(&topic, &first.history, after).await?;
            match first.history.next_after(from, &first, None) {
                Next::Gap(gap) => Some(gap),
                Next::Event(_) | Next::Nothing => None,
            }
        }
        None => None,
    };
    let next_page = next.map(|id| match (range, before) {
        (ReadRange::Before(_), _) => format!("before={id}"),
        (_, Some(before)) => format!("after={id}&before={before}"),
        (_, None) => format!("after={id}"),
    });
    let end = first.history.end();
    let last = events.last().map(|(id, _)| *id);
    // After the last event may be others, which the caller does not get.
    let end_of_page = last.map_or(gap.map_or(end, |gap| gap.to), |last| last.max(end));
    let position = before.is_none().then(|| next.unwrap_or(end_of_page));
    let page = EventPage {
        room: &room,
        events: events.iter().map(|(id, event)| PageEvent::new(*id, event)).collect(),
        oldest: first.oldest.map(|id| id.to_string()),
        head: end.to_string(),
        gap: gap.as_ref().map(PageGap::from),
        next: position.map(|position| position.to_string()),
        finished: next.is_none() && position.is_some_and(|position| first.history.is_finished_at(position)),
    };
    let tag = [(header::ETAG, position_tag(first.message_end()))];
    let mut response = (tag, Json(page)).into_response();
    if let Some(query) = next_page {
        add_link(&mut response, &format!("/v1/rooms/{}/events?limit={limit}&{query}", escape(room.as_str())));
    }
    Ok(response)
}

/// Empty a room's log
///
/// The log loses all its events, for all callers, but keeps its head. A client that resumes from a position before
/// the head gets `stream.gap`. A room that has its final event takes events again. This route needs `admin`.
#[utoipa::path(
    delete, path = "/v1/rooms/{room}/events", operation_id = "deleteEvents", tag = "Rooms",
    params(("room" = String, Path, description = "The room's name", example = "lobby")),
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

/// Parses a position. `what` names the parameter in the problem's text.
pub(super) fn parse_position(what: &str, text: &str) -> Result<EventId, Problem> {
    text.parse().map_err(|why| Problem::new(Code::InvalidPosition, format!("{what}: {text:?} is {why}")))
}

#[cfg(test)]
mod fuzz;
