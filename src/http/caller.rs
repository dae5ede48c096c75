//! The caller of a request: its token, its permissions and its rate limits.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, SystemTime};

use axum::extract::FromRequestParts;
use axum::http::header::{AUTHORIZATION, COOKIE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use super::body::BodyPermit;
use super::extract::header_text;
use super::origin::check_page;
use super::problem::{Code, Problem};
use super::{App, audit};
use crate::auth::{Identity, Permission, TokenError};
use crate::rate_limit::{BYTES_OF_A_REQUEST, RateError, RateKey, RateStatus, Reading};

/// The query parameter with the token of an `EventSource`, which can't set headers.
pub const ACCESS_TOKEN: &str = "access_token";

/// The caller and its permissions. Every route below `/v1/` extracts it before anything else.
pub struct Caller {
    identity: Arc<Identity>,
    address: Option<IpAddr>,
    /// Set if a page that is not allowed may have made the caller's browser send the request: its refusal.
    foreign_page: Option<Problem>,
    slot: CallerSlot,
}

/// What the response of a request needs to know of its caller. It is in the request's extensions. Clones share the slot.
#[derive(Clone)]
pub struct CallerSlot(Arc<CallerNotes>);

struct CallerNotes {
    began: Instant,
    /// For IPv6 the first address of its /64.
    address: Option<IpAddr>,
    key: OnceLock<RateKey>,
    rate_status: OnceLock<RateStatus>,
    reading: OnceLock<Reading>,
    answer: Mutex<Option<BodyPermit>>,
}

impl Default for CallerSlot {
    fn default() -> Self {
        Self::new(None)
    }
}

impl CallerSlot {
    /// For a request that arrives now, of a caller at this address.
    pub fn new(address: Option<IpAddr>) -> Self {
        Self(Arc::new(CallerNotes {
            began: Instant::now(),
            address,
            key: OnceLock::new(),
            rate_status: OnceLock::new(),
            reading: OnceLock::new(),
            answer: Mutex::new(None),
        }))
    }

    /// When the request arrived.
    pub fn began(&self) -> Instant {
        self.0.began
    }

    /// The state of the caller's rate limits, once the request has been counted; none without limits.
    pub fn rate_status(&self) -> Option<&RateStatus> {
        self.0.rate_status.get()
    }

    fn set_rate_status(&self, status: Option<RateStatus>) {
        if let Some(status) = status {
            let _ = self.0.rate_status.set(status);
        }
    }

    /// What the caller is counted by, once it was identified; see [`Caller::key`].
    pub fn key(&self) -> RateKey {
        self.0.key.get().cloned().unwrap_or(RateKey::All)
    }

    /// Keeps what was reserved for the answer until [`Self::take_kept_for_answer`].
    pub fn keep_for_answer(&self, permit: BodyPermit) {
        *self.answer() = Some(permit);
    }

    /// What was reserved for the answer.
    pub fn take_kept_for_answer(&self) -> Option<BodyPermit> {
        self.answer().take()
    }

    fn answer(&self) -> MutexGuard<'_, Option<BodyPermit>> {
        self.0.answer.lock().expect("no holder of the lock panics")
    }

    /// Notes that the answer has so many bytes. If that is more than was read for it, they count instead.
    pub fn has_answered(&self, bytes: usize) {
        if let Some(reading) = self.0.reading.get() {
            reading.has_answered(bytes);
        }
    }
}

impl FromRequestParts<App> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let slot = parts.extensions.get::<CallerSlot>().cloned().unwrap_or_default();
        let address = slot.0.address;
        if app.access.is_open() && app.limits.is_none() {
            let foreign_page = check_page(parts, &app.settings.access, None);
            let foreign_page = foreign_page.inspect_err(|problem| audit::refused(problem, None, address))?;
            let identity = app.access.identify(None).await?;
            return Ok(Self::new(identity, address, foreign_page, slot));
        }
        // Before the token is verified, which costs time.
        let by_address = count_requests(app, address.map(RateKey::Address), 1, address, None).await?;
        let identified = identify(parts, app).await;
        let identity = identified.as_ref().ok().map(|(identity, _)| &**identity);
        let subject = identity.and_then(|identity| identity.subject.as_deref());
        let by_others = count_requests(app, rate_keys(app, identity), 1, address, subject).await?;
        let (identity, foreign_page) = identified.inspect_err(|problem| audit::refused(problem, None, address))?;
        slot.set_rate_status(by_others.into_iter().chain(by_address).min_by_key(|status| status.remaining));
        Ok(Self::new(identity, address, foreign_page, slot))
    }
}

