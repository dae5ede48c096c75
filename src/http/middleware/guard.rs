//! Keeps web pages away from an open gateway on loopback. A page of any site can make a browser send requests to this
//! machine; a foreign `Host` is how a name that was pointed at loopback (DNS rebinding) gives itself away.

use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};

use super::problem::{Code, Problem};
use crate::config::is_loopback_host;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Refuses what only a foreign page, or a name that lies about this machine, would send. Pages of `allowed` origins are none.
pub fn refuse_foreign(uri: &Uri, headers: &HeaderMap, allowed: impl Fn(&[u8]) -> bool) -> Result<(), Problem> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    let request_context =
        uri.authority().or(host.as_ref()).is_some_and(|authority| is_loopback_host(authority.host()));
    if !request_context {
        let detail = "without keys the gateway serves this machine only; address it as localhost or 127.0.0.1";
        return Err(Problem::new(Code::ForeignHost, detail));
    }
    let origin = headers.get(header::ORIGIN).map(HeaderValue::as_bytes);
    if origin.is_some_and(allowed) {
        return Ok(());
    }
    let cross_site = headers.get(SEC_FETCH_SITE).is_some_and(|site| site == "cross-site");
    if cross_site || origin.is_some_and(|origin| !is_loopback_origin(origin)) {
        let detail = "without keys the gateway answers no page of another site";
        return Err(Problem::new(Code::CrossSite, detail));
    }
    Ok(())
}

/// Older browsers send no `Sec-Fetch-Site`, but an `Origin` with what could do harm.
fn is_loopback_origin(origin: &[u8]) -> bool {
    let uri = std::str::from_utf8(origin).ok().and_then(|origin| origin.parse::<Uri>().ok());
    uri.is_some_and(|uri| uri.scheme().is_some() && uri.host().is_some_and(is_loopback_host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(headers: &[(HeaderName, &str)]) -> Option<Code> {
        let headers = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        refuse_foreign(&Uri::from_static("/v1/rooms"), &headers, |origin| origin == b"https://app.example")
            .err()
            .map(|problem| problem.code())
    }

    #[test]
    fn only_this_machine_and_its_own_pages_are_answered() {
        let local = (header::HOST, "localhost:8080");
        assert_eq!(verdict(std::slice::from_ref(&local)), None);
        assert_eq!(verdict(&[(header::HOST, "[::1]:8080")]), None);
        assert_eq!(verdict(&[]), Some(Code::ForeignHost));
        assert_eq!(verdict(&[(header::HOST, "rebound.example:8080")]), Some(Code::ForeignHost));
        for (site, expected) in [("same-origin", None), ("none", None), ("cross-site", Some(Code::CrossSite))] {
            assert_eq!(verdict(&[local.clone(), (SEC_FETCH_SITE, site)]), expected);
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
            assert_eq!(verdict(&[local.clone(), (header::ORIGIN, origin)]), expected, "{origin}");
        }
    }
}
