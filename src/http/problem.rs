//! Every failure's answer: `application/problem+json` (RFC 9457). The only file that knows which failure has which
//! status.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::middleware::request_context;
use crate::broker::{BrokerError, Fault, FaultKind};
use crate::rate_limit::RateStatus;

/// The media type of problem documents.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// Kinds of failures, each with a stable name and a status.
#[allow(missing_docs, reason = "the table in `parts` says of each what it is")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    InvalidName,
    InvalidQuery,
    InvalidBody,
    InvalidPosition,
    InvalidHeader,
    TooManyRooms,
    UnsupportedMediaType,
    BodyTooLarge,
    RouteNotFound,
    HashNotFound,
    FieldNotFound,
    MethodNotAllowed,
    RequestTimeout,
    WrongType,
    NotANumber,
    PreconditionFailed,
    IdempotencyKeyReused,
    ForeignHost,
    CrossSite,
    TokenMissing,
    TokenInvalid,
    TokenExpired,
    Forbidden,
    OriginNotAllowed,
    KeysUnavailable,
    Unavailable,
    OutcomeUnknown,
    OutOfMemory,
    ReadOnly,
    NoReplicas,
    Misconfigured,
    DiskFull,
    DiskFailed,
    Busy,
    SubscriberTaken,
    TooManyRequests,
    TooManyConnections,
    BadRequest,
    Internal,
}

impl Code {
    /// Name, status and title: the whole table.
    pub const fn parts(self) -> (&'static str, StatusCode, &'static str) {
        match self {
            Self::InvalidName => ("invalid_name", StatusCode::BAD_REQUEST, "A name is not allowed"),
            Self::InvalidQuery => ("invalid_query", StatusCode::BAD_REQUEST, "The query can't be read"),
            Self::InvalidBody => ("invalid_body", StatusCode::BAD_REQUEST, "The body can't be read"),
            Self::InvalidPosition => ("invalid_position", StatusCode::BAD_REQUEST, "The position can't be read"),
            Self::InvalidHeader => ("invalid_header", StatusCode::BAD_REQUEST, "A header can't be read"),
            Self::TooManyRooms => ("too_many_rooms", StatusCode::BAD_REQUEST, "Too many rooms on one stream"),
            Self::BadRequest => ("bad_request", StatusCode::BAD_REQUEST, "The request can't be read"),
            Self::ForeignHost => ("foreign_host", StatusCode::FORBIDDEN, "Not addressed as this machine"),
            Self::CrossSite => ("cross_site", StatusCode::FORBIDDEN, "Sent by a page of another site"),
            Self::TokenMissing => ("token_missing", StatusCode::UNAUTHORIZED, "It takes a token"),
            Self::TokenInvalid => ("token_invalid", StatusCode::UNAUTHORIZED, "The token is not taken"),
            Self::TokenExpired => ("token_expired", StatusCode::UNAUTHORIZED, "The token has expired"),
            Self::Forbidden => ("forbidden", StatusCode::FORBIDDEN, "The token does not grant it"),
            Self::OriginNotAllowed => {
                ("origin_not_allowed", StatusCode::FORBIDDEN, "Sent by a page that may not use the gateway")
            }
            Self::KeysUnavailable => {
                ("keys_unavailable", StatusCode::SERVICE_UNAVAILABLE, "Tokens can't be checked yet")
            }
            Self::RouteNotFound => ("route_not_found", StatusCode::NOT_FOUND, "No such route"),
            Self::HashNotFound => ("hash_not_found", StatusCode::NOT_FOUND, "No such hash"),
            Self::FieldNotFound => ("field_not_found", StatusCode::NOT_FOUND, "No such field"),
            Self::MethodNotAllowed => {
                ("method_not_allowed", StatusCode::METHOD_NOT_ALLOWED, "The route has no such method")
            }
            Self::RequestTimeout => ("request_timeout", StatusCode::REQUEST_TIMEOUT, "The request took too long"),
            Self::WrongType => ("wrong_type", StatusCode::CONFLICT, "The key holds something else"),
            Self::NotANumber => ("not_a_number", StatusCode::CONFLICT, "The value is not a whole number"),
            Self::PreconditionFailed => {
                ("precondition_failed", StatusCode::PRECONDITION_FAILED, "The value is not what was expected")
            }
            Self::IdempotencyKeyReused => {
                ("idempotency_key_reused", StatusCode::UNPROCESSABLE_ENTITY, "The key was used for something else")
            }
            Self::BodyTooLarge => ("body_too_large", StatusCode::PAYLOAD_TOO_LARGE, "The body is too large"),
            Self::UnsupportedMediaType => {
                ("unsupported_media_type", StatusCode::UNSUPPORTED_MEDIA_TYPE, "The body's type is not taken here")
            }
            Self::Internal => ("internal", StatusCode::INTERNAL_SERVER_ERROR, "The gateway failed"),
            Self::Unavailable => ("unavailable", StatusCode::SERVICE_UNAVAILABLE, "The broker is away"),
            Self::OutcomeUnknown => {
                ("outcome_unknown", StatusCode::SERVICE_UNAVAILABLE, "The broker's answer was lost")
            }
            Self::OutOfMemory => ("out_of_memory", StatusCode::SERVICE_UNAVAILABLE, "The broker's memory is full"),
            Self::ReadOnly => ("read_only", StatusCode::SERVICE_UNAVAILABLE, "The broker takes no writes"),
            Self::NoReplicas => ("no_replicas", StatusCode::SERVICE_UNAVAILABLE, "The broker lacks replicas"),
            Self::Misconfigured => ("misconfigured", StatusCode::SERVICE_UNAVAILABLE, "The broker can't save"),
            Self::DiskFull => ("disk_full", StatusCode::SERVICE_UNAVAILABLE, "The disk is full"),
            Self::DiskFailed => ("disk_failed", StatusCode::SERVICE_UNAVAILABLE, "The disk fails"),
            Self::Busy => ("busy", StatusCode::SERVICE_UNAVAILABLE, "The broker is busy"),
            Self::SubscriberTaken => {
                ("subscriber_taken", StatusCode::CONFLICT, "The subscriber is another caller's")
            }
            Self::TooManyRequests => ("too_many_requests", StatusCode::TOO_MANY_REQUESTS, "Too many requests"),
            Self::TooManyConnections => (
                "too_many_connections",
                StatusCode::SERVICE_UNAVAILABLE,
                "The replica has all the connections it takes",
            ),
        }
    }

