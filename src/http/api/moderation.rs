//! Removals of subscribers, users and tokens: their streams end, and may not be opened again for a time.

use std::time::Duration;

use axum::extract::{FromRequestParts, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::auth::MAX_ID_BYTES;
use crate::broker::{MemberView, Removal};
use crate::http::caller::Caller;
use crate::http::extract::{QueryParams, parse_name, path_params};
use crate::http::problem::{Code, Problem};
use crate::http::{App, audit};
use crate::names::{RoomName, SubscriberId};
use crate::timestamp;

/// Longest ban, so that no removal is stored for longer.
const MAX_BAN: Duration = Duration::from_hours(30 * 24);
/// How long a token is revoked if the request does not say.
const DEFAULT_REVOCATION: Duration = Duration::from_hours(24);

/// The query of a removal.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RemovalQuery {
    /// The number of seconds for which new streams are denied, or for which a token is refused. A denied stream is
    /// answered with 204, at which an `EventSource` gives up. By default, removed streams may be opened again at
    /// once, and a token is refused for one day.
    #[param(maximum = 2_592_000)]
    deny_seconds: Option<u64>,
}

impl RemovalQuery {
    fn seconds(&self, default: Duration) -> Result<u64, Problem> {
        let seconds = self.deny_seconds.unwrap_or(default.as_secs());
        if seconds > MAX_BAN.as_secs() {
            let detail = format!("deny_seconds must be {} (30 days) or less", MAX_BAN.as_secs());
            return Err(Problem::new(Code::InvalidQuery, detail));
        }
        Ok(seconds)
    }
}

/// The time so many seconds from now, in milliseconds since 1970. 0 for no seconds, so that no stream is denied.
fn until(seconds: u64) -> u64 {
    if seconds == 0 {
        return 0;
    }
    timestamp::milliseconds(timestamp::since_1970() + Duration::from_secs(seconds))
}

/// Remove a subscriber from a room
///
/// The subscriber's stream of the room ends, on any replica, with `stream.end` and the reason `removed`. With
/// `deny_seconds`, the subscriber's owner can't open a stream of the room for that time, under any name. The owner is
/// the subject of the subscriber's token or, without a subject, the address of its client. The response is sent after
/// the removal is stored. This route needs `admin`.
#[utoipa::path(
    delete, path = "/v1/rooms/{room}/subscribers/{subscriber}", operation_id = "removeSubscriber", tag = "Presence",
    params(("room" = String, Path, description = "The room's name", example = "lobby"),
        ("subscriber" = String, Path, description = "The subscriber's name"), RemovalQuery),
    responses((status = 204, description = "The removal is stored, and every replica applies it")),
)]
pub async fn remove_subscriber(
    caller: Caller,
    SubscriberPath(room, subscriber): SubscriberPath,
    QueryParams(query): QueryParams<RemovalQuery>,
    State(app): State<App>,
) -> Result<StatusCode, Problem> {
    caller.require_admin()?;
    let seconds = query.seconds(Duration::ZERO)?;
    // The member list names the owner even while the subscriber has no stream, which would name it otherwise.
    let member = if seconds > 0 { app.presence.member(&room, &subscriber).await? } else { None };
    let removal = Removal {
        user: member.as_ref().and_then(MemberView::profile).and_then(|profile| profile.user),
        address: member.and_then(|member| member.address),
        room: Some(room.clone()),
        subscriber: Some(subscriber.clone()),
        until: until(seconds),
        ..Removal::default()
    };
    remove(&app, &caller, &removal, ("subscriber", &format!("{subscriber} from {room}")), seconds).await
}

/// End a user's streams
///
/// All streams of tokens with this subject end, on every replica. With `deny_seconds`, they can't be opened again for
/// that time. This route needs `admin`.
#[utoipa::path(
    delete, path = "/v1/users/{user}/streams", operation_id = "removeUser", tag = "Presence",
    params(("user" = String, Path, description = "The user: the subject of tokens", max_length = 256), RemovalQuery),
    responses((status = 204, description = "The removal is stored, and every replica applies it")),
)]
pub async fn remove_user(
    caller: Caller,
    IdPath(user): IdPath,
    QueryParams(query): QueryParams<RemovalQuery>,
    State(app): State<App>,
) -> Result<StatusCode, Problem> {
    caller.require_admin()?;
    let seconds = query.seconds(Duration::ZERO)?;
    let removal = Removal { user: Some(user.clone()), until: until(seconds), ..Removal::default() };
    remove(&app, &caller, &removal, ("user", &user), seconds).await
}

/// Revoke a token
///
/// Every replica refuses tokens with this `jti` for `deny_seconds` (by default one day), which should cover the rest
/// of the token's lifetime. The token's streams end with the reason `token_revoked`. This route needs `admin`.
#[utoipa::path(
    delete, path = "/v1/tokens/{jti}", operation_id = "revokeToken", tag = "Presence",
    params(("jti" = String, Path, description = "The token's id: its claim `jti`", max_length = 256), RemovalQuery),
    responses((status = 204, description = "The revocation is stored, and every replica applies it")),
)]
pub async fn revoke_token(
    caller: Caller,
    IdPath(token): IdPath,
    QueryParams(query): QueryParams<RemovalQuery>,
    State(app): State<App>,
) -> Result<StatusCode, Problem> {
    caller.require_admin()?;
    let seconds = query.seconds(DEFAULT_REVOCATION)?;
    let removal = Removal { token: Some(token.clone()), until: until(seconds), ..Removal::default() };
    remove(&app, &caller, &removal, ("token", &token), seconds).await
}

/// Stores a removal, and writes it to the audit log.
async fn remove(
    app: &App,
    caller: &Caller,
    removal: &Removal,
    (kind, name): (&'static str, &str),
    seconds: u64,
) -> Result<StatusCode, Problem> {
    app.moderation.remove(removal).await?;
    audit::removed(app, caller, kind, name, seconds);
    Ok(StatusCode::NO_CONTENT)
}

/// The room and the subscriber in the path.
pub struct SubscriberPath(RoomName, SubscriberId);

impl FromRequestParts<App> for SubscriberPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let (room, subscriber): (String, String) = path_params(parts, app).await?;
        let room = parse_name("the room", &room, RoomName::new)?;
        Ok(Self(room, parse_name("the subscriber", &subscriber, SubscriberId::new)?))
    }
}

/// The subject of tokens, or the id of a token, in the path.
pub struct IdPath(String);

impl FromRequestParts<App> for IdPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let id: String = path_params(parts, app).await?;
        if id.len() > MAX_ID_BYTES {
            let detail = format!("the last name in the path has more than {MAX_ID_BYTES} bytes");
            return Err(Problem::new(Code::InvalidName, detail));
        }
        Ok(Self(id))
    }
}
