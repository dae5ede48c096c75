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
use crate::access::{Caller, Permission, Refusal};
use crate::limits::{Of, Refused, Standing};

/// The parameter of the query in which `EventSource`, which can't set headers, brings its token.
pub const ACCESS_TOKEN: &str = "access_token";

/// The caller, and what it may do. Every route below `/v1/` takes one before all else.
pub struct By {
    caller: Arc<Caller>,
    address: Option<IpAddr>,
}

/// How the caller of a request stands with its limits, for the fields of the answer. In the request's extensions, where there are
/// limits; clones are the same.
#[derive(Clone, Default)]
pub struct Stands(Arc<OnceLock<Standing>>);

impl Stands {
    /// What is known of it.
    pub fn standing(&self) -> Option<&Standing> {
        self.0.get()
    }
}

impl FromRequestParts<App> for By {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let address = address(&parts.extensions, &parts.headers, &app.settings.limits.trusted_proxy);
        if app.access.is_open() && app.limits.is_none() {
            return Ok(Self { caller: app.access.identify(None).await?, address });
        }
        // Before the token is looked at, which is work.
        let place = address.map(Of::Address);
        let standing = take(app, place.into_iter().chain([Of::All]), 1, address, None).await?;
        let identified = identify(parts, app).await;
        let caller = identified.inspect_err(|problem| audit::refused(problem, None, address))?;
        let of_subject = caller.subject.clone().map(Of::Subject);
        let of_subject = take(app, of_subject, 1, address, caller.subject.as_deref()).await?;
        if let (Some(standing), Some(stands)) = (of_subject.or(standing), parts.extensions.get::<Stands>()) {
            let _ = stands.0.set(standing);
        }
        Ok(Self { caller, address })
    }
}

/// Who it is, by its token.
async fn identify(parts: &Parts, app: &App) -> Result<Arc<Caller>, Problem> {
    let token = token(parts, &app.settings.access.token_cookie)?;
    // A page of another site can make a browser send a cookie, or a request without a token from where the browser is. Its
    // Origin then says so.
    let comes_by_itself = token.as_ref().is_none_or(|token| token.place == Place::Cookie);
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
        && app.hub.has_revoked(token).await?
    {
        return Err(Problem::new(Code::TokenInvalid, "the token was revoked"));
    }
    Ok(caller)
}

/// Counts requests against limits.
async fn take(
    app: &App,
    of: impl IntoIterator<Item = Of>,
    count: u64,
    address: Option<IpAddr>,
    subject: Option<&str>,
) -> Result<Option<Standing>, Problem> {
    let Some(limits) = &app.limits else { return Ok(None) };
    limits.take(of, count).await.map_err(|refused| {
        if let Refused::TooMany { standing, .. } | Refused::Never { standing } = refused {
            app.metrics.limited(standing.policy, "request");
        }
        let is_news = !matches!(refused, Refused::TooMany { is_news: false, .. });
        let problem = Problem::from(refused);
        if is_news {
            audit::refused(&problem, subject, address);
        }
        problem
    })
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::TooMany { standing, after, .. } => {
                let detail = format!(
                    "more than {} requests in {} s, by the limit for each {}; all there are are spent",
                    standing.quota, standing.window, standing.policy
                );
                Self::later(Code::TooManyRequests, detail, after).with_standing(standing)
            }
            Refused::Never { standing } => {
                let detail = format!(
                    "so many at once never pass the limit for each {}: {} at most",
                    standing.policy, standing.quota
                );
                Self::new(Code::TooManyRequests, detail).with_standing(standing)
            }
            Refused::Unknown => {
                Self::new(Code::Unavailable, "it can't be told now whether the request is within its limits")
            }
        }
    }
}

impl By {
    /// The caller.
    pub fn caller(&self) -> &Arc<Caller> {
        &self.caller
    }

    /// The caller alone.
    pub fn into_caller(self) -> Arc<Caller> {
        self.caller
    }