    /// The stable name.
    pub const fn name(self) -> &'static str {
        self.parts().0
    }

    /// The status.
    pub const fn status(self) -> StatusCode {
        self.parts().1
    }
}

impl Code {
    /// What a caller that has to show a token, or another one, is told (RFC 6750, 3).
    const fn challenge(self) -> Option<&'static str> {
        match self {
            Self::TokenMissing => Some("Bearer realm=\"roomcast\""),
            Self::TokenInvalid => Some("Bearer realm=\"roomcast\", error=\"invalid_token\""),
            Self::TokenExpired => Some(
                "Bearer realm=\"roomcast\", error=\"invalid_token\", error_description=\"the token has expired\"",
            ),
            Self::Forbidden => Some("Bearer realm=\"roomcast\", error=\"insufficient_scope\""),
            _ => None,
        }
    }
}

/// A caller's limit.
pub const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// What is left of it.
pub const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// Seconds after which a 503 may be tried again.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("2");

/// A failure. It becomes a document in [`finish`], where the request's id is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    code: Code,
    detail: String,
    present: Option<CurrentValue>,
    /// Seconds after which it may be tried again, where that is not the same for all.
    retry_after: Option<u64>,
    /// How the caller stands with the limit that refused it.
    rate_status: Option<Box<RateStatus>>,
}

/// The value that a condition met.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct CurrentValue {
    /// The value; absent where the field is, or where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// The value in Base64 where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_base64: Option<String>,
}

