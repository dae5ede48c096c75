//! Which rooms there are, and how full they are.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use super::App;
use super::caller::By;
use super::extract::{Query, Room};
use super::page::{add_link, escape, page_limit};
use super::problem::Problem;
use crate::access::Permission;
use crate::broker::{Card, Range, Replica, Shown};

const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;

/// Which rooms to list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RoomsQuery {
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
    params(RoomsQuery),
    responses((status = 200, description = "Rooms by name", body = RoomList,
        headers(("Link" = String, description = "The next page, if there is more")))),
)]
pub async fn list_rooms(
    by: By,
    Query(query): Query<RoomsQuery>,
    State(app): State<App>,
) -> Result<Response, Problem> {
    by.require_some(Permission::Subscribe)?;
    let limit = page_limit(query.limit, DEFAULT_LIMIT, MAX_LIMIT)?;
    let after = query.after.unwrap_or_default();
    let occupancy = app.hub.broker().occupancy().await?;
    let mut rest = occupancy.into_iter().filter(|(room, _)| {
        // That there is a room is for those alone who may read it.
        *room.as_str() > *after && by.may(Permission::Subscribe, room.as_str())
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
    by: By,
    Room(room): Room,
    State(app): State<App>,
) -> Result<Json<RoomDescription>, Problem> {
    by.require(Permission::Subscribe, room.as_str())?;
    let slice = app.hub.read(&room, Range::Newest, 0).await?;
    let subscribers = app.hub.broker().occupancy_of(&room).await?;
    Ok(Json(RoomDescription {
        room: room.to_string(),
        subscribers,
        head: slice.chain.end().to_string(),
        oldest: slice.oldest.map(|id| id.to_string()),
        retained: slice.retained,
    }))
}

/// Which subscribers to list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct SubscribersQuery {
    /// Where to go on: as `Link` says.
    after: Option<String>,
    /// About how many.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<usize>,
}

/// Who is in a room.
#[derive(Serialize, ToSchema)]
pub struct SubscriberList {
    /// The room.
    room: String,
    /// In no order.
    subscribers: Vec<SubscriberDescription>,
}

/// Somebody who is in a room.
#[derive(Serialize, ToSchema)]
pub struct SubscriberDescription {
    /// Its name in the room.
    #[schema(example = "ann")]
    subscriber: String,
    /// The subject of its token.
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    /// What its token, or itself, says of it.
    #[schema(value_type = serde_json::Value, required = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    info: Option<Box<RawValue>>,
    /// The replica that its stream is on.
    replica: String,
    /// When it came, RFC 3339 in UTC.
    #[schema(format = DateTime)]
    since: String,
}

impl SubscriberDescription {
    fn of(shown: Shown) -> Option<Self> {
        let Card { user, info } = shown.card()?;
        let Shown { subscriber, since, replica, .. } = shown;
        Some(Self { subscriber: subscriber.to_string(), user, info, replica, since })
    }
}

/// List who is in a room
///
/// Those on all replicas that say who they are, by `subscriber=`. It takes the permission `presence`. Pages are of about `limit`; while many come and go, somebody may be on two. `Link` with `rel="next"` leads to the next one.
#[utoipa::path(
    get, path = "/v1/rooms/{room}/subscribers", operation_id = "listSubscribers", tag = "Presence",
    params(("room" = String, Path, description = "The room's name", max_length = 128, example = "lobby"), SubscribersQuery),
    responses((status = 200, description = "Who is there", body = SubscriberList,
        headers(("Link" = String, description = "The next page, if there is more")))),
)]
pub async fn list_subscribers(
    by: By,
    Room(room): Room,
    Query(query): Query<SubscribersQuery>,
    State(app): State<App>,
) -> Result<Response, Problem> {
    by.require(Permission::Presence, room.as_str())?;
    let limit = page_limit(query.limit, DEFAULT_LIMIT, MAX_LIMIT)?;
    let page = app.hub.broker().members(&room, query.after.as_deref(), limit).await?;
    let subscribers = page.members.into_iter().filter_map(SubscriberDescription::of).collect();
    let mut response = Json(SubscriberList { room: room.to_string(), subscribers }).into_response();
    if let Some(next) = page.next {
        let (room, next) = (escape(room.as_str()), escape(&next));
        add_link(&mut response, &format!("/v1/rooms/{room}/subscribers?limit={limit}&after={next}"));
    }
    Ok(response)
}

/// The gateway's replicas.
#[derive(Serialize, ToSchema)]
pub struct ReplicaList {
    /// By name.
    replicas: Vec<ReplicaDescription>,
}

/// A replica as it reported itself.
#[derive(Serialize, ToSchema)]
pub struct ReplicaDescription {
    /// Its name.
    replica: String,
    /// Its version.
    version: String,
    /// Open streams.
    streams: u64,
    /// Rooms that have subscribers there.
    rooms: u64,
    /// When it said so, RFC 3339 in UTC.
    #[schema(format = DateTime)]
    reported_at: String,
}

/// List the gateway's replicas
///
/// Those that have been heard of within their lease. It takes `admin`.
#[utoipa::path(
    get, path = "/v1/replicas", operation_id = "listReplicas", tag = "Presence",
    responses((status = 200, description = "The replicas", body = ReplicaList)),
)]
pub async fn list_replicas(by: By, State(app): State<App>) -> Result<Json<ReplicaList>, Problem> {
    by.require_admin()?;
    let mut replicas: Vec<_> =
        app.hub.broker().replicas().await?.into_iter().map(ReplicaDescription::from).collect();
    replicas.sort_by(|one, other| one.replica.cmp(&other.replica));
    Ok(Json(ReplicaList { replicas }))
}

impl From<Replica> for ReplicaDescription {
    fn from(Replica { replica, version, streams, rooms, reported_at }: Replica) -> Self {
        Self { replica, version, streams, rooms, reported_at }
    }
}
