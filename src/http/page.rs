//! Pages of lists: how long they may be, and where the next one is.

use axum::http::{HeaderValue, header};
use axum::response::Response;

use super::problem::{Code, Problem};

/// Percent-encodes a path's segment or a query's value.
pub(super) fn escape(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

pub(super) fn add_link(response: &mut Response, target: &str) {
    let link = HeaderValue::from_str(&format!("<{target}>; rel=\"next\""));
    response.headers_mut().insert(header::LINK, link.expect("an escaped target is visible ASCII"));
}

pub(super) fn page_limit(asked: Option<usize>, default: usize, most: usize) -> Result<usize, Problem> {
    match asked.unwrap_or(default) {
        limit if (1..=most).contains(&limit) => Ok(limit),
        _ => Err(Problem::new(Code::InvalidQuery, format!("limit is 1 to {most}"))),
    }
}
