//! Who a request is from: its token, wherever that may stand, and what it may do.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use axum::extract::FromRequestParts;
use axum::http::header::{AUTHORIZATION, COOKIE, ORIGIN};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method};

use super::address::address;
use super::problem::{Code, Problem};
use super::{App, audit};
use crate::auth::{Identity, Permission, TokenError};
use crate::rate_limit::{RateError, RateKey, RateStatus};

/// The parameter of the query in which `EventSource`, which can't set headers, brings its token.
pub const ACCESS_TOKEN: &str = "access_token";

/// The caller, and what it may do. Every route below `/v1/` takes one before all else.
pub struct Caller {
    identity: Arc<Identity>,
    address: Option<IpAddr>,
}

/// How the caller of a request stands with its limits, for the fields of the answer. In the request's extensions, where there are
/// limits; clones are the same.
#[derive(Clone, Default)]
pub struct RateStatusSlot(Arc<OnceLock<RateStatus>>);

impl RateStatusSlot {
    /// What is known of it.
    pub fn status(&self) -> Option<&RateStatus> {
        self.0.get()
    }
}

impl FromRequestParts<App> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let address = address(&parts.extensions, &parts.headers, &app.settings.limits.trusted_proxy);
        if app.access.is_open() && app.limits.is_none() {
            return Ok(Self { identity: app.access.identify(None).await?, address });
        }
        // Before the token is looked at, which is work.
        let by_address = address.map(RateKey::Address).into_iter().chain([RateKey::All]);
        let address_status = take(app, by_address, 1, address, None).await?;
        let identified = identify(parts, app).await;
        let identity = identified.inspect_err(|problem| audit::refused(problem, None, address))?;
        let by_subject = identity.subject.clone().map(RateKey::Subject);
        let subject_status = take(app, by_subject, 1, address, identity.subject.as_deref()).await?;
        let slot = parts.extensions.get::<RateStatusSlot>();
        if let (Some(status), Some(slot)) = (subject_status.or(address_status), slot) {
            let _ = slot.0.set(status);
        }
        Ok(Self { identity, address })
    }
}

/// Who it is, by its token.
async fn identify(parts: &Parts, app: &App) -> Result<Arc<Identity>, Problem> {
    let token = token(parts, &app.settings.access.token_cookie)?;
    // A page of another site can make a browser send a cookie, or a request without a token from where the browser is. Its
    // Origin then says so.
    let comes_by_itself = token.as_ref().is_none_or(|token| token.source == TokenSource::Cookie);
    if !app.access.is_open()
        && comes_by_itself
        && !matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS)
    {
        let origin = parts.headers.get(ORIGIN);
        let allowed = origin.is_some_and(|origin| app.settings.access.allows_origin(origin.as_bytes()));
        if !allowed && (token.is_some() || origin.is_some()) {
            let detail = "a page's write takes a token in Authorization, or an Origin that --cors-origin allows";
            return Err(Problem::new(Code::OriginNotAllowed, detail));
        }
    }
    let caller = app.access.identify(token.as_ref().map(|token| token.text.as_str())).await?;
    if let Some(token) = &caller.token_id
        && app.moderation.is_revoked(token).await?
    {
        return Err(Problem::new(Code::TokenInvalid, "the token was revoked"));
    }
    Ok(caller)
}

/// Counts requests against limits.
async fn take(
    app: &App,
    of: impl IntoIterator<Item = RateKey>,
    count: u64,
    address: Option<IpAddr>,
    subject: Option<&str>,
) -> Result<Option<RateStatus>, Problem> {
    let Some(limits) = &app.limits else { return Ok(None) };
    limits.take(of, count).await.map_err(|refused| {
        if let RateError::TooMany { status, .. } | RateError::AboveQuota { status } = refused {
            app.metrics.rejected(status.policy, "request");
        }
        let is_new = !matches!(refused, RateError::TooMany { is_new: false, .. });
        let problem = Problem::from(refused);
        if is_new {
            audit::refused(&problem, subject, address);
        }
        problem
    })
}

impl From<RateError> for Problem {
    fn from(refused: RateError) -> Self {
        match refused {
            RateError::TooMany { status, retry_after, .. } => {
                let detail = format!(
                    "more than {} requests in {} s, by the limit for each {}; all there are are spent",
                    status.quota, status.window, status.policy
                );
                Self::later(Code::TooManyRequests, detail, retry_after).with_rate_status(status)
            }
            RateError::AboveQuota { status } => {
                let detail = format!(
                    "so many at once never pass the limit for each {}: {} at most",
                    status.policy, status.quota
                );
                Self::new(Code::TooManyRequests, detail).with_rate_status(status)
            }
            RateError::Unavailable => {
                Self::new(Code::Unavailable, "it can't be told now whether the request is within its limits")
            }
        }
    }
}

impl Caller {
    /// The caller.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// Whose request it is, for what belongs to a caller. Those without a subject are one, and those without a token another.
    pub fn owner(&self) -> String {
        match (&self.identity.subject, self.identity.has_token) {
            (Some(subject), _) => format!("subject {subject}"),
            (None, true) => "token".into(),
            (None, false) => String::new(),
        }
    }

    /// Where it comes from; of IPv6, the first address of the network.
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// Counts more of its requests.
    pub async fn spend(&self, app: &App, more: u64) -> Result<(), Problem> {
        let subject = self.identity.subject.clone();
        let (of_subject, of_address) = (subject.clone().map(RateKey::Subject), self.address.map(RateKey::Address));
        let of = of_subject.into_iter().chain(of_address).chain([RateKey::All]);
        take(app, of, more, self.address, subject.as_deref()).await.map(|_| ())
    }

