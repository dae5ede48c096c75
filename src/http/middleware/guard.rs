//! Keeps web pages away from a gateway on loopback without keys.
//!
//! A page of any site can make a browser send requests to this machine. If a site's name resolves to loopback (DNS
//! rebinding), the browser takes the gateway for the site, but the `Host` header still has the site's name.

use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Uri, header};

use super::problem::{Code, Problem};
use crate::config::is_loopback_host;
use crate::http::origin::SEC_FETCH_SITE;

/// Refuses requests whose host is not this machine, and requests of pages of other sites whose origin is not `allowed`.
pub fn refuse_foreign(uri: &Uri, headers: &HeaderMap, allowed: impl Fn(&[u8]) -> bool) -> Result<(), Problem> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    let is_local = uri.authority().or(host.as_ref()).is_some_and(|authority| is_loopback_host(authority.host()));
    if !is_local {
        let detail = "a gateway without keys serves only this machine, as localhost or 127.0.0.1; \
                      a key (such as --jwt-public-key) or --insecure-allow-anonymous changes that";
        return Err(Problem::new(Code::ForeignHost, detail));
    }
    let origin = headers.get(header::ORIGIN).map(HeaderValue::as_bytes);
    if origin.is_some_and(allowed) {
        return Ok(());
    }
    let is_cross_site = headers.get(SEC_FETCH_SITE).is_some_and(|site| site == "cross-site");
    if is_cross_site || origin.is_some_and(|origin| !is_loopback_origin(origin)) {
        let detail = "a gateway without keys refuses pages of other sites; --cors-origin allows a site";
        return Err(Problem::new(Code::CrossSite, detail));
    }
    Ok(())
}

/// Older browsers send no `Sec-Fetch-Site`, but they send an `Origin` with requests that could do harm.
fn is_loopback_origin(origin: &[u8]) -> bool {
    let uri = std::str::from_utf8(origin).ok().and_then(|origin| origin.parse::<Uri>().ok());
    uri.is_some_and(|uri| uri.scheme().is_some() && uri.host().is_some_and(is_loopback_host))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderName;

    use super::*;

    fn refusal(headers: &[(HeaderName, &str)]) -> Option<Code> {
        let headers = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        refuse_foreign(&Uri::from_static("/v1/rooms"), &headers, |origin| origin == b"https://app.example")
            .err()
            .map(|problem| problem.code())
    }

    #[test]
    fn only_this_machine_and_its_own_pages_are_answered() {
        let local = (header::HOST, "localhost:8080");
        assert_eq!(refusal(std::slice::from_ref(&local)), None);
        assert_eq!(refusal(&[(header::HOST, "[::1]:8080")]), None);
        assert_eq!(refusal(&[]), Some(Code::ForeignHost));
        assert_eq!(refusal(&[(header::HOST, "rebound.example:8080")]), Some(Code::ForeignHost));
        for (site, expected) in [("same-origin", None), ("none", None), ("cross-site", Some(Code::CrossSite))] {
            assert_eq!(refusal(&[local.clone(), (SEC_FETCH_SITE, site)]), expected);
        }
        for (origin, expected) in [
            ("http://localhost:3000", None),
            ("http://127.0.0.1", None),
            ("null", Some(Code::CrossSite)),
            ("https://app.example", None),
            ("https://app.example.evil", Some(Code::CrossSite)),
            ("https://evil.example", Some(Code::CrossSite)),
            ("localhost", Some(Code::CrossSite)),
        ] {
            assert_eq!(refusal(&[local.clone(), (header::ORIGIN, origin)]), expected, "{origin}");
        }
    }
}
