//! Which rooms there are, and how full they are.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::auth::Permission;
use crate::broker::ReadRange;
use crate::http::App;
use crate::http::caller::Caller;
use crate::http::extract::{Query, RoomPath};
use crate::http::page::{add_link, escape, page_limit};
use crate::http::problem::Problem;

const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;

/// Which rooms to list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListRoomsQuery {
    /// Only rooms whose name comes after this one.
    after: Option<String>,
    /// How many at most.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<usize>,
}

/// Rooms that have subscribers now.
#[derive(Serialize, ToSchema)]
pub struct RoomList {
    /// By name.
    rooms: Vec<RoomOccupancy>,
}

/// How many subscribers a room has.
#[derive(Serialize, ToSchema)]
pub struct RoomOccupancy {
    /// The room.
    room: String,
    /// Its subscribers on all replicas.
    subscribers: u64,
}

/// List the rooms that have subscribers
///
/// Those that the caller may subscribe to, on all replicas, with counts that are a second or two old. `Link` with `rel="next"` leads to the next page.
#[utoipa::path(
    get, path = "/v1/rooms", operation_id = "listRooms", tag = "Rooms",
    params(ListRoomsQuery),
    responses((status = 200, description = "Rooms by name", body = RoomList,
        headers(("Link" = String, description = "The next page, if there is more")))),
)]
pub async fn list_rooms(
    caller: Caller,
    Query(query): Query<ListRoomsQuery>,
    State(app): State<App>,
) -> Result<Response, Problem> {
    caller.require_some(Permission::Subscribe)?;
    let limit = page_limit(query.limit, DEFAULT_LIMIT, MAX_LIMIT)?;
    let after = query.after.unwrap_or_default();
    let subscriber_counts = app.registry.subscriber_counts().await?;
    let mut rest = subscriber_counts.into_iter().filter(|(room, _)| {
        // That there is a room is for those alone who may read it.
        *room.as_str() > *after && caller.may(Permission::Subscribe, room.as_str())
    });
    let rooms: Vec<_> = rest
        .by_ref()
        .take(limit)
        .map(|(room, subscribers)| RoomOccupancy { room: room.to_string(), subscribers })
        .collect();
    let next_page = rest.next().and(rooms.last()).map(|last| escape(&last.room));
    let mut response = Json(RoomList { rooms }).into_response();
    if let Some(last) = next_page {
        add_link(&mut response, &format!("/v1/rooms?limit={limit}&after={last}"));
    }
    Ok(response)
}

/// A room now.
#[derive(Serialize, ToSchema)]
pub struct RoomDescription {
    /// The room.
    room: String,
    /// Its subscribers on all replicas.
    subscribers: u64,
    /// The log's last position.
    #[schema(example = "1790000000000000-42")]
    head: String,
    /// The id of the oldest retained event.
    #[schema(required = true)]
    oldest: Option<String>,
    /// How many events the log holds.
    retained: u64,
}

/// Describe a room
///
/// Every name that is allowed is a room; one that was never used is empty.
#[utoipa::path(
    get, path = "/v1/rooms/{room}", operation_id = "getRoom", tag = "Rooms",
    params(("room" = String, Path, description = "The room's name", max_length = 128, example = "lobby")),
    responses((status = 200, description = "The room now", body = RoomDescription)),
)]
pub async fn describe_room(
    caller: Caller,
    RoomPath(room): RoomPath,
    State(app): State<App>,
) -> Result<Json<RoomDescription>, Problem> {
    caller.require(Permission::Subscribe, room.as_str())?;
    let slice = app.log.read(&room.clone().into(), ReadRange::Newest, 0).await?;
    let subscribers = app.registry.subscriber_count(&room).await?;
    Ok(Json(RoomDescription {
        room: room.to_string(),
        subscribers,
        head: slice.history.end().to_string(),
        oldest: slice.oldest.map(|id| id.to_string()),
        retained: slice.retained,
    }))
}
