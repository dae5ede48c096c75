//! The web pages that make browsers send requests. A page whose origin is not allowed can't read the answer, so it must
//! not change anything either.

use axum::http::header::{HOST, ORIGIN};
use axum::http::request::Parts;
use axum::http::uri::{Authority, Scheme};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri};

use super::caller::TokenSource;
use super::problem::{Code, Problem};
use crate::config::AccessArgs;

/// Where the page stands that makes a browser send a request. Pages can't set it.
pub const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// Longest origin that a refusal repeats.
const MAX_SHOWN_BYTES: usize = 200;

/// Refuses a write that a page which is not allowed may have made a browser send. Of a read, returns the refusal, for
/// reads that change what others see or have.
pub fn check_page(
    parts: &Parts,
    access: &AccessArgs,
    source: Option<TokenSource>,
) -> Result<Option<Problem>, Problem> {
    let origin = parts.headers.get(ORIGIN).map(HeaderValue::as_bytes);
    let is_allowed = origin.is_some_and(|origin| access.allows_origin(origin));
    // A page of another site can't set the Authorization header without asking first.
    if is_allowed || source == Some(TokenSource::Header) {
        return Ok(None);
    }
    let is_cookie = source == Some(TokenSource::Cookie);
    let site = parts.headers.get(SEC_FETCH_SITE).map(HeaderValue::as_bytes);
    let is_foreign = match site {
        Some(b"same-origin") => false,
        // Older browsers, and requests without TLS, have no site. They have no Origin if they read from the page's own
        // origin. A page without TLS must not pass for the one with TLS, of which it may have the cookie.
        Some(b"none") | None => origin.is_some_and(|origin| is_cookie || !is_own(parts, origin)),
        Some(_) => true,
    };
    if !parts.method.is_safe() && (is_foreign || is_cookie && site != Some(b"same-origin")) {
        return Err(refusal(&parts.headers));
    }
    // The page has chosen to send a token in the query.
    Ok((is_foreign && source != Some(TokenSource::Query)).then(|| refusal(&parts.headers)))
}

/// Whether an origin has the host and the port to which the request went.
fn is_own(parts: &Parts, origin: &[u8]) -> bool {
    let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    let (Some(host), Ok(origin)) = (parts.uri.authority().or(host.as_ref()), Uri::try_from(origin)) else {
        return false;
    };
    let default = if origin.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 };
    origin.host().is_some_and(|name| name.eq_ignore_ascii_case(host.host()))
        && origin.port_u16().unwrap_or(default) == host.port_u16().unwrap_or(default)
}

/// The refusal names the page's origin, so that the operator can allow it.
fn refusal(headers: &HeaderMap) -> Problem {
    let origin = headers.get(ORIGIN).and_then(|origin| origin.to_str().ok());
    let origin = match origin.filter(|origin| origin.len() <= MAX_SHOWN_BYTES) {
        Some("null") => "null, that of files and sandboxed frames, which can't be listed".into(),
        Some(origin) => format!("{origin:?}"),
        None => "not in the request".into(),
    };
    let detail = format!(
        "a page's write or named stream needs an origin that --cors-origin lists, or a token in the Authorization \
         header; the origin is {origin}"
    );
    Problem::new(Code::OriginNotAllowed, detail)
}