/// A problem document, RFC 9457.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem, example = json!({
    "type": "urn:roomcast:problem:field_not_found", "title": "No such field", "status": 404,
    "detail": "hash \"lamp\" has no field \"colour\"", "code": "field_not_found",
    "request_id": "0195f7a4-64a0-7c35-b0a5-2f6f0c3c9c52"
}))]
pub struct Document {
    /// Names the kind of problem.
    #[serde(rename = "type")]
    kind: String,
    /// The kind in words.
    title: String,
    /// The HTTP status.
    status: u16,
    /// What was wrong this time, and what to do.
    detail: String,
    /// The kind's stable name, for programs.
    code: String,
    /// The request's id, as in the response's `x-request-id` and in the log.
    request_id: String,
    /// With a 412: the present value of the field.
    #[serde(skip_serializing_if = "Option::is_none")]
    present: Option<CurrentValue>,
}

impl Problem {
    /// A failure, and in `detail` what was wrong this time.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), present: None, retry_after: None, rate_status: None }
    }

    /// A failure that will be none after a time.
    pub fn later(code: Code, detail: impl Into<String>, after: Duration) -> Self {
        // Whole seconds, not before that time (RFC 9110, 10.2.3).
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        Self { retry_after: Some(seconds.max(1)), ..Self::new(code, detail) }
    }

    /// The same, of a caller with a limit.
    #[must_use]
    pub fn with_rate_status(self, rate_status: RateStatus) -> Self {
        Self { rate_status: Some(Box::new(rate_status)), ..self }
    }

    /// The failed condition of a write, with the value that it met.
    pub fn precondition(detail: impl Into<String>, present: CurrentValue) -> Self {
        Self { present: Some(present), ..Self::new(Code::PreconditionFailed, detail) }
    }

    /// Its kind.
    pub fn code(&self) -> Code {
        self.code
    }

    /// What was wrong.
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

impl From<BrokerError> for Problem {
    fn from(error: BrokerError) -> Self {
        match &error {
            BrokerError::WrongType => Self::new(Code::WrongType, error.to_string()),
            BrokerError::NotANumber => Self::new(Code::NotANumber, error.to_string()),
            BrokerError::KeyReused => Self::new(
                Code::IdempotencyKeyReused,
                "this Idempotency-Key was used for other content in this room; take a new key",
            ),
            BrokerError::UnknownPage => Self::new(Code::InvalidQuery, error.to_string()),
            // The fault's detail may name servers: it goes to the log, the caller gets the kind.
            BrokerError::Unavailable(fault) => {
                request_context::log(|| tracing::warn!(%fault, "not done: the broker is degraded"));
                Self::new(code_of(fault), format!("not stored or read ({}); try again", fault.kind.name()))
            }
            BrokerError::OutcomeUnknown(fault) => {
                request_context::log(|| tracing::warn!(%fault, "outcome unknown: the broker's answer was lost"));
                let detail = format!("it may or may not have been stored ({})", fault.kind.name());
                Self::new(Code::OutcomeUnknown, detail)
            }
        }
    }
}