/// Counts requests that need no token against the limits of their address and of callers without a token.
pub async fn count_without_token(parts: &Parts, app: &App, count: u64) -> Result<(), Problem> {
    let slot = parts.extensions.get::<CallerSlot>().cloned().unwrap_or_default();
    let address = slot.0.address;
    let keys = address.map(RateKey::Address).into_iter().chain(rate_keys(app, None));
    slot.set_rate_status(count_requests(app, keys, count, address, None).await?);
    Ok(())
}

/// Identifies the caller by its token. Also checks the page that may have sent the request.
async fn identify(parts: &Parts, app: &App) -> Result<(Arc<Identity>, Option<Problem>), Problem> {
    let token = token(parts, &app.settings.access.token_cookie)?;
    let foreign_page = check_page(parts, &app.settings.access, token.as_ref().map(|token| token.source))?;
    let identity = app.access.identify(token.as_ref().map(|token| token.text.as_str())).await?;
    check_revoked(app, &identity).await?;
    Ok((identity, foreign_page))
}

async fn check_revoked(app: &App, identity: &Identity) -> Result<(), Problem> {
    match &identity.token_id {
        Some(token_id) if app.moderation.is_revoked(token_id).await? => {
            Err(Problem::new(Code::TokenInvalid, "the token was revoked"))
        }
        _ => Ok(()),
    }
}

/// The keys of a caller's limits, without that of its address. `identity` is `None` if its token is not valid.
fn rate_keys(app: &App, identity: Option<&Identity>) -> impl Iterator<Item = RateKey> + use<> {
    let by_subject = identity.and_then(|identity| identity.subject.clone()).map(RateKey::Subject);
    let is_anonymous = !app.access.is_open() && identity.is_none_or(|identity| !identity.has_token);
    by_subject.into_iter().chain(is_anonymous.then_some(RateKey::Anonymous)).chain([RateKey::All])
}

/// Counts requests against the limits of these keys. `address` and `subject` are for the audit log.
async fn count_requests(
    app: &App,
    keys: impl IntoIterator<Item = RateKey>,
    count: u64,
    address: Option<IpAddr>,
    subject: Option<&str>,
) -> Result<Option<RateStatus>, Problem> {
    let Some(limits) = &app.limits else { return Ok(None) };
    limits.take(keys, count).await.map_err(|error| {
        if let RateError::TooMany { status, .. } | RateError::AboveQuota { status } = error {
            app.metrics.rejected(status.policy, "request");
        }
        let is_new = !matches!(error, RateError::TooMany { is_new: false, .. });
        let problem = Problem::from(error);
        if is_new {
            audit::refused(&problem, subject, address);
        }
        problem
    })
}

impl From<RateError> for Problem {
    fn from(error: RateError) -> Self {
        match error {
            RateError::TooMany { status, retry_after, .. } => {
                let detail = format!(
                    "the limit of {} requests in {} s {} is reached; wait for the seconds in Retry-After",
                    status.quota,
                    status.window,
                    scope(status.policy),
                );
                Self::later(Code::TooManyRequests, detail, retry_after).with_rate_status(status)
            }
            RateError::AboveQuota { status } => {
                let detail = format!(
                    "the limit {} never admits so many requests together: {} at most; make the batch smaller",
                    scope(status.policy),
                    status.quota,
                );
                Self::new(Code::TooManyRequests, detail).with_rate_status(status)
            }
            RateError::Unavailable => Self::new(
                Code::Unavailable,
                "the broker can't say whether the request is within its limits (--rate-failure closed); try again",
            ),
        }
    }
}

/// The callers that share a limit, and the setting of the limit.
fn scope(policy: &str) -> &'static str {
    match policy {
        "subject" => "for one subject (--rate-per-subject)",
        "address" => "for one address (--rate-per-address)",
        "anonymous" => "for all callers without a valid token together (half of --rate-total)",
        _ => "for all callers together (--rate-total)",
    }
}

impl Caller {
    fn new(
        identity: Arc<Identity>,
        address: Option<IpAddr>,
        foreign_page: Option<Problem>,
        slot: CallerSlot,
    ) -> Self {
        let caller = Self { identity, address, foreign_page, slot };
        let _ = caller.slot.0.key.set(caller.key());
        caller
    }

    /// What the caller's share of the replica's memory is counted by: its subject, or its address if it has none.
    pub fn key(&self) -> RateKey {
        match (&self.identity.subject, self.address) {
            (Some(subject), _) => RateKey::Subject(subject.clone()),
            (None, Some(address)) => RateKey::Address(address),
            (None, None) => RateKey::All,
        }
    }

    /// What the response needs to know of it.
    pub fn slot(&self) -> &CallerSlot {
        &self.slot
    }

    /// The identity that its token gives it.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// The owner of what belongs to the caller, such as idempotency keys. All tokens without a subject are one owner,
    /// and all callers without a token are another.
    pub fn owner(&self) -> String {
        match (&self.identity.subject, self.identity.has_token) {
            (Some(subject), _) => format!("subject {subject}"),
            (None, true) => "token".into(),
            (None, false) => String::new(),
        }
    }

