//! Publishing many events, to one room or several, with one request.
//!
//! A batch passes four steps: `parse` checks all events before anything is stored, `plan` sorts their copies by room,
//! `publish` stores the copies, and `collect` makes the answer.

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::events::{Published, json_data, new_event, store};
use crate::auth::Permission;
use crate::broker::{Appended, IdempotencyKey};
use crate::http::body::{read_json_body, reserve_answer};
use crate::http::caller::Caller;
use crate::http::extract::{JsonObject, parse_json};
use crate::http::problem::{Code, Problem};
use crate::http::{App, idempotency};
use crate::names::{Event, EventName, RoomName, SubscriberId};

/// Rooms to which one batch publishes at the same time.
const CONCURRENT_ROOMS: usize = 16;
/// Most bytes that an item takes in the answer, apart from its copies.
const ITEM_ANSWER_BYTES: usize = 512;
/// Most bytes that a copy takes in the answer, apart from its room's name.
const COPY_ANSWER_BYTES: usize = 64;

/// Events to publish to one room or several.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"events": [
    {"room": "lobby", "event": "chat", "data": {"text": "hello"}},
    {"rooms": ["lobby", "news"], "data": 42}
]}))]
pub struct Batch {
    /// The events. Each room gets its events in this order.
    #[schema(value_type = Vec<BatchItem>)]
    events: Vec<JsonObject<BatchItem>>,
}

/// An event of a batch.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchItem {
    /// The room to publish to. An event has either `room` or `rooms`.
    #[schema(value_type = Option<String>)]
    room: Option<RoomName>,
    /// The rooms to publish to. Each room gets a copy of the event, and the copies share a `publish_id`.
    #[schema(value_type = Option<Vec<String>>)]
    rooms: Option<Vec<RoomName>>,
    /// The event's name.
    #[schema(value_type = Option<String>)]
    event: Option<EventName>,
    /// The event's data: any JSON.
    #[schema(value_type = serde_json::Value)]
    data: Box<RawValue>,
    /// The subscribers that do not get the event.
    #[schema(value_type = Vec<String>, max_items = 100, required = false)]
    except: Option<Vec<SubscriberId>>,
    /// Whether it is the last event of its rooms. Later events of the batch for these rooms are not stored.
    #[serde(rename = "final")]
    #[schema(rename = "final", value_type = bool, required = false)]
    is_final: Option<bool>,
    /// Makes this event safe to publish again. By default, the request's `Idempotency-Key` and the event's index in
    /// the batch stand for it.
    #[schema(max_length = 255)]
    idempotency_key: Option<String>,
}

/// The results of a batch.
#[derive(Serialize, ToSchema)]
pub struct BatchAnswer {
    /// The results, in the order of the batch's events.
    results: Vec<BatchResult>,
}

/// The result of one event of a batch.
#[derive(Serialize, ToSchema)]
pub struct BatchResult {
    /// 201 if every copy is stored. Otherwise the status of the first copy that is not stored.
    status: u16,
    /// The copies that are stored.
    published: Vec<Published>,
    /// The id that the copies in several rooms share.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    publish_id: Option<String>,
    /// Whether an earlier request with the same key has stored every copy.
    replayed: bool,
    /// The problem, if a copy is not stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    problem: Option<BatchProblem>,
}

/// The reason why an event of a batch is not stored in all its rooms.
#[derive(Clone, Default, Serialize, ToSchema)]
pub struct BatchProblem {
    /// The stable name of the kind of problem. It is `outcome_unknown` if the event may be stored in one of `rooms`.
    #[schema(value_type = Code)]
    code: String,
    /// The cause in this case, for people.
    detail: String,
    /// The rooms in which the event is not stored, or may not be stored.
    rooms: Vec<String>,
}

/// Publish a batch of events
///
/// The batch is validated as a whole before anything is stored. Each room gets its events in the order of the batch.
/// If an event can't be stored in a room, the batch's later events for that room are not tried, so that no event
/// overtakes another.
#[utoipa::path(
    post, path = "/v1/events", operation_id = "publishEvents", tag = "Rooms",
    params(("Idempotency-Key" = Option<String>, Header, max_length = 255,
        description = "Makes the request safe to repeat: the same key with the same batch stores no event twice")),
    request_body(content = Batch, content_type = "application/json"),
    responses(
        (status = 200, description = "Every event is stored", body = BatchAnswer),
        (status = 207, description = "Some events are not stored; each result has its status", body = BatchAnswer),
        (status = 413, description = "The body or an event's data is too large"),
        (status = 415, description = "The body is not JSON"),
    )
)]
pub async fn publish_events(
    caller: Caller,
    State(app): State<App>,
    request: Request,
) -> Result<(StatusCode, Json<BatchAnswer>), Problem> {
    caller.require_some(Permission::Publish)?;
    let batch_key = idempotency::key_from_headers(request.headers())?.map(str::to_owned);
    let body = read_json_body(request, &app, &caller).await?;
    let JsonObject(batch) = parse_json::<JsonObject<Batch>>(&body)?;
    let (items, copies, bytes) = parse(&app, &caller, batch, batch_key.as_deref())?;
    caller.spend(&app, copies, bytes).await?;
    reserve_answer(&app, &caller, most_answer_bytes(&items))?;
    let BatchPlan { rooms, forbidden } = plan(&caller, &items);
    let published = publish(&app, &caller, &items, rooms).await;
    Ok(collect(items, forbidden.into_iter().chain(published)))
}