    /// Whether something may be done with the room or hash of that name.
    pub fn may(&self, permission: Permission, name: &str) -> bool {
        self.identity.grants.allow(permission, name)
    }

    /// Refuses unless something may be done with the room or hash of that name.
    pub fn require(&self, permission: Permission, name: &str) -> Result<(), Problem> {
        if self.may(permission, name) {
            return Ok(());
        }
        Err(self.refused(self.lacks(permission, name)))
    }

    /// That something may not be done with the room or hash of that name.
    pub fn lacks(&self, permission: Permission, name: &str) -> Problem {
        self.missing(&format!("{} for {name:?}", permission.name()))
    }

    /// Refuses unless something may be done with some room or hash.
    pub fn require_some(&self, permission: Permission) -> Result<(), Problem> {
        if self.identity.grants.allow_some(permission) {
            return Ok(());
        }
        Err(self.refused(self.missing(permission.name())))
    }

    /// Refuses unless everything may be done.
    pub fn require_admin(&self) -> Result<(), Problem> {
        if self.identity.grants.is_admin() {
            return Ok(());
        }
        Err(self.refused(self.missing("admin")))
    }

    fn missing(&self, missing: &str) -> Problem {
        if self.identity.has_token {
            Problem::new(Code::Forbidden, format!("the token does not grant {missing}"))
        } else {
            let detail = format!("it takes a token that grants {missing}: in Authorization, as Bearer");
            Problem::new(Code::TokenMissing, detail)
        }
    }

    fn refused(&self, problem: Problem) -> Problem {
        self.audit(&problem);
        problem
    }

    /// Writes a line of the audit log: the caller was refused.
    pub fn audit(&self, problem: &Problem) {
        audit::refused(problem, self.identity.subject.as_deref(), self.address);
    }
}

impl From<TokenError> for Problem {
    fn from(refusal: TokenError) -> Self {
        let code = match refusal {
            TokenError::Expired => Code::TokenExpired,
            TokenError::KeysUnavailable => Code::KeysUnavailable,
            _ => Code::TokenInvalid,
        };
        Self::new(code, refusal.to_string())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum TokenSource {
    Header,
    Query,
    Cookie,
}

struct BearerToken {
    text: String,
    source: TokenSource,
}

/// The request's token. The header wins over the query, and either over a cookie, which comes along by itself.
fn token(parts: &Parts, cookie: &str) -> Result<Option<BearerToken>, Problem> {
    if let Some(text) = bearer(&parts.headers)? {
        return Ok(Some(BearerToken { text, source: TokenSource::Header }));
    }
    let mut query = form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
    let in_query = query.find(|(name, _)| name == ACCESS_TOKEN).filter(|(_, token)| !token.is_empty());
    if let Some((_, text)) = in_query {
        return Ok(Some(BearerToken { text: text.into_owned(), source: TokenSource::Query }));
    }
    Ok(cookie_of(&parts.headers, cookie).map(|text| BearerToken { text, source: TokenSource::Cookie }))
}

/// `Authorization: Bearer` (RFC 6750, 2.1). Another scheme is not taken for none: its sender means to be someone.
fn bearer(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(AUTHORIZATION) else { return Ok(None) };
    let parts = value.to_str().ok().and_then(|value| value.split_once(' '));
    match parts {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() => {
            Ok(Some(token.trim().to_owned()))
        }
        _ => Err(Problem::new(Code::TokenInvalid, "Authorization has to be: Bearer, a space, and the token")),
    }
}

/// A cookie's value (RFC 6265, 4.2.1); cookies come in one header or in several.
fn cookie_of(headers: &HeaderMap, name: &str) -> Option<String> {
    let cookies = headers.get_all(COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let (_, value) = pairs.find(|(of, value)| *of == name && !value.is_empty())?;
    Some(value.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn found(query: &str, headers: &[(axum::http::HeaderName, &str)]) -> Option<(String, TokenSource)> {
        let mut request = Request::builder().uri(format!("/v1/rooms/a/stream{query}"));
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        token(&parts, "__Host-roomcast").unwrap().map(|token| (token.text, token.source))
    }

    #[test]
    fn the_header_wins_over_the_query_and_either_over_a_cookie() {
        let header = (AUTHORIZATION, "bearer from.the.header");
        let cookie = (COOKIE, "other=x; __Host-roomcast=from.a.cookie; a=b");
        let query = "?event=a&access_token=from.the.query";
        assert!(found("", &[]).is_none());
        assert!(found("?access_token=", &[(COOKIE, "__Host-roomcast=; x__Host-roomcast=y")]).is_none());
        let is = |found: Option<(String, TokenSource)>, text: &str, place| {
            let (got, at) = found.unwrap();
            assert!(got == text && at == place, "{got}");
        };
        is(found("", std::slice::from_ref(&cookie)), "from.a.cookie", TokenSource::Cookie);
        is(found(query, std::slice::from_ref(&cookie)), "from.the.query", TokenSource::Query);
        is(found(query, &[header, cookie]), "from.the.header", TokenSource::Header);
        is(found("", &[(COOKIE, "a=b"), (COOKIE, "__Host-roomcast=second")]), "second", TokenSource::Cookie);
    }

    #[test]
    fn what_is_no_bearer_token_is_not_taken_for_none() {
        for wrong in ["", "Bearer", "Bearer ", "Basic YTpi", "token"] {
            let headers = [(AUTHORIZATION, wrong.parse().unwrap())].into_iter().collect();
            assert!(bearer(&headers).is_err(), "{wrong}");
        }
    }
}