fn code_of(fault: &Fault) -> Code {
    match fault.kind {
        FaultKind::OutOfMemory => Code::OutOfMemory,
        FaultKind::ReadOnly => Code::ReadOnly,
        FaultKind::NoReplicas => Code::NoReplicas,
        FaultKind::Misconfigured => Code::Misconfigured,
        FaultKind::DiskFull => Code::DiskFull,
        FaultKind::DiskFailed => Code::DiskFailed,
        FaultKind::Busy => Code::Busy,
        FaultKind::Unreachable
        | FaultKind::TimedOut
        | FaultKind::NotReceiving
        | FaultKind::Loading
        | FaultKind::NotPermitted
        | FaultKind::Failed => Code::Unavailable,
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.code.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Turns every failure into its document: ours, and whatever a framework has raised without one.
pub fn finish(mut response: Response, request_id: &str, count: impl FnOnce(Code)) -> Response {
    let status = response.status();
    // A report that a handler made itself, such as that of /healthz, stays as it is.
    let reported = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    let problem = response.extensions_mut().remove::<Problem>();
    let problem = problem.or_else(|| if reported { None } else { raised_elsewhere(status) });
    let Some(problem) = problem else { return response };
    count(problem.code);
    let (code, status, title) = problem.code.parts();
    if status == StatusCode::INTERNAL_SERVER_ERROR {
        request_context::log(|| tracing::error!(detail = problem.detail, "the gateway failed"));
    }
    let document = Document {
        kind: format!("urn:roomcast:problem:{code}"),
        title: title.into(),
        status: status.as_u16(),
        detail: problem.detail,
        code: code.into(),
        request_id: request_id.into(),
        present: problem.present,
    };
    let mut answer = (status, Json(document)).into_response();
    // Such as `Allow` and `ETag`; what described the replaced body goes.
    for (name, value) in response.headers() {
        if *name != header::CONTENT_LENGTH && *name != header::CONTENT_TYPE {
            answer.headers_mut().append(name, value.clone());
        }
    }
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, RETRY_AFTER);
    }
    if let Some(seconds) = problem.retry_after {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    if let Some(rate_status) = &problem.rate_status {
        add_rate_status(headers, rate_status);
    }
    if let Some(challenge) = problem.code.challenge() {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    }
    answer
}

/// The fields of draft-ietf-httpapi-ratelimit-headers: a limit, and what is left of it.
pub fn add_rate_status(headers: &mut HeaderMap, rate_status: &RateStatus) {
    let RateStatus { policy, quota, window, remaining } = rate_status;
    let texts = [
        (RATE_LIMIT_POLICY, format!("\"{policy}\";q={quota};w={window}")),
        (RATE_LIMIT, format!("\"{policy}\";r={remaining}")),
    ];
    for (name, text) in texts {
        headers.insert(name, HeaderValue::from_str(&text).expect("a name of ours and numbers are visible ASCII"));
    }
}

fn raised_elsewhere(status: StatusCode) -> Option<Problem> {
    let code = match status {
        StatusCode::METHOD_NOT_ALLOWED => Code::MethodNotAllowed,
        StatusCode::NOT_FOUND => Code::RouteNotFound,
        StatusCode::PAYLOAD_TOO_LARGE => Code::BodyTooLarge,
        StatusCode::UNSUPPORTED_MEDIA_TYPE => Code::UnsupportedMediaType,
        StatusCode::REQUEST_TIMEOUT => Code::RequestTimeout,
        status if status.is_client_error() => Code::BadRequest,
        status if status.is_server_error() => Code::Internal,
        _ => return None,
    };
    let detail = match code {
        Code::MethodNotAllowed => "see the Allow header for the methods that it has",
        other => other.parts().2,
    };
    Some(Problem::new(code, detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_fault_has_its_status() {
        let unavailable = |kind| Problem::from(BrokerError::Unavailable(Fault::new(kind, "redis-7.internal:6379")));
        for (kind, name) in [
            (FaultKind::Unreachable, "unavailable"),
            (FaultKind::TimedOut, "unavailable"),
            (FaultKind::Loading, "unavailable"),
            (FaultKind::OutOfMemory, "out_of_memory"),
            (FaultKind::ReadOnly, "read_only"),
            (FaultKind::NoReplicas, "no_replicas"),
            (FaultKind::Misconfigured, "misconfigured"),
            (FaultKind::Busy, "busy"),
        ] {
            let problem = unavailable(kind);
            assert_eq!(problem.code().name(), name);
            assert_eq!(problem.code().status(), StatusCode::SERVICE_UNAVAILABLE);
            assert!(!problem.detail().contains("internal"), "{}", problem.detail());
        }
        let lost = BrokerError::OutcomeUnknown(Fault::new(FaultKind::TimedOut, ""));
        assert_eq!(Problem::from(lost).code().name(), "outcome_unknown");
        assert_eq!(Problem::from(BrokerError::WrongType).code().status(), StatusCode::CONFLICT);
        assert_eq!(Problem::from(BrokerError::NotANumber).code().status(), StatusCode::CONFLICT);
    }
}