    /// Its address; for IPv6 the first address of its /64.
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// Counts what the caller writes against its limits: as one request for each of these items, of which the request
    /// itself is counted already, and for each 64 KiB as one that later requests pay.
    pub async fn spend(&self, app: &App, items: usize, bytes: usize) -> Result<(), Problem> {
        if items > 1 {
            let subject = self.identity.subject.as_deref();
            count_requests(app, self.rate_keys(app), items as u64 - 1, self.address, subject).await?;
        }
        self.owe(app, bytes);
        Ok(())
    }

    /// Counts written bytes against the caller's limits: each 64 KiB as one request that later ones pay.
    pub fn owe(&self, app: &App, bytes: usize) {
        if let Some(limits) = app.limits.as_ref().filter(|_| bytes >= BYTES_OF_A_REQUEST) {
            limits.owe(&self.rate_keys(app), bytes);
        }
    }

    fn rate_keys(&self, app: &App) -> Vec<RateKey> {
        self.address.map(RateKey::Address).into_iter().chain(rate_keys(app, Some(&self.identity))).collect()
    }

    /// Fails if the caller's token has expired or was revoked since the caller was identified. Logs the refusal.
    pub async fn recheck_token(&self, app: &App) -> Result<(), Problem> {
        if self.identity.expires_at.is_some_and(|at| at <= SystemTime::now()) {
            return Err(self.refused(TokenError::Expired.into()));
        }
        check_revoked(app, &self.identity).await.map_err(|problem| self.refused(problem))
    }

    /// Reads a list or a value of so many bytes, which count against the caller's limits. For the caller, the read goes on
    /// until the client has taken the answer. Fails if too many reads go on: more would have to wait, and keep others
    /// waiting.
    pub async fn read<T, E>(
        &self,
        app: &App,
        read: impl Future<Output = Result<T, E>>,
        bytes: impl FnOnce(&T) -> usize,
    ) -> Result<T, Problem>
    where
        Problem: From<E>,
    {
        let reading = self.begin_read(app)?;
        let result = read.await;
        if let Some(mut reading) = reading {
            reading.has_read(result.as_ref().map_or(0, bytes));
            let _ = self.slot.0.reading.set(reading);
        }
        result.map_err(Problem::from)
    }

    /// Waits until the caller's stream may open so many rooms: streams of one caller must not keep those of others
    /// waiting.
    pub async fn turn_to_open(&self, app: &App, rooms: usize) -> Option<OwnedSemaphorePermit> {
        app.limits.as_ref()?.turn_to_open(&self.key(), rooms).await
    }

    fn begin_read(&self, app: &App) -> Result<Option<Reading>, Problem> {
        let Some(limits) = &app.limits else { return Ok(None) };
        limits.begin_read(self.key(), self.rate_keys(app)).map(Some).map_err(|limit| {
            app.metrics.rejected(limit, "read");
            let retry_after = Duration::from_secs(1);
            if limit == RateKey::All.name() {
                Problem::later(
                    Code::Unavailable,
                    "too many lists and values are being read; try again",
                    retry_after,
                )
            } else {
                let detail =
                    format!("too many lists and values are being read for one {limit}; wait for the answers");
                Problem::later(Code::TooManyRequests, detail, retry_after)
            }
        })
    }

    /// Whether the caller has a permission for the room or hash of that name.
    pub fn may(&self, permission: Permission, name: &str) -> bool {
        self.identity.grants.allow(permission, name)
    }

    /// Fails unless the caller has a permission for the room or hash of that name. Logs the refusal.
    pub fn require(&self, permission: Permission, name: &str) -> Result<(), Problem> {
        if self.may(permission, name) {
            return Ok(());
        }
        Err(self.refused(self.lacks(permission, name)))
    }

    /// The problem of a caller without a permission for the room or hash of that name.
    pub fn lacks(&self, permission: Permission, name: &str) -> Problem {
        self.missing(&format!("{} for {name:?}", permission.name()))
    }

    /// Fails unless the caller has a permission for some room or hash. Logs the refusal.
    pub fn require_some(&self, permission: Permission) -> Result<(), Problem> {
        if self.identity.grants.allow_some(permission) {
            return Ok(());
        }
        Err(self.refused(self.missing(permission.name())))
    }

    /// Fails unless the caller is an admin. Logs the refusal.
    pub fn require_admin(&self) -> Result<(), Problem> {
        if self.identity.grants.is_admin() {
            return Ok(());
        }
        Err(self.refused(self.missing("admin")))
    }

