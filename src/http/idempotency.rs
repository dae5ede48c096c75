//! `Idempotency-Key`: a publish or a write to a hash that is repeated with the same key gets the same answer and stores
//! nothing again.

use axum::http::{HeaderMap, HeaderName};

use super::extract::header_text;
use super::problem::{Code, Problem};
use crate::broker::{HashWrite, IdempotencyKey};
use crate::digest::sha1_hex;
use crate::names::{Data, Event, EventId, EventName, SubscriberId};

/// The request header with the key.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// The response header that says that an earlier request with the same key has done what this one asks for.
pub const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// Longest key. A UUID has 36 bytes.
const MAX_KEY_BYTES: usize = 255;

/// The key in a request's headers.
pub fn key_from_headers(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let Some(key) = header_text(headers, &IDEMPOTENCY_KEY)? else { return Ok(None) };
    check(key).map(Some).map_err(|why| Problem::new(Code::InvalidHeader, format!("Idempotency-Key {why}")))
}

/// Checks a key from a header or a body.
pub fn check(key: &str) -> Result<&str, &'static str> {
    let is_valid = (1..=MAX_KEY_BYTES).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
    if is_valid { Ok(key) } else { Err("must be 1 to 255 visible ASCII characters without spaces") }
}

/// The digests that the broker stores of a key and of the event that is published with it, `after` one of these positions.
/// Keys of different callers are different keys.
pub fn idempotency_key(caller: &str, key: &str, event: &Event, after: Option<&[EventId]>) -> IdempotencyKey {
    let kind = match event.data {
        Data::Json(_) => "json",
        Data::Text(_) => "text",
    };
    let name = event.name.as_ref().map_or("", EventName::as_str);
    let mut content = vec![name, kind, event.data.as_text()];
    content.extend(event.except.iter().map(SubscriberId::as_str));
    // No subscriber's id has a quotation mark, with which the rest begins.
    let condition = after.map(|after| format!("\"{after:?}\""));
    content.extend(condition.as_deref());
    content.extend(event.is_final.then_some("\"final\""));
    IdempotencyKey { key: digest(&[caller, key]), content: digest(&content) }
}

/// The digests of a key and of the write to a hash that it belongs to.
pub fn write_key(caller: &str, key: &str, write: &HashWrite) -> IdempotencyKey {
    IdempotencyKey { key: digest(&[caller, key]), content: digest(&write.words()) }
}

/// The publish id for a key. It is the same each time, so that a repeated batch gets the same answer.
pub fn publish_id(caller: &str, key: &str) -> String {
    digest(&[caller, key, "publish_id"])
}

/// Hashes each part with its length before it, so that different lists of parts never look alike.
fn digest(parts: &[impl AsRef<[u8]>]) -> String {
    let mut bytes = Vec::new();
    for part in parts.iter().map(AsRef::as_ref) {
        bytes.extend_from_slice(&part.len().to_be_bytes());
        bytes.extend_from_slice(part);
    }
    sha1_hex(&bytes)
}
