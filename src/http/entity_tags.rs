//! Entity tags in headers: `ETag`, `If-Match` and `If-None-Match`.

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use super::extract::list_members;
use super::problem::{Code, Problem};

/// Entity tags in one header.
const MAX_TAGS: usize = 20;

/// The entity tags of a conditional request.
pub enum Tags {
    /// `*`.
    Any,
    /// These tags, without quotes.
    These(Vec<String>),
}

impl Tags {
    /// Reads a header.
    pub fn from_header(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Self>, Problem> {
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
    pub fn matches(&self, tag: &str) -> bool {
        match self {
            Self::Any => true,
            Self::These(tags) => tags.iter().any(|known| known == tag),
        }
    }
}

/// An entity tag as `ETag` has it: in quotes.
pub fn quoted(tag: &str) -> HeaderValue {
    HeaderValue::try_from(["\"", tag, "\""].concat()).expect("digests and positions are visible ASCII")
}
