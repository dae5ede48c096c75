//! The conditions of writes, and the entity tags of values.

use axum::http::{HeaderMap, HeaderValue, header};

use crate::broker::{Condition, entity_tag};
pub(super) use crate::http::entity_tags::{Tags, quoted};
use crate::http::problem::{Code, Problem};

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
