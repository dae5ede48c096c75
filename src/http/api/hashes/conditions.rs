//! Entity tags and conditions: `ETag`, `If-Match` and `If-None-Match`.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::broker::{Condition, entity_tag};
use crate::http::extract::header_text;
use crate::http::problem::{Code, Problem};

/// Entity tags in one header.
const MAX_TAGS: usize = 20;

/// The entity tags of a conditional request.
pub(super) enum Tags {
    Any,
    These(Vec<String>),
}

impl Tags {
    /// Reads a header.
    pub(super) fn from_header(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Self>, Problem> {
        let Some(text) = header_text(headers, name)? else { return Ok(None) };
        if text.trim() == "*" {
            return Ok(Some(Self::Any));
        }
        let tags: Option<Vec<_>> = text
            .split(',')
            .map(|tag| {
                let tag = tag.trim();
                // A load balancer may make a tag weak. Values match byte by byte or not at all, so a weak tag means
                // the same.
                let tag = tag.strip_prefix("W/").unwrap_or(tag);
                Some(tag.strip_prefix('"')?.strip_suffix('"')?.to_owned())
            })
            .collect();
        match tags {
            Some(tags) if tags.len() <= MAX_TAGS => Ok(Some(Self::These(tags))),
            _ => {
                let detail = format!("{name} must be *, or 1 to {MAX_TAGS} entity tags in double quotes");
                Err(Problem::new(Code::InvalidHeader, detail))
            }
        }
    }

    /// Whether a value with this entity tag matches.
    pub(super) fn matches(&self, tag: &str) -> bool {
        match self {
            Self::Any => true,
            Self::These(tags) => tags.iter().any(|known| known == tag),
        }
    }
}

/// The condition of a write.
pub(super) fn condition(headers: &HeaderMap) -> Result<Condition, Problem> {
    let if_match = Tags::from_header(headers, &header::IF_MATCH)?;
    let if_none_match = Tags::from_header(headers, &header::IF_NONE_MATCH)?;
    match (if_match, if_none_match) {
        (None, None) => Ok(Condition::Always),
        (Some(Tags::Any), None) => Ok(Condition::Present),
        (Some(Tags::These(tags)), None) => Ok(Condition::Matches(tags)),
        (None, Some(Tags::Any)) => Ok(Condition::Absent),
        (None, Some(Tags::These(_))) => Err(Problem::new(
            Code::InvalidHeader,
            "If-None-Match of a write must be *; only If-Match may have entity tags",
        )),
        (Some(_), Some(_)) => {
            Err(Problem::new(Code::InvalidHeader, "a write may have If-Match or If-None-Match, but not both"))
        }
    }
}

/// Refuses conditions on routes that do not support them. If they were ignored, a write would be done although its
/// condition does not hold.
pub(super) fn refuse_conditions(headers: &HeaderMap) -> Result<(), Problem> {
    if condition(headers)? == Condition::Always {
        return Ok(());
    }
    let detail = "this route does not support If-Match and If-None-Match; PUT and DELETE of a field do";
    Err(Problem::new(Code::InvalidHeader, detail))
}

/// The `ETag` of a value.
pub(super) fn etag(value: &[u8]) -> HeaderValue {
    quoted(&entity_tag(value))
}

/// An entity tag as `ETag` has it: in quotes.
pub(super) fn quoted(tag: &str) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{tag}\"")).expect("hexadecimal digits are visible ASCII")
}
