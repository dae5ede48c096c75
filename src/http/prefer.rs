//! `Prefer` (RFC 7240): how much a client wants to get back of what it writes.

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::extract::list_members;

static PREFER: HeaderName = HeaderName::from_static("prefer");
/// The response header that names the preference that was applied.
pub const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// What a write's response should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Return {
    /// No body.
    Minimal,
    /// What was written, as it is now.
    Representation,
}

impl Return {
    /// Reads `Prefer`. The first `return` counts. Other preferences are ignored, and so are values that are not known.
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut preferences = list_members(headers, &PREFER).filter_map(|member| {
            let preference = member.split(|byte| *byte == b';').next()?;
            let (name, value) = str::from_utf8(preference).ok()?.split_once('=')?;
            name.trim().eq_ignore_ascii_case("return").then_some(value.trim())
        });
        match preferences.next()?.trim_matches('"') {
            "minimal" => Some(Self::Minimal),
            "representation" => Some(Self::Representation),
            _ => None,
        }
    }

    /// The value of `Preference-Applied`.
    pub fn applied(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Minimal => "return=minimal",
            Self::Representation => "return=representation",
        })
    }
}