    /// Whose request it is, for what belongs to a caller. Those without a subject are one, and those without a token another.
    pub fn owner(&self) -> String {
        match (&self.caller.subject, self.caller.has_token) {
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
        let subject = self.caller.subject.clone();
        let (of_subject, of_address) = (subject.clone().map(Of::Subject), self.address.map(Of::Address));
        let of = of_subject.into_iter().chain(of_address).chain([Of::All]);
        take(app, of, more, self.address, subject.as_deref()).await.map(|_| ())
    }

    /// Whether something may be done with the room or hash of that name.
    pub fn may(&self, permission: Permission, name: &str) -> bool {
        self.caller.grants.allow(permission, name)
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
        if self.caller.grants.allow_some(permission) {
            return Ok(());
        }
        Err(self.refused(self.missing(permission.name())))
    }

    /// Refuses unless everything may be done.
    pub fn require_admin(&self) -> Result<(), Problem> {
        if self.caller.grants.is_admin() {
            return Ok(());
        }
        Err(self.refused(self.missing("admin")))
    }

    fn missing(&self, missing: &str) -> Problem {
        if self.caller.has_token {
            Problem::new(Code::Forbidden, format!("the token does not grant {missing}"))
        } else {
            let detail = format!("it takes a token that grants {missing}: in Authorization, as Bearer");
            Problem::new(Code::TokenMissing, detail)
        }
    }

    fn refused(&self, problem: Problem) -> Problem {
        audit::refused(&problem, self.caller.subject.as_deref(), self.address);
        problem
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal {
            Refusal::Expired => Code::TokenExpired,
            Refusal::KeysUnavailable => Code::KeysUnavailable,
            _ => Code::TokenInvalid,
        };
        Self::new(code, refusal.to_string())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Header,
    Query,
    Cookie,
}

struct Token {
    text: String,
    place: Place,
}

/// The request's token. The header wins over the query, and either over a cookie, which comes along by itself.
fn token(parts: &Parts, cookie: &str) -> Result<Option<Token>, Problem> {
    if let Some(text) = bearer(&parts.headers)? {
        return Ok(Some(Token { text, place: Place::Header }));
    }
    let mut query = form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
    let in_query = query.find(|(name, _)| name == ACCESS_TOKEN).filter(|(_, token)| !token.is_empty());
    if let Some((_, text)) = in_query {
        return Ok(Some(Token { text: text.into_owned(), place: Place::Query }));
    }
    Ok(cookie_of(&parts.headers, cookie).map(|text| Token { text, place: Place::Cookie }))
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

    fn found(query: &str, headers: &[(axum::http::HeaderName, &str)]) -> Option<(String, Place)> {
        let mut request = Request::builder().uri(format!("/v1/rooms/a/stream{query}"));
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        token(&parts, "__Host-roomcast").unwrap().map(|token| (token.text, token.place))
    }

    #[test]
    fn the_header_wins_over_the_query_and_either_over_a_cookie() {
        let header = (AUTHORIZATION, "bearer from.the.header");
        let cookie = (COOKIE, "other=x; __Host-roomcast=from.a.cookie; a=b");
        let query = "?event=a&access_token=from.the.query";
        assert!(found("", &[]).is_none());
        assert!(found("?access_token=", &[(COOKIE, "__Host-roomcast=; x__Host-roomcast=y")]).is_none());
        let is = |found: Option<(String, Place)>, text: &str, place| {
            let (got, at) = found.unwrap();
            assert!(got == text && at == place, "{got}");
        };
        is(found("", std::slice::from_ref(&cookie)), "from.a.cookie", Place::Cookie);
        is(found(query, std::slice::from_ref(&cookie)), "from.the.query", Place::Query);
        is(found(query, &[header, cookie]), "from.the.header", Place::Header);
        is(found("", &[(COOKIE, "a=b"), (COOKIE, "__Host-roomcast=second")]), "second", Place::Cookie);
    }

    #[test]
    fn what_is_no_bearer_token_is_not_taken_for_none() {
        for wrong in ["", "Bearer", "Bearer ", "Basic YTpi", "token"] {
            let headers = [(AUTHORIZATION, wrong.parse().unwrap())].into_iter().collect();
            assert!(bearer(&headers).is_err(), "{wrong}");
        }
    }
}
