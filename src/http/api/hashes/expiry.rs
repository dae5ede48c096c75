//! The expiry of a hash.

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::hash_not_found;
use super::writes::WriteHeaders;
use crate::auth::Permission;
use crate::broker::{HashLifetime, HashWrite, MAX_LIFETIME_SECONDS};
use crate::http::App;
use crate::http::body::read_json_body;
use crate::http::caller::Caller;
use crate::http::extract::{HashPath, JsonObject, parse_json};
use crate::http::problem::{Code, Problem};

/// When a hash expires.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"seconds": 3600, "refresh": true}))]
pub struct SetExpiry {
    /// The number of seconds after which the hash is deleted, with all its fields: a whole number. Null: never.
    #[schema(value_type = Option<u32>, required = true, minimum = 1, maximum = 315_360_000)]
    seconds: Box<RawValue>,
    /// Whether each later write to the hash begins the seconds anew.
    #[schema(required = false, nullable = false, default = false)]
    refresh: Option<bool>,
}

impl SetExpiry {
    fn lifetime(self) -> Result<Option<HashLifetime>, Problem> {
        let refuse = |detail: String| Problem::new(Code::InvalidBody, detail);
        let is_refreshed = self.refresh.unwrap_or_default();
        match self.seconds.get() {
            "null" if is_refreshed => Err(refuse("refresh needs seconds: a number, and not null".into())),
            "null" => Ok(None),
            text => {
                if let Ok(seconds @ 1..=MAX_LIFETIME_SECONDS) = text.parse() {
                    return Ok(Some(HashLifetime { seconds, is_refreshed }));
                }
                let detail =
                    format!("seconds must be a whole number from 1 to {MAX_LIFETIME_SECONDS}, or null for never");
                Err(refuse(detail))
            }
        }
    }
}

/// Set when a hash expires
///
/// The hash is deleted after so many seconds from now, and not before if they are null. With `refresh`, each later write
/// to the hash begins the seconds anew. A hash that is deleted, or has lost its last field, loses its expiry, too. On
/// Redis this is the expiry of the key, which other clients see and may change; one that they have set is not refreshed.
/// The list of fields shows when the hash expires.
#[utoipa::path(
    put, path = "/v1/hashes/{hash}/expiry", operation_id = "setExpiry", tag = "Hashes",
    params(("hash" = String, Path, description = "The hash's name", example = "lamp"),
        ("Idempotency-Key" = Option<String>, Header, max_length = 255,
            description = "Makes the request safe to repeat: the same key with the same seconds sets nothing twice")),
    request_body(content = SetExpiry, content_type = "application/json"),
    responses(
        (status = 204, description = "The expiry is set", headers(("Idempotency-Replayed" = String,
            description = "`true` if an earlier request with this key has set it"))),
        (status = 404, description = "The hash does not exist"),
        (status = 409, description = "The key in Redis has another type"),
        (status = 415, description = "The body is not JSON"),
        (status = 422, description = "The idempotency key was used for another write"),
    )
)]
pub async fn set_expiry(
    caller: Caller,
    HashPath(hash): HashPath,
    State(app): State<App>,
    request: Request,
) -> Result<Response, Problem> {
    caller.require(Permission::Write, hash.as_str())?;
    let headers = WriteHeaders::from_headers(request.headers())?;
    let body = read_json_body(request, &app, &caller).await?;
    let JsonObject(expiry) = parse_json::<JsonObject<SetExpiry>>(&body)?;
    let write = HashWrite::Expire(expiry.lifetime()?);
    let done = headers.write(&app, &caller, &hash, &write, async |_| hash_not_found(&hash)).await?;
    Ok(done.respond(StatusCode::NO_CONTENT, None, None::<()>))
}
