//! Pages of lists: their size, and the link to the next one.

use axum::http::{HeaderValue, header};
use axum::response::Response;

use super::problem::{Code, Problem};

/// Percent-encodes a segment of a path or a value of a query.
pub(super) fn escape(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// Adds a `Link` to the next page. `target` is a path and a query, already escaped.
pub(super) fn add_link(response: &mut Response, target: &str) {
    let link = HeaderValue::from_str(&format!("<{target}>; rel=\"next\""));
    response.headers_mut().insert(header::LINK, link.expect("an escaped target is visible ASCII"));
}

/// The size of a page: what the request asks for, or the default.
pub(super) fn page_limit(requested: Option<usize>, default: usize, max: usize) -> Result<usize, Problem> {
    match requested.unwrap_or(default) {
        limit if (1..=max).contains(&limit) => Ok(limit),
        _ => Err(Problem::new(Code::InvalidQuery, format!("limit must be between 1 and {max}"))),
    }
}
