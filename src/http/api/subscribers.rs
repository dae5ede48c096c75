//! Which subscribers are in a room.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use crate::auth::Permission;
use crate::broker::{MemberView, Profile};
use crate::http::App;
use crate::http::caller::Caller;
use crate::http::extract::{Query, RoomPath};
use crate::http::page::{add_link, escape, page_limit};
use crate::http::problem::Problem;

const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;

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
    fn from_view(shown: MemberView) -> Option<Self> {
        let Profile { user, info } = shown.profile()?;
        let MemberView { subscriber, since, replica, .. } = shown;
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
    caller: Caller,
    RoomPath(room): RoomPath,
    Query(query): Query<SubscribersQuery>,
    State(app): State<App>,
) -> Result<Response, Problem> {
    caller.require(Permission::Presence, room.as_str())?;
    let limit = page_limit(query.limit, DEFAULT_LIMIT, MAX_LIMIT)?;
    let page = app.presence.members(&room, query.after.as_deref(), limit).await?;
    let subscribers = page.members.into_iter().filter_map(SubscriberDescription::from_view).collect();
    let mut response = Json(SubscriberList { room: room.to_string(), subscribers }).into_response();
    if let Some(next) = page.next {
        let (room, next) = (escape(room.as_str()), escape(&next));
        add_link(&mut response, &format!("/v1/rooms/{room}/subscribers?limit={limit}&after={next}"));
    }
    Ok(response)
}
