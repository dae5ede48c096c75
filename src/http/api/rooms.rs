//! The list of rooms that have subscribers, and the description of one room.

use std::ops::Bound;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tokio::task::yield_now;
use utoipa::{IntoParams, ToSchema};

use crate::auth::Permission;
use crate::broker::{ReadLimit, ReadRange};
use crate::http::App;
use crate::http::caller::Caller;
use crate::http::extract::{QueryParams, RoomPath};
use crate::http::page::{add_link, escape, page_limit};
use crate::http::problem::Problem;

const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;
/// Rooms that are looked at before other tasks of the thread get a turn.
const ROOMS_BETWEEN_YIELDS: usize = 1000;

/// The query of a list of rooms.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListRoomsQuery {
    /// Only rooms whose names come after this one.
    after: Option<String>,
    /// The maximum number of rooms.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<usize>,
}

/// Rooms that have subscribers now.
#[derive(Serialize, ToSchema)]
pub struct RoomList {
    /// The rooms, sorted by name.
    rooms: Vec<RoomSummary>,
}

/// A room, and the number of its subscribers.
#[derive(Serialize, ToSchema)]
pub struct RoomSummary {
    /// The room's name.
    room: String,
    /// The number of subscribers on all replicas.
    subscribers: u64,
}

/// List the rooms that have subscribers
///
/// The list has the rooms that the caller may subscribe to, with their subscribers on all replicas. The counts are up
/// to 3 s old; with very many rooms, older. `Link` with `rel="next"` leads to the next page.
#[utoipa::path(
    get, path = "/v1/rooms", operation_id = "listRooms", tag = "Rooms",
    params(ListRoomsQuery),
    responses((status = 200, description = "Rooms, sorted by name", body = RoomList,
        headers(("Link" = String, description = "The next page, if there is one")))),
)]
pub async fn list_rooms(
    caller: Caller,
    QueryParams(query): QueryParams<ListRoomsQuery>,
    State(app): State<App>,
) -> Result<Response, Problem> {
    caller.require_some(Permission::Subscribe)?;
    let limit = page_limit(query.limit, DEFAULT_LIMIT, MAX_LIMIT)?;
    let after = query.after.unwrap_or_default();
    // They are read for all callers together.
    let subscriber_counts = caller.read(&app, app.room_counts.get(), |_| 0).await?;
    let rest = subscriber_counts.range::<str, _>((Bound::Excluded(&*after), Bound::Unbounded));
    // One more than the limit shows whether there is a next page.
    let mut rooms: Vec<RoomSummary> = Vec::new();
    for (index, (room, subscribers)) in rest.enumerate() {
        if rooms.len() > limit {
            break;
        }
        // A caller must not learn that a room exists which it may not read.
        if caller.may(Permission::Subscribe, room.as_str()) {
            rooms.push(RoomSummary { room: room.to_string(), subscribers: *subscribers });
        }
        // The patterns of the caller's token may match few of very many rooms.
        if index % ROOMS_BETWEEN_YIELDS == ROOMS_BETWEEN_YIELDS - 1 {
            yield_now().await;
        }
    }
    let has_next = rooms.len() > limit;
    rooms.truncate(limit);
    let next_page = rooms.last().filter(|_| has_next).map(|last| escape(&last.room));
    let mut response = Json(RoomList { rooms }).into_response();
    if let Some(last) = next_page {
        add_link(&mut response, &format!("/v1/rooms?limit={limit}&after={last}"));
    }
    Ok(response)
}

/// The present state of a room.
#[derive(Serialize, ToSchema)]
pub struct RoomDescription {
    /// The room's name.
    room: String,
    /// The number of subscribers on all replicas.
    subscribers: u64,
    /// The last position of the log.
    #[schema(example = "1790000000000000-42")]
    head: String,
    /// The id of the oldest event in the log, or null if the log is empty.
    #[schema(required = true)]
    oldest: Option<String>,
    /// The number of events in the log.
    retained: u64,
}

/// Describe a room
///
/// Every valid name is a room. A room that was never used is empty.
#[utoipa::path(
    get, path = "/v1/rooms/{room}", operation_id = "getRoom", tag = "Rooms",
    params(("room" = String, Path, description = "The room's name", example = "lobby")),
    responses((status = 200, description = "The present state of the room", body = RoomDescription)),
)]
pub async fn describe_room(
    caller: Caller,
    RoomPath(room): RoomPath,
    State(app): State<App>,
) -> Result<Json<RoomDescription>, Problem> {
    caller.require(Permission::Subscribe, room.as_str())?;
    let slice = app.log.peek(&room.clone().into(), ReadRange::Newest, ReadLimit::HISTORY).await?;
    let subscribers = app.registry.subscriber_count(&room).await?;
    Ok(Json(RoomDescription {
        room: room.to_string(),
        subscribers,
        head: slice.history.end().to_string(),
        oldest: slice.oldest.map(|id| id.to_string()),
        retained: slice.retained,
    }))
}
