//! Who a request is from: its token, wherever that may stand, and what it may do.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::header::{AUTHORIZATION, COOKIE, ORIGIN};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method};

use super::App;
use super::problem::{Code, Problem};
use crate::access::{Caller, Permission, Refusal};

/// The parameter of the query in which `EventSource`, which can't set headers, brings its token.
pub const ACCESS_TOKEN: &str = "access_token";

/// The caller, and what it may do. Every route below `/v1/` takes one before all else.
pub struct By(Arc<Caller>);

impl FromRequestParts<App> for By {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        if app.access.is_open() {
            return Ok(Self(app.access.identify(None).await?));
        }
        let token = token(parts, &app.settings.access.token_cookie)?;
        // A page of another site can make a browser send a cookie, or a request without a token from where the browser is. Its
        // Origin then says so.
        let comes_by_itself = token.as_ref().is_none_or(|token| token.place == Place::Cookie);
        if comes_by_itself && !matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS) {
            let origin = parts.headers.get(ORIGIN);
            let allowed = origin.is_some_and(|origin| app.settings.access.allows_origin(origin.as_bytes()));
            if !allowed && (token.is_some() || origin.is_some()) {
                let detail =
                    "a page's write takes a token in Authorization, or an Origin that --cors-origin allows";
                return Err(Problem::new(Code::OriginNotAllowed, detail));
            }
        }
        Ok(Self(app.access.identify(token.as_ref().map(|token| token.text.as_str())).await?))
    }
}

impl By {
    /// The caller.
    pub fn caller(&self) -> &Caller {
        &self.0
    }

    /// Whose request it is, for what belongs to a caller. Those without a subject are one, and those without a token another.
    pub fn owner(&self) -> String {
        match (&self.0.subject, self.0.has_token) {
            (Some(subject), _) => format!("subject {subject}"),
            (None, true) => "token".into(),
            (None, false) => String::new(),
        }
    }

    /// Whether something may be done with the room or hash of that name.
    pub fn may(&self, permission: Permission, name: &str) -> bool {
        self.0.grants.allow(permission, name)
    }

    /// Refuses unless something may be done with the room or hash of that name.
    pub fn require(&self, permission: Permission, name: &str) -> Result<(), Problem> {
        if self.may(permission, name) {
            return Ok(());
        }
        Err(self.refuse(&format!("{} for {name:?}", permission.name())))
    }

    /// Refuses unless something may be done with some room or hash.
    pub fn require_some(&self, permission: Permission) -> Result<(), Problem> {
        if self.0.grants.allow_some(permission) {
            return Ok(());
        }
        Err(self.refuse(permission.name()))
    }

    /// Refuses unless everything may be done.
    pub fn require_admin(&self) -> Result<(), Problem> {
        if self.0.grants.is_admin() {
            return Ok(());
        }
        Err(self.refuse("admin"))
    }

    fn refuse(&self, missing: &str) -> Problem {
        if self.0.has_token {
            Problem::new(Code::Forbidden, format!("the token does not grant {missing}"))
        } else {
            let detail = format!("it takes a token that grants {missing}: in Authorization, as Bearer");
            Problem::new(Code::TokenMissing, detail)
        }
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
