//! Publishing many events, to many rooms, with one request.

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

use axum::Json;
use axum::extract::{FromRequest, Request, State};
use axum::http::StatusCode;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::events::{Published, event, json_data, store};
use crate::auth::Permission;
use crate::broker::{Appended, IdempotencyKey};
use crate::http::caller::Caller;
use crate::http::extract::{JsonBody, Object};
use crate::http::problem::{Code, Document, Problem};
use crate::http::{App, idempotency};
use crate::names::{Event, EventName, RoomName, SubscriberId};

/// Rooms that one batch publishes to at one time.
const ROOMS_AT_ONCE: usize = 16;

/// Events for one or several rooms.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"events": [
    {"room": "lobby", "event": "chat", "data": {"text": "hello"}},
    {"rooms": ["lobby", "news"], "data": 42}
]}))]
pub struct Batch {
    /// In the order in which each room gets them.
    #[schema(value_type = Vec<BatchItem>)]
    events: Vec<Object<BatchItem>>,
}

/// One event of a batch.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchItem {
    /// The room, or else `rooms`.
    #[schema(value_type = Option<String>, max_length = 128)]
    room: Option<RoomName>,
    /// Several rooms; each gets a copy, with a `publish_id` that they share.
    #[schema(value_type = Option<Vec<String>>)]
    rooms: Option<Vec<RoomName>>,
    /// Names the kind of event.
    #[schema(value_type = Option<String>, max_length = 128)]
    event: Option<EventName>,
    /// Any JSON.
    #[schema(value_type = serde_json::Value)]
    data: Box<RawValue>,
    /// Subscribers that do not get it.
    #[serde(default)]
    #[schema(value_type = Vec<String>, max_items = 100)]
    except: Vec<SubscriberId>,
    /// Makes it safe to send this event again. Without it, the request's `Idempotency-Key` and the event's place in the
    /// batch stand for one.
    #[schema(max_length = 255)]
    idempotency_key: Option<String>,
}

/// What became of a batch.
#[derive(Serialize, ToSchema)]
pub struct BatchAnswer {
    /// In the order of the batch's events.
    results: Vec<BatchResult>,
}

/// What became of one event of a batch.
#[derive(Serialize, ToSchema)]
pub struct BatchResult {
    /// 201 if every copy is stored; else the status of the first that is not.
    status: u16,
    /// The copies that are stored.
    published: Vec<Published>,
    /// Shared by the copies in several rooms.
    #[serde(skip_serializing_if = "Option::is_none")]
    publish_id: Option<String>,
    /// Every copy had been stored by an earlier request with the same key.
    replayed: bool,
    /// Why a copy is not stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<BatchProblem>,
}

/// Why one event of a batch is not stored, or not everywhere.
#[derive(Clone, Default, Serialize, ToSchema)]
pub struct BatchProblem {
    /// The kind's stable name; `outcome_unknown` if the event may be stored in one of the rooms.
    code: String,
    /// What was wrong.
    detail: String,
    /// Rooms in which it is not stored, or may not be.
    rooms: Vec<String>,
}