/// The most bytes that the answer to a batch has.
fn most_answer_bytes(items: &[ParsedItem]) -> usize {
    let copy = |room: &RoomName| room.as_str().len() + COPY_ANSWER_BYTES;
    items.iter().map(|item| ITEM_ANSWER_BYTES + item.rooms.iter().map(copy).sum::<usize>()).sum()
}

/// A checked event of a batch, and the rooms to publish it to.
struct ParsedItem {
    rooms: Vec<RoomName>,
    event: Event,
    idempotency_key: Option<IdempotencyKey>,
}

/// Which items to store in which rooms.
struct BatchPlan {
    rooms: Vec<RoomPlan>,
    /// Copies for rooms to which the caller may not publish. All of them are failures.
    forbidden: Vec<CopyOutcome>,
}

/// The items to store in one room: their indices, in order.
struct RoomPlan {
    room: RoomName,
    items: Vec<usize>,
}

/// The outcome of one copy of an item.
struct CopyOutcome {
    /// The item's index.
    item: usize,
    room: RoomName,
    result: Result<Appended, Problem>,
}

/// Checks all events of a batch. `batch_key` is the request's idempotency key. Also returns the number of copies, and
/// their bytes.
fn parse(
    app: &App,
    caller: &Caller,
    batch: Batch,
    batch_key: Option<&str>,
) -> Result<(Vec<ParsedItem>, usize, usize), Problem> {
    if batch.events.is_empty() {
        return Err(Problem::new(Code::InvalidBody, "the batch has no events"));
    }
    let (limit, max_bytes) = (app.settings.requests.max_batch_items, app.settings.requests.max_body_bytes);
    let mut items = Vec::with_capacity(batch.events.len());
    let (mut copies, mut bytes) = (0, 0);
    for (index, JsonObject(item)) in batch.events.into_iter().enumerate() {
        let key = parse_key(index, item.idempotency_key, batch_key)?;
        let (rooms, shares_publish_id) = parse_rooms(index, item.room, item.rooms)?;
        copies += rooms.len();
        if copies > limit {
            let detail = format!("the batch has more than {limit} events, copies included (--max-batch-items)");
            return Err(Problem::new(Code::InvalidBody, detail));
        }
        let publish_id = shares_publish_id.then(|| match &key {
            Some(key) => idempotency::publish_id(&caller.owner(), key),
            None => uuid::Uuid::now_v7().to_string(),
        });
        let (except, is_final) = (item.except.unwrap_or_default(), item.is_final.unwrap_or_default());
        let event = new_event(app, item.event, json_data(&item.data)?, except, publish_id, is_final)?;
        bytes += rooms.len() * event.sent_bytes();
        if bytes > max_bytes {
            let detail =
                format!("the batch's events have more than {max_bytes} bytes in all rooms (--max-body-bytes)");
            return Err(Problem::new(Code::BodyTooLarge, detail));
        }
        let idempotency_key = key.map(|key| idempotency::idempotency_key(&caller.owner(), &key, &event, None));
        items.push(ParsedItem { rooms, event, idempotency_key });
    }
    Ok((items, copies, bytes))
}

/// The idempotency key of an event: its own, or one that the batch's key and the event's index make.
fn parse_key(index: usize, key: Option<String>, batch_key: Option<&str>) -> Result<Option<String>, Problem> {
    match (key, batch_key) {
        (Some(key), _) => match idempotency::check(&key) {
            Ok(_) => Ok(Some(key)),
            Err(why) => Err(Problem::new(Code::InvalidBody, format!("event {index}: its idempotency_key {why}"))),
        },
        // A caller's key has no space, so this one never equals it.
        (None, Some(batch_key)) => Ok(Some(format!("{batch_key} {index}"))),
        (None, None) => Ok(None),
    }
}

/// The rooms of an event, and whether it names them as `rooms`, so that its copies share a publish id.
fn parse_rooms(
    index: usize,
    room: Option<RoomName>,
    rooms: Option<Vec<RoomName>>,
) -> Result<(Vec<RoomName>, bool), Problem> {
    let is_distinct = |rooms: &[RoomName]| rooms.iter().collect::<HashSet<_>>().len() == rooms.len();
    match (room, rooms) {
        (Some(room), None) => Ok((vec![room], false)),
        (None, Some(rooms)) if !rooms.is_empty() && is_distinct(&rooms) => Ok((rooms, true)),
        _ => {
            let detail = format!("event {index}: it must have either \"room\", or \"rooms\" with different rooms");
            Err(Problem::new(Code::InvalidBody, detail))
        }
    }
}

