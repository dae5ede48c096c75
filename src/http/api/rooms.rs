//! The list of rooms that have subscribers, and the description of one room.

use std::ops::Bound;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tokio::task::yield_now;
use utoipa::{IntoParams, ToSchema};

use super::events::{log_view, position_tag};
use crate::auth::Permission;
use crate::broker::{ReadLimit, ReadRange, SubscriberCounts};
use crate::http::App;
use crate::http::caller::Caller;
use crate::http::extract::{QueryParams, RoomPath};
use crate::http::page::{add_link, escape, page_limit};
use crate::http::problem::Problem;

const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;
/// Bytes of names that are compared with the caller's patterns, once for each pattern, until a page ends.
const MAX_COMPARED_BYTES: usize = 1024 * 1024;
/// The part of them after which other tasks of the thread get a turn.
const BYTES_BETWEEN_YIELDS: usize = 16 * 1024;

/// The query of a list of rooms.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListRoomsQuery {
    /// Only rooms whose names come after this one.
    after: Option<String>,
    /// The number of further rooms to pass over, from the `Link` of the page before.
    #[serde(default)]
    #[param(required = false, default = 0)]
    skip: usize,
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
/// to 3 s old; with very many rooms, older. `Link` with `rel="next"` leads to the next page. A page may have few rooms,
/// or none, if many lie between them that the caller may not subscribe to.
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
    let page = async {
        let counts = app.room_counts.get().await.map_err(Problem::from)?;
        Ok::<_, Problem>(
            page(&caller, &counts, query.after.as_deref().unwrap_or_default(), query.skip, limit).await,
        )
    };
    let RoomPage { rooms, next, .. } = caller.read(&app, page, |page| page.compared_bytes).await?;
    let mut response = Json(RoomList { rooms }).into_response();
    if let Some((after, skip)) = next {
        let skip = if skip > 0 { format!("&skip={skip}") } else { String::new() };
        add_link(&mut response, &format!("/v1/rooms?limit={limit}&after={}{skip}", escape(&after)));
    }
    Ok(response)
}

/// A part of the list of rooms.
struct RoomPage {
    rooms: Vec<RoomSummary>,
    /// The room after which the next page begins, and how many rooms it passes over there. A page must not name a room
    /// that the caller may not read.
    next: Option<(String, usize)>,
    /// The bytes of names that were compared with patterns, once for each pattern.
    compared_bytes: usize,
}

/// The rooms after one, without the next `skip`: those that the caller may read, up to a limit.
async fn page(caller: &Caller, counts: &SubscriberCounts, after: &str, skip: usize, limit: usize) -> RoomPage {
    let patterns = caller.identity().grants.pattern_count(Permission::Subscribe).max(1);
    let rest = counts.range::<str, _>((Bound::Excluded(after), Bound::Unbounded));
    let mut page = RoomPage { rooms: Vec::new(), next: None, compared_bytes: 0 };
    let (mut unyielded, mut last) = (0, (after.to_owned(), 0));
    for (index, (room, subscribers)) in rest.enumerate() {
        if page.compared_bytes >= MAX_COMPARED_BYTES {
            page.next = Some((last.0, index - last.1));
            break;
        }
        unyielded += 1;
        if index >= skip {
            let bytes = room.as_str().len() * patterns;
            (page.compared_bytes, unyielded) = (page.compared_bytes + bytes, unyielded + bytes);
            // A caller must not learn that a room exists which it may not read.
            if caller.may(Permission::Subscribe, room.as_str()) {
                // One more than the limit shows whether there is a next page.
                if page.rooms.len() == limit {
                    page.next = Some((last.0, 0));
                    break;
                }
                last = (room.to_string(), index + 1);
                page.rooms.push(RoomSummary { room: room.to_string(), subscribers: *subscribers });
            }
        }
        if unyielded >= BYTES_BETWEEN_YIELDS {
            unyielded = 0;
            yield_now().await;
        }
    }
    page
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
    /// The id of the room's final event, or null if it takes events.
    #[schema(required = true)]
    finished: Option<String>,
}

/// Describe a room
///
/// Every valid name is a room. A room that was never used is empty.
#[utoipa::path(
    get, path = "/v1/rooms/{room}", operation_id = "getRoom", tag = "Rooms",
    params(("room" = String, Path, description = "The room's name", example = "lobby")),
    responses((status = 200, description = "The present state of the room", body = RoomDescription,
        headers(("ETag" = String, description = "The position of the room's last message, for `If-Match` of a publish")))),
)]
pub async fn describe_room(
    caller: Caller,
    RoomPath(room): RoomPath,
    State(app): State<App>,
) -> Result<Response, Problem> {
    caller.require(Permission::Subscribe, room.as_str())?;
    let view = log_view(&caller, &room);
    let slice = app.log.peek(&room.clone().into(), ReadRange::Newest, view, ReadLimit::HISTORY).await?;
    let subscribers = app.registry.subscriber_count(&room).await?;
    let description = RoomDescription {
        room: room.to_string(),
        subscribers,
        head: slice.history.end().to_string(),
        oldest: slice.oldest.map(|id| id.to_string()),
        retained: slice.retained,
        finished: slice.history.finished().map(|id| id.to_string()),
    };
    Ok(([(header::ETAG, position_tag(slice.message_end()))], Json(description)).into_response())
}
