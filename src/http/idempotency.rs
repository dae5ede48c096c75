//! `Idempotency-Key`: a publish that is repeated with the same key has the same answer, and no second effect.

use axum::http::{HeaderMap, HeaderName};

use super::extract::header_text;
use super::problem::{Code, Problem};
use crate::broker::IdempotencyKey;
use crate::digest::sha1_hex;
use crate::names::{Data, Event, EventName, SubscriberId};

/// The request's header.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// The answer's header, where an earlier request with the same key did the work.
pub const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// Longest key. A UUID takes 36.
const MAX_KEY_BYTES: usize = 255;

/// The key that the request carries.
pub fn key_of(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let Some(key) = header_text(headers, &IDEMPOTENCY_KEY)? else { return Ok(None) };
    check(key).map(Some).map_err(|why| Problem::new(Code::InvalidHeader, format!("Idempotency-Key {why}")))
}

/// Checks a key, wherever it stood.
pub fn check(key: &str) -> Result<&str, &'static str> {
    let fine = (1..=MAX_KEY_BYTES).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
    if fine { Ok(key) } else { Err("is 1 to 255 visible ASCII characters without spaces") }
}

/// What the broker has to know of a key and of what is published with it. A key is its caller's own: another may use the same.
pub fn idempotency_key(caller: &str, key: &str, event: &Event) -> IdempotencyKey {
    let kind = match event.data {
        Data::Json(_) => "json",
        Data::Text(_) => "text",
    };
    let name = event.name.as_ref().map_or("", EventName::as_str);
    let mut content = vec![name, kind, event.data.as_text()];
    content.extend(event.except.iter().map(SubscriberId::as_str));
    IdempotencyKey { key: digest(&[caller, key]), content: digest(&content) }
}

/// The same for the same key, so that a repeated batch has the same answer.
pub fn publish_id(caller: &str, key: &str) -> String {
    digest(&[caller, key, "publish_id"])
}

/// Each part goes in with its length, so that no two lists of parts look alike.
fn digest(parts: &[&str]) -> String {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(&part.len().to_be_bytes());
        bytes.extend_from_slice(part.as_bytes());
    }
    sha1_hex(&bytes)
}
