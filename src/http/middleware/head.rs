//! Refuses heads that can't be read in one way only, and headers and parameters that a route would ignore although their
//! sender relies on them.

use axum::extract::{MatchedPath, Request};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, Version, header};

use crate::http::extract::{NoParameters, list_members, parse_query};
use crate::http::openapi::has_no_query;
use crate::http::problem::{Code, Problem};

/// Routes of writes that have conditions, with their methods if not all of them do.
const CONDITIONAL_ROUTES: [(&str, Option<Method>); 3] = [
    ("/v1/hashes/{hash}/fields/{field}", None),
    ("/v1/hashes/{hash}/fields/{field}/increment", None),
    ("/v1/rooms/{room}/events", Some(Method::POST)),
];

/// Checks the head of a request.
pub fn check_head(request: &Request) -> Result<(), Problem> {
    let headers = request.headers();
    // First, since the server closes the connection after this refusal: where such a body ends is not sure.
    let mut codings = list_members(headers, &header::TRANSFER_ENCODING);
    if codings.next().is_some_and(|coding| !coding.eq_ignore_ascii_case(b"chunked")) || codings.next().is_some() {
        let detail = "the only Transfer-Encoding is chunked, once; a body in gzip has Content-Encoding: gzip";
        return Err(Problem::new(Code::NotImplemented, detail));
    }
    check_host(headers, request.version())?;
    let is_read = request.method().is_safe();
    let refuse = |detail| Err(Problem::new(Code::InvalidHeader, detail));
    if !is_read && headers.contains_key(header::CONTENT_RANGE) {
        return refuse("Content-Range is not supported; a value is written as a whole");
    }
    // Above the limit of connections, no route matches.
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    // Other routes parse their parameters, and refuse the rest.
    if request.uri().query().is_some() && route.is_some_and(|route| has_no_query(request.method(), route)) {
        parse_query::<NoParameters>(request.uri())?;
    }
    let has_conditions = route.is_none_or(|route| {
        CONDITIONAL_ROUTES
            .iter()
            .any(|(path, method)| *path == route && method.as_ref().is_none_or(|method| method == request.method()))
    });
    if !is_read
        && !has_conditions
        && [header::IF_MATCH, header::IF_NONE_MATCH].iter().any(|name| headers.contains_key(name))
    {
        return refuse(
            "this route does not support If-Match and If-None-Match; PUT, DELETE and increment of a field do, a JSON \
             patch has tests, and a publish to one room takes If-Match",
        );
    }
    Ok(())
}

/// A request has one `Host` (RFC 9112, section 3.2). It may be empty, and HTTP/1.0 does not need it.
fn check_host(headers: &HeaderMap, version: Version) -> Result<(), Problem> {
    let mut hosts = headers.get_all(header::HOST).into_iter();
    let is_valid = match (hosts.next(), hosts.next()) {
        (None, _) => version < Version::HTTP_11,
        (Some(host), None) => host.is_empty() || is_host(host.as_bytes()),
        (Some(_), Some(_)) => false,
    };
    let detail = "a request needs one Host header, such as example.com or 127.0.0.1:8080";
    if is_valid { Ok(()) } else { Err(Problem::new(Code::InvalidHeader, detail)) }
}

/// Whether a text is a host, with a port or without.
fn is_host(text: &[u8]) -> bool {
    let Ok(authority) = Authority::try_from(text) else { return false };
    match authority.as_str().strip_prefix(authority.host()) {
        Some("" | ":") => true,
        Some(port) => port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok()),
        // A user's name stands before the host.
        None => false,
    }
}
