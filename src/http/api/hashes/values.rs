//! Values in JSON, and their limit.

use axum::body::Bytes;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::App;
use crate::http::problem::{Code, CurrentValue, Problem};

/// The present values in a problem document have at most so many bytes together.
const MAX_PRESENT_BYTES: usize = 1024 * 1024;

/// A value in JSON: `value` if it is UTF-8, otherwise `value_base64`.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({"value": "green"}))]
pub struct HashValue {
    /// The value, if it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) value: Option<String>,
    /// The value in Base64, if it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub(super) value_base64: Option<String>,
}

impl HashValue {
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self { value: Some(text.into()), value_base64: None },
            Err(_) => Self { value: None, value_base64: Some(STANDARD.encode(bytes)) },
        }
    }
}

/// A value with its entity tag.
#[derive(ToSchema)]
#[schema(example = json!({"value": "green", "etag": "\"bc74f4f071a5a33f00ab88a6d6385b5e6638b86c\""}))]
#[allow(dead_code, reason = "it only describes a `WatchedValue`")]
pub struct TaggedValue {
    /// The value, if it is UTF-8.
    #[schema(nullable = false)]
    value: Option<String>,
    /// The value in Base64, if it is not UTF-8.
    #[schema(nullable = false)]
    value_base64: Option<String>,
    /// The value's entity tag, as `If-Match` takes it.
    etag: String,
}

/// The present value of a field, for a problem document.
pub(super) fn current_value(bytes: Option<&Bytes>) -> CurrentValue {
    match bytes {
        None => CurrentValue { value: None, value_base64: None },
        Some(bytes) => {
            let HashValue { value, value_base64 } = HashValue::from_bytes(bytes);
            CurrentValue { value, value_base64 }
        }
    }
}

/// Whether a problem document has these present values. It leaves out large ones, so that a refusal needs no room among
/// large answers.
pub(super) fn fit_in_problem<'a>(values: impl IntoIterator<Item = &'a Bytes>) -> bool {
    values.into_iter().map(Bytes::len).sum::<usize>() <= MAX_PRESENT_BYTES
}

/// Refuses values that are too large.
pub(super) fn check_value(app: &App, value: &[u8]) -> Result<(), Problem> {
    let limit = app.settings.requests.max_value_bytes;
    if value.len() > limit {
        let detail = format!("the value has more than {limit} bytes (--max-value-bytes)");
        return Err(Problem::new(Code::BodyTooLarge, detail));
    }
    Ok(())
}
