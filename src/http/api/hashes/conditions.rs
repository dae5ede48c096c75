//! Entity tags and conditions: `ETag`, `If-Match` and `If-None-Match`.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::broker::{Condition, entity_tag};
use crate::http::extract::list_members;
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
        if !headers.contains_key(name) {
            return Ok(None);
        }
        let members: Vec<_> = list_members(headers, name).collect();
        if members == [b"*"] {
            return Ok(Some(Self::Any));
        }
        let tags: Option<Vec<_>> = members
            .into_iter()
            .map(|tag| {
                // A load balancer may make a tag weak. Values match byte by byte or not at all, so a weak tag means
                // the same.
                let tag = tag.strip_prefix(b"W/").unwrap_or(tag);
                let tag = tag.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
                // A tag with other bytes is another server's.
                (!tag.contains(&b'"')).then(|| String::from_utf8_lossy(tag).into_owned())
            })
            .collect();
        match tags {
            Some(tags) if (1..=MAX_TAGS).contains(&tags.len()) => Ok(Some(Self::These(tags))),
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

/// The `ETag` of a value.
pub(super) fn etag(value: &[u8]) -> HeaderValue {
    quoted(&entity_tag(value))
}

/// An entity tag as `ETag` has it: in quotes.
pub(super) fn quoted(tag: &str) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{tag}\"")).expect("hexadecimal digits are visible ASCII")
}
