//! Ending others' streams, and keeping their owners out.

use std::time::{Duration, SystemTime};

use axum::extract::{FromRequestParts, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::auth::MAX_ID_BYTES;
use crate::broker::{MemberView, Removal};
use crate::http::caller::Caller;
use crate::http::extract::{Query, name, path};
use crate::http::problem::{Code, Problem};
use crate::http::{App, audit};
use crate::names::{RoomName, SubscriberId};

/// Longest time for which somebody is kept out: removals are not remembered for longer.
const MAX_DENY: Duration = Duration::from_hours(30 * 24);
/// How long a token is not taken any more, where the request does not say.
const DEFAULT_REVOCATION: Duration = Duration::from_hours(24);

/// How to remove somebody.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct RemovalQuery {
    /// For how many seconds it may not come back: an `EventSource` that does is answered with 204 and gives up. Without it, the stream
    /// ends and may be opened again.
    #[param(maximum = 2_592_000)]
    deny_seconds: Option<u64>,
}

impl RemovalQuery {
    fn seconds(&self, default: Duration) -> Result<u64, Problem> {
        match self.deny_seconds.unwrap_or(default.as_secs()) {
            seconds if seconds <= MAX_DENY.as_secs() => Ok(seconds),
            _ => Err(Problem::new(Code::InvalidQuery, format!("deny_seconds is {} at most", MAX_DENY.as_secs()))),
        }
    }
}

/// Milliseconds since 1970.
fn until(seconds: u64) -> u64 {
    if seconds == 0 {
        return 0;
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from((now + Duration::from_secs(seconds)).as_millis()).unwrap_or(u64::MAX)
}

/// Remove a subscriber from a room
///
/// Its stream ends, on whichever replica it is, with `stream.end` and the reason `removed`. With `deny_seconds`, whoever it belongs to
/// (the subject of its token; without one, the address that it comes from) can't open a stream of this room for that time,
/// whatever the name. Stored before it is answered. It takes `admin`.
#[utoipa::path(
    delete, path = "/v1/rooms/{room}/subscribers/{subscriber}", operation_id = "removeSubscriber", tag = "Presence",
    params(("room" = String, Path, description = "The room's name", max_length = 128, example = "lobby"),
        ("subscriber" = String, Path, description = "The subscriber's name", max_length = 128), RemovalQuery),
    responses((status = 204, description = "It is stored, and every replica acts upon it")),
)]
pub async fn remove_subscriber(
    caller: Caller,
    SubscriberPath(room, subscriber): SubscriberPath,
    Query(query): Query<RemovalQuery>,
    State(app): State<App>,
) -> Result<StatusCode, Problem> {
    caller.require_admin()?;
    let seconds = query.seconds(Duration::ZERO)?;
    // Where it is away at the moment, its stream can't tell whose it is.
    let shown = if seconds > 0 { app.presence.member(&room, &subscriber).await? } else { None };
    let removal = Removal {
        user: shown.as_ref().and_then(MemberView::profile).and_then(|profile| profile.user),
        address: shown.and_then(|shown| shown.address),
        room: Some(room.clone()),
        subscriber: Some(subscriber.clone()),
        until: until(seconds),
        ..Removal::default()
    };
    remove(&app, &caller, &removal, ("subscriber", &format!("{subscriber} from {room}")), seconds).await
}

/// End a user's streams
///
/// All streams of tokens with this subject end, on every replica; with `deny_seconds` they can't be opened again for that time. It takes
/// `admin`.
#[utoipa::path(
    delete, path = "/v1/users/{user}/streams", operation_id = "removeUser", tag = "Presence",
    params(("user" = String, Path, description = "The subject of tokens", max_length = 256), RemovalQuery),
    responses((status = 204, description = "It is stored, and every replica acts upon it")),
)]
pub async fn remove_user(
    caller: Caller,
    IdPath(user): IdPath,
    Query(query): Query<RemovalQuery>,
    State(app): State<App>,
) -> Result<StatusCode, Problem> {
    caller.require_admin()?;
    let seconds = query.seconds(Duration::ZERO)?;
    let removal = Removal { user: Some(user.clone()), until: until(seconds), ..Removal::default() };
    remove(&app, &caller, &removal, ("user", &user), seconds).await
}

/// Revoke a token
///
/// A token with this `jti` is not taken any more, on any replica, for `deny_seconds` (a day, if it is not said): as long as the token would
/// be valid. Its streams end with the reason `token_revoked`. It takes `admin`.
#[utoipa::path(
    delete, path = "/v1/tokens/{jti}", operation_id = "revokeToken", tag = "Presence",
    params(("jti" = String, Path, description = "The token's id, its claim jti", max_length = 256), RemovalQuery),
    responses((status = 204, description = "It is stored, and every replica acts upon it")),
)]
pub async fn revoke_token(
    caller: Caller,
    IdPath(token): IdPath,
    Query(query): Query<RemovalQuery>,
    State(app): State<App>,
) -> Result<StatusCode, Problem> {
    caller.require_admin()?;
    let seconds = query.seconds(DEFAULT_REVOCATION)?;
    let removal = Removal { token: Some(token.clone()), until: until(seconds), ..Removal::default() };
    remove(&app, &caller, &removal, ("token", &token), seconds).await
}

/// Stores a removal, and notes who asked for it.
async fn remove(
    app: &App,
    caller: &Caller,
    removal: &Removal,
    (what, whom): (&'static str, &str),
    seconds: u64,
) -> Result<StatusCode, Problem> {
    app.moderation.remove(removal).await?;
    audit::removed(app, caller, what, whom, seconds);
    Ok(StatusCode::NO_CONTENT)
}

/// The room and the subscriber in the path.
pub struct SubscriberPath(RoomName, SubscriberId);

impl FromRequestParts<App> for SubscriberPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let (room, subscriber): (String, String) = path(parts, app).await?;
        let room = name("the room", &room, RoomName::new)?;
        Ok(Self(room, name("the subscriber", &subscriber, SubscriberId::new)?))
    }
}

/// A subject or a token's id, in the path.
pub struct IdPath(String);

impl FromRequestParts<App> for IdPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let id: String = path(parts, app).await?;
        if id.len() > MAX_ID_BYTES {
            return Err(Problem::new(Code::InvalidName, format!("it is longer than {MAX_ID_BYTES} bytes")));
        }
        Ok(Self(id))
    }
}