/// Publish a batch of events
///
/// Order is kept in each room. Once an event can't be stored in a room, that room's later events are not tried, so none
/// overtakes it.
#[utoipa::path(
    post, path = "/v1/events", operation_id = "publishEvents", tag = "Rooms",
    params(("Idempotency-Key" = Option<String>, Header, max_length = 255,
        description = "Makes it safe to repeat the request: of the same batch, no event is stored twice")),
    request_body(content = Batch, content_type = "application/json"),
    responses(
        (status = 200, description = "Every event is stored", body = BatchAnswer),
        (status = 207, description = "Some are not; each result says", body = BatchAnswer),
        (status = 413, description = "The body or an event is too large", body = Document, content_type = "application/problem+json"),
        (status = 415, description = "Not JSON", body = Document, content_type = "application/problem+json"),
    )
)]
pub async fn publish_events(
    caller: Caller,
    State(app): State<App>,
    request: Request,
) -> Result<(StatusCode, Json<BatchAnswer>), Problem> {
    caller.require_some(Permission::Publish)?;
    let batch_key = idempotency::key_of(request.headers())?.map(str::to_owned);
    let JsonBody(Object(batch)) = JsonBody::<Object<Batch>>::from_request(request, &app).await?;
    let limit = app.settings.requests.max_batch_items;
    if batch.events.is_empty() {
        return Err(Problem::new(Code::InvalidBody, "the batch is empty"));
    }
    let mut results = Vec::with_capacity(batch.events.len());
    let mut by_room: Vec<(RoomName, Vec<Item>)> = Vec::new();
    let mut places: HashMap<RoomName, usize> = HashMap::new();
    let mut copies = 0;
    for (index, Object(item)) in batch.events.into_iter().enumerate() {
        let key = match (item.idempotency_key, &batch_key) {
            (Some(key), _) => {
                let refuse =
                    |why| Problem::new(Code::InvalidBody, format!("event {index}: its idempotency_key {why}"));
                Some(idempotency::check(&key).map(str::to_owned).map_err(refuse)?)
            }
            // No key of a caller has a space in it.
            (None, Some(key)) => Some(format!("{key} {index}")),
            (None, None) => None,
        };
        let (rooms, publish_id) = match (item.room, item.rooms) {
            (Some(room), None) => (vec![room], None),
            (None, Some(rooms))
                if !rooms.is_empty() && rooms.iter().collect::<HashSet<_>>().len() == rooms.len() =>
            {
                (
                    rooms,
                    Some(key.as_deref().map_or_else(
                        || uuid::Uuid::now_v7().to_string(),
                        |key| idempotency::publish_id(&caller.owner(), key),
                    )),
                )
            }
            _ => {
                let detail = format!("event {index}: name one \"room\", or several \"rooms\", none twice");
                return Err(Problem::new(Code::InvalidBody, detail));
            }
        };
        copies += rooms.len();
        if copies > limit {
            let detail = format!("a batch stores {limit} events at most, copies included");
            return Err(Problem::new(Code::InvalidBody, detail));
        }
        let event = event(&app, item.event, json_data(&item.data)?, item.except, publish_id.clone())?;
        let idempotency_key = key.map(|key| idempotency::idempotency_key(&caller.owner(), &key, &event));
        let mut result =
            BatchResult { status: 201, published: Vec::new(), publish_id, replayed: true, problem: None };
        for room in rooms {
            if !caller.may(Permission::Publish, room.as_str()) {
                result.fail(&caller.lacks(Permission::Publish, room.as_str()), &room);
                continue;
            }
            let place = *places.entry(room.clone()).or_insert_with(|| {
                by_room.push((room, Vec::new()));
                by_room.len() - 1
            });
            by_room[place].1.push((index, event.clone(), idempotency_key.clone()));
        }
        results.push(result);
    }
    caller.spend(&app, copies.saturating_sub(1) as u64).await?;
    let away = OnceLock::new();
    let publishing = by_room.into_iter().map(|(room, events)| publish_in_order(&app, room, events, &away));
    let stored: Vec<_> = futures_util::stream::iter(publishing).buffered(ROOMS_AT_ONCE).collect().await;
    for (index, room, outcome) in stored.into_iter().flatten() {
        let result = &mut results[index];
        match outcome {
            Ok(appended) => {
                result.replayed &= appended.replayed;
                result.published.push(Published { room: room.to_string(), id: appended.id.to_string() });
            }
            Err(problem) => {
                result.fail(&problem, &room);
            }
        }
    }
    for result in &mut results {
        result.replayed &= !result.published.is_empty();
    }
    let all = results.iter().all(|result| result.problem.is_none());
    let status = if all { StatusCode::OK } else { StatusCode::MULTI_STATUS };
    Ok((status, Json(BatchAnswer { results })))
}

impl BatchResult {
    /// One answer for all rooms that the event is not known to be stored in: the first one's, unless the event may be
    /// stored in another.
    fn fail(&mut self, problem: &Problem, room: &RoomName) {
        let code = problem.code();
        let failed = self.problem.get_or_insert_default();
        if failed.rooms.is_empty() || code == Code::OutcomeUnknown {
            self.status = code.status().as_u16();
            failed.code = code.name().into();
            failed.detail = problem.detail().into();
        }
        failed.rooms.push(room.to_string());
    }
}

/// An event of a batch, and its place there.
type Item = (usize, Event, Option<IdempotencyKey>);
type Outcome = (usize, RoomName, Result<Appended, Problem>);

/// Nothing overtakes an event that was not stored; and a broker that is away is not asked again for each room, so that
/// a batch is answered as fast as a single event.
async fn publish_in_order(app: &App, room: RoomName, events: Vec<Item>, away: &OnceLock<Code>) -> Vec<Outcome> {
    let mut outcomes = Vec::with_capacity(events.len());
    let mut failed = None;
    for (index, event, idempotency_key) in events {
        let outcome = if let Some(code) = failed.or_else(|| away.get().copied()) {
            Err(Problem::new(code, "not tried: an earlier event of the batch was not stored"))
        } else {
            store(app, &room, &event, idempotency_key.as_ref()).await
        };
        if let Err(problem) = &outcome {
            // What was not tried has surely not been stored, whatever became of the event before it.
            let code = if problem.code() == Code::OutcomeUnknown { Code::Unavailable } else { problem.code() };
            failed = Some(code);
            if code.status() == StatusCode::SERVICE_UNAVAILABLE {
                away.get_or_init(|| code);
            }
        }
        outcomes.push((index, room.clone(), outcome));
    }
    outcomes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_that_may_be_stored_somewhere_is_never_said_to_be_stored_nowhere() {
        let mut result =
            BatchResult { status: 201, published: Vec::new(), publish_id: None, replayed: true, problem: None };
        let rooms = ["a", "b", "c"].map(|room| RoomName::new(room).unwrap());
        let codes = [Code::Unavailable, Code::OutcomeUnknown, Code::Unavailable];
        for (code, room) in codes.into_iter().zip(&rooms) {
            result.fail(&Problem::new(code, "why"), room);
        }
        let problem = result.problem.unwrap();
        assert_eq!((result.status, problem.code.as_str()), (503, "outcome_unknown"));
        assert_eq!(problem.rooms, ["a", "b", "c"]);
    }
}