    /// Fails if a page that is not allowed may have made the browser send the request, with the user's cookie or, if
    /// `takes_name`, without a token. For reads that change what others see or have. Logs the refusal.
    pub fn require_allowed_page(&self, takes_name: bool) -> Result<(), Problem> {
        match &self.foreign_page {
            Some(problem) if self.identity.has_token || takes_name => Err(self.refused(problem.clone())),
            _ => Ok(()),
        }
    }

    fn missing(&self, permission: &str) -> Problem {
        if self.identity.has_token {
            let lacks_subject = self.identity.grants.lacks_subject();
            let why = if lacks_subject { "; its patterns with {sub} need the claim sub" } else { "" };
            Problem::new(Code::Forbidden, format!("the token does not grant {permission}{why}"))
        } else {
            let detail =
                format!("a token that grants {permission} is required, as \"Authorization: Bearer <token>\"");
            Problem::new(Code::TokenMissing, detail)
        }
    }

    fn refused(&self, problem: Problem) -> Problem {
        self.audit(&problem);
        problem
    }

    /// Writes a refusal of the caller to the audit log.
    pub fn audit(&self, problem: &Problem) {
        audit::refused(problem, self.identity.subject.as_deref(), self.address);
    }
}

impl From<TokenError> for Problem {
    fn from(error: TokenError) -> Self {
        let code = match error {
            TokenError::Expired => Code::TokenExpired,
            TokenError::KeysUnavailable => Code::KeysUnavailable,
            _ => Code::TokenInvalid,
        };
        Self::new(code, error.to_string())
    }
}

/// Where a request has its token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TokenSource {
    /// In the header `Authorization`.
    Header,
    /// In the query.
    Query,
    /// In a cookie.
    Cookie,
}

struct BearerToken {
    text: String,
    source: TokenSource,
}

/// The token of a request. The header wins over the query. Both win over the cookie, which browsers send without
/// being asked.
fn token(parts: &Parts, cookie: &str) -> Result<Option<BearerToken>, Problem> {
    if let Some(text) = bearer(&parts.headers)? {
        return Ok(Some(BearerToken { text, source: TokenSource::Header }));
    }
    let mut query = form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
    if let Some((_, text)) = query.find(|(name, token)| name == ACCESS_TOKEN && !token.is_empty()) {
        return Ok(Some(BearerToken { text: text.into_owned(), source: TokenSource::Query }));
    }
    Ok(cookie_value(&parts.headers, cookie).map(|text| BearerToken { text, source: TokenSource::Cookie }))
}

/// The token in `Authorization: Bearer` (RFC 6750, section 2.1). Another scheme is an error, not the lack of a token:
/// the client expects to be identified.
fn bearer(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let refuse = |detail| Problem::new(Code::TokenInvalid, detail);
    let value = header_text(headers, &AUTHORIZATION).map_err(|problem| refuse(problem.detail().to_owned()))?;
    let Some(value) = value else { return Ok(None) };
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() => {
            Ok(Some(token.trim().to_owned()))
        }
        _ => Err(refuse("the Authorization header must be: Bearer <token>".into())),
    }
}

/// The value of a cookie (RFC 6265, section 4.2.1). Cookies come in one header or in several. Those of others may have
/// any bytes.
fn cookie_value(headers: &HeaderMap, name: &str) -> Option<String> {
    let lines = headers.get_all(COOKIE).into_iter().map(HeaderValue::as_bytes);
    let mut values = lines.flat_map(|line| line.split(|byte| *byte == b';')).filter_map(|pair| {
        let value = pair.trim_ascii().strip_prefix(name.as_bytes())?.trim_ascii_start().strip_prefix(b"=")?;
        let value = value.trim_ascii();
        Some(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
    });
    values.find(|value| !value.is_empty()).map(|value| String::from_utf8_lossy(value).into_owned())
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
        let check = |found: Option<(String, TokenSource)>, text: &str, source| {
            let (found_text, found_source) = found.unwrap();
            assert!(found_text == text && found_source == source, "{found_text}");
        };
        check(found("", std::slice::from_ref(&cookie)), "from.a.cookie", TokenSource::Cookie);
        check(found(query, std::slice::from_ref(&cookie)), "from.the.query", TokenSource::Query);
        check(found(query, &[header, cookie]), "from.the.header", TokenSource::Header);
        let second = [(COOKIE, "a=b"), (COOKIE, "__Host-roomcast=second")];
        check(found("", &second), "second", TokenSource::Cookie);
    }

    #[test]
    fn an_authorization_header_without_a_bearer_token_is_refused() {
        for wrong in ["", "Bearer", "Bearer ", "Basic YTpi", "token"] {
            let headers = [(AUTHORIZATION, wrong.parse().unwrap())].into_iter().collect();
            assert!(bearer(&headers).is_err(), "{wrong}");
        }
    }
}
