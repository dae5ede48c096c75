//! The member list of a room.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};

use crate::auth::Permission;
use crate::broker::{MemberPage, MemberView, Profile};
use crate::http::App;
use crate::http::caller::Caller;
use crate::http::extract::{QueryParams, RoomPath};
use crate::http::page::{add_link, escape, page_limit};
use crate::http::problem::Problem;

const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;

/// The query of a member list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct SubscribersQuery {
    /// The start of the next page, from the `Link` of the page before.
    after: Option<String>,
    /// The approximate number of members.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<usize>,
}

/// The members of a room.
#[derive(Serialize, ToSchema)]
pub struct SubscriberList {
    /// The room's name.
    room: String,
    /// The members, in no particular order.
    subscribers: Vec<SubscriberDescription>,
}

/// A member of a room.
#[derive(Serialize, ToSchema)]
pub struct SubscriberDescription {
    /// The member's name in the room.
    #[schema(example = "ann")]
    subscriber: String,
    /// The subject of the member's token.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    user: Option<String>,
    /// The member's profile: any JSON, from its token or from its request.
    #[schema(value_type = serde_json::Value, required = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    info: Option<Box<RawValue>>,
    /// The name of the replica that serves the member's stream.
    replica: String,
    /// The time at which the member joined, RFC 3339 in UTC.
    #[schema(format = DateTime)]
    since: String,
}

impl SubscriberDescription {
    /// `None` if the stored profile can't be parsed.
    fn from_view(view: MemberView) -> Option<Self> {
        let Profile { user, info } = view.profile()?;
        let MemberView { subscriber, since, replica, .. } = view;
        Some(Self { subscriber: subscriber.to_string(), user, info, replica, since })
    }
}

/// List the members of a room
///
/// Members are the subscribers on all replicas whose streams give a name with `subscriber=`. This route needs the
/// permission `presence`. A page has about `limit` members. While members join and leave, a member may be on two
/// pages. `Link` with `rel="next"` leads to the next page.
#[utoipa::path(
    get, path = "/v1/rooms/{room}/subscribers", operation_id = "listSubscribers", tag = "Presence",
    params(("room" = String, Path, description = "The room's name", example = "lobby"),
        SubscribersQuery),
    responses((status = 200, description = "The members of the room", body = SubscriberList,
        headers(("Link" = String, description = "The next page, if there is one")))),
)]
pub async fn list_subscribers(
    caller: Caller,
    RoomPath(room): RoomPath,
    QueryParams(query): QueryParams<SubscribersQuery>,
    State(app): State<App>,
) -> Result<Response, Problem> {
    caller.require(Permission::Presence, room.as_str())?;
    let limit = page_limit(query.limit, DEFAULT_LIMIT, MAX_LIMIT)?;
    let page = app.presence.members(&room, query.after.as_deref(), limit);
    let page = caller.read(&app, page, MemberPage::bytes).await?;
    let subscribers = page.members.into_iter().filter_map(SubscriberDescription::from_view).collect();
    let mut response = Json(SubscriberList { room: room.to_string(), subscribers }).into_response();
    if let Some(next) = page.next {
        let (room, next) = (escape(room.as_str()), escape(&next));
        add_link(&mut response, &format!("/v1/rooms/{room}/subscribers?limit={limit}&after={next}"));
    }
    Ok(response)
}