/// Sorts the copies of all items by room. Each room keeps the order of the batch. The caller's permissions are checked
/// here, for each room.
fn plan(caller: &Caller, items: &[ParsedItem]) -> BatchPlan {
    let mut plan = BatchPlan { rooms: Vec::new(), forbidden: Vec::new() };
    let mut positions: HashMap<&RoomName, usize> = HashMap::new();
    for (index, item) in items.iter().enumerate() {
        for room in &item.rooms {
            if !caller.may(Permission::Publish, room.as_str()) {
                let result = Err(caller.lacks(Permission::Publish, room.as_str()));
                plan.forbidden.push(CopyOutcome { item: index, room: room.clone(), result });
                continue;
            }
            let position = *positions.entry(room).or_insert_with(|| {
                plan.rooms.push(RoomPlan { room: room.clone(), items: Vec::new() });
                plan.rooms.len() - 1
            });
            plan.rooms[position].items.push(index);
        }
    }
    plan
}

/// Stores the copies, several rooms at a time.
async fn publish(app: &App, caller: &Caller, items: &[ParsedItem], rooms: Vec<RoomPlan>) -> Vec<CopyOutcome> {
    let unavailable = OnceLock::new();
    let publishing = rooms.into_iter().map(|plan| publish_to_room(app, caller, items, plan, &unavailable));
    let outcomes: Vec<_> = futures_util::stream::iter(publishing).buffered(CONCURRENT_ROOMS).collect().await;
    outcomes.into_iter().flatten().collect()
}

/// Stores the copies for one room, in order.
///
/// After a copy that was not stored, later ones are not tried, so that none overtakes it. Once the broker was
/// `unavailable`, no room asks it again, so that a batch is answered as fast as a single event.
async fn publish_to_room(
    app: &App,
    caller: &Caller,
    items: &[ParsedItem],
    RoomPlan { room, items: indices }: RoomPlan,
    unavailable: &OnceLock<Code>,
) -> Vec<CopyOutcome> {
    let mut outcomes = Vec::with_capacity(indices.len());
    let mut failed = None;
    for index in indices {
        let ParsedItem { event, idempotency_key, .. } = &items[index];
        let result = if let Some(code) = failed.or_else(|| unavailable.get().copied()) {
            Err(Problem::new(code, "not tried, because an earlier event of the batch was not stored"))
        } else {
            store(app, caller, &room, event, None, idempotency_key.as_ref()).await
        };
        if let Err(problem) = &result {
            // A copy that is not tried is certainly not stored, even if the outcome of the copy before it is unknown.
            let code = if problem.code() == Code::OutcomeUnknown { Code::Unavailable } else { problem.code() };
            failed = Some(code);
            if code.status() == StatusCode::SERVICE_UNAVAILABLE {
                unavailable.get_or_init(|| code);
            }
        }
        outcomes.push(CopyOutcome { item: index, room: room.clone(), result });
    }
    outcomes
}

/// The answer to a batch: a result for each item.
fn collect(items: Vec<ParsedItem>, outcomes: impl Iterator<Item = CopyOutcome>) -> (StatusCode, Json<BatchAnswer>) {
    let mut results: Vec<_> = items.into_iter().map(|item| BatchResult::new(item.event.publish_id)).collect();
    for CopyOutcome { item, room, result } in outcomes {
        match result {
            Ok(appended) => results[item].add(&appended, &room),
            Err(problem) => results[item].fail(&problem, &room),
        }
    }
    for result in &mut results {
        result.replayed &= !result.published.is_empty();
    }
    let is_complete = results.iter().all(|result| result.problem.is_none());
    let status = if is_complete { StatusCode::OK } else { StatusCode::MULTI_STATUS };
    (status, Json(BatchAnswer { results }))
}

impl BatchResult {
    /// The result of an item without copies yet.
    fn new(publish_id: Option<String>) -> Self {
        Self {
            status: StatusCode::CREATED.as_u16(),
            published: Vec::new(),
            publish_id,
            replayed: true,
            problem: None,
        }
    }

    /// Adds a copy that is stored.
    fn add(&mut self, appended: &Appended, room: &RoomName) {
        self.replayed &= appended.replayed;
        self.published.push(Published { room: room.to_string(), id: appended.id.to_string() });
    }

    /// Adds a copy that is not known to be stored. The result has one problem for all of them: that of the first
    /// copy, unless another copy may be stored.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_outcome_in_one_room_is_the_outcome_of_the_event() {
        let mut result = BatchResult::new(None);
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
