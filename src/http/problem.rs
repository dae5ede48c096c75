//! Problem documents: every failure is an `application/problem+json` response (RFC 9457). Only this file assigns
//! statuses to failures.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::entity_tags::quoted;
use super::middleware::request_context;
use crate::broker::{BrokerError, Fault, FaultKind, MAX_COPIED_BYTES, MAX_DIGITS, MAX_FIELDS};
use crate::live::AppendError;
use crate::names::EventId;
use crate::rate_limit::RateStatus;

/// The media type of problem documents.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// Kinds of failures, each with a stable name and a status.
#[allow(missing_docs, reason = "`parts` has the title of each")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ToSchema)]
#[cfg_attr(test, derive(serde::Deserialize), serde(rename_all = "snake_case"))]
#[schema(as = ProblemCode, rename_all = "snake_case")]
pub enum Code {
    InvalidName,
    InvalidQuery,
    InvalidBody,
    InvalidPosition,
    InvalidHeader,
    TooManyRooms,
    UnsupportedMediaType,
    UnsupportedEncoding,
    NotAcceptable,
    NotImplemented,
    BodyTooLarge,
    RouteNotFound,
    HashNotFound,
    FieldNotFound,
    MethodNotAllowed,
    RequestTimeout,
    WrongType,
    NotANumber,
    FieldMissing,
    TooManyFields,
    HashTooLarge,
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
    RoomFinished,
    TooManyRequests,
    TooManyWrittenRooms,
    TooManyConnections,
    TooManyBodies,
    BadRequest,
    Internal,
}

impl Code {
    /// Name, status and title.
    pub const fn parts(self) -> (&'static str, StatusCode, &'static str) {
        match self {
            Self::InvalidName => ("invalid_name", StatusCode::BAD_REQUEST, "Invalid name"),
            Self::InvalidQuery => ("invalid_query", StatusCode::BAD_REQUEST, "Invalid query parameter"),
            Self::InvalidBody => ("invalid_body", StatusCode::BAD_REQUEST, "Invalid request body"),
            Self::InvalidPosition => ("invalid_position", StatusCode::BAD_REQUEST, "Invalid position or cursor"),
            Self::InvalidHeader => ("invalid_header", StatusCode::BAD_REQUEST, "Invalid or unsupported header"),
            Self::TooManyRooms => ("too_many_rooms", StatusCode::BAD_REQUEST, "Too many rooms for one stream"),
            Self::BadRequest => ("bad_request", StatusCode::BAD_REQUEST, "Malformed request"),
            Self::ForeignHost => ("foreign_host", StatusCode::FORBIDDEN, "The Host header is not this machine"),
            Self::CrossSite => ("cross_site", StatusCode::FORBIDDEN, "A page of another site sent the request"),
            Self::TokenMissing => ("token_missing", StatusCode::UNAUTHORIZED, "A token is required"),
            Self::TokenInvalid => ("token_invalid", StatusCode::UNAUTHORIZED, "The token is not valid"),
            Self::TokenExpired => ("token_expired", StatusCode::UNAUTHORIZED, "The token has expired"),
            Self::Forbidden => ("forbidden", StatusCode::FORBIDDEN, "The token lacks a permission"),
            Self::OriginNotAllowed => {
                ("origin_not_allowed", StatusCode::FORBIDDEN, "The page's origin is not allowed")
            }
            Self::KeysUnavailable => {
                ("keys_unavailable", StatusCode::SERVICE_UNAVAILABLE, "Tokens can't be verified yet")
            }
            Self::RouteNotFound => ("route_not_found", StatusCode::NOT_FOUND, "No such route"),
            Self::HashNotFound => ("hash_not_found", StatusCode::NOT_FOUND, "No such hash"),
            Self::FieldNotFound => ("field_not_found", StatusCode::NOT_FOUND, "No such field"),
            Self::MethodNotAllowed => {
                ("method_not_allowed", StatusCode::METHOD_NOT_ALLOWED, "The route does not support this method")
            }
            Self::RequestTimeout => {
                ("request_timeout", StatusCode::REQUEST_TIMEOUT, "The request did not arrive in time")
            }
            Self::WrongType => ("wrong_type", StatusCode::CONFLICT, "The key in Redis has another type"),
            Self::NotANumber => ("not_a_number", StatusCode::CONFLICT, "Not a number, or out of range"),
            Self::FieldMissing => {
                ("field_missing", StatusCode::CONFLICT, "The patch needs a field that does not exist")
            }
            Self::TooManyFields => ("too_many_fields", StatusCode::CONFLICT, "The hash would have too many fields"),
            Self::HashTooLarge => ("hash_too_large", StatusCode::CONFLICT, "The hash is too large to be watched"),
            Self::PreconditionFailed => {
                ("precondition_failed", StatusCode::PRECONDITION_FAILED, "The condition does not hold")
            }
            Self::IdempotencyKeyReused => (
                "idempotency_key_reused",
                StatusCode::UNPROCESSABLE_ENTITY,
                "The idempotency key was used for other content",
            ),
            Self::BodyTooLarge => ("body_too_large", StatusCode::PAYLOAD_TOO_LARGE, "The body is too large"),
            Self::UnsupportedMediaType => {
                ("unsupported_media_type", StatusCode::UNSUPPORTED_MEDIA_TYPE, "Unsupported Content-Type")
            }
            Self::UnsupportedEncoding => {
                ("unsupported_encoding", StatusCode::UNSUPPORTED_MEDIA_TYPE, "Unsupported Content-Encoding")
            }
            Self::NotAcceptable => ("not_acceptable", StatusCode::NOT_ACCEPTABLE, "No acceptable media type"),
            Self::NotImplemented => {
                ("not_implemented", StatusCode::NOT_IMPLEMENTED, "Unsupported Transfer-Encoding")
            }
            Self::Internal => ("internal", StatusCode::INTERNAL_SERVER_ERROR, "The gateway failed"),
            Self::Unavailable => ("unavailable", StatusCode::SERVICE_UNAVAILABLE, "The broker is unavailable"),
            Self::OutcomeUnknown => {
                ("outcome_unknown", StatusCode::SERVICE_UNAVAILABLE, "The broker's answer was lost")
            }
            Self::OutOfMemory => ("out_of_memory", StatusCode::SERVICE_UNAVAILABLE, "The broker's memory is full"),
            Self::ReadOnly => ("read_only", StatusCode::SERVICE_UNAVAILABLE, "Redis is a read-only replica"),
            Self::NoReplicas => ("no_replicas", StatusCode::SERVICE_UNAVAILABLE, "Redis has too few replicas"),
            Self::Misconfigured => ("misconfigured", StatusCode::SERVICE_UNAVAILABLE, "Redis can't save its data"),
            Self::DiskFull => ("disk_full", StatusCode::SERVICE_UNAVAILABLE, "The disk is full"),
            Self::DiskFailed => ("disk_failed", StatusCode::SERVICE_UNAVAILABLE, "The disk fails"),
            Self::Busy => ("busy", StatusCode::SERVICE_UNAVAILABLE, "The broker is busy"),
            Self::SubscriberTaken => {
                ("subscriber_taken", StatusCode::CONFLICT, "The subscriber name belongs to another caller")
            }
            Self::RoomFinished => ("room_finished", StatusCode::CONFLICT, "The room has its final event"),
            Self::TooManyRequests => ("too_many_requests", StatusCode::TOO_MANY_REQUESTS, "Too many requests"),
            Self::TooManyWrittenRooms => (
                "too_many_written_rooms",
                StatusCode::TOO_MANY_REQUESTS,
                "The caller has published to too many rooms",
            ),
            Self::TooManyConnections => (
                "too_many_connections",
                StatusCode::SERVICE_UNAVAILABLE,
                "The replica has reached its limit of connections",
            ),
            Self::TooManyBodies => (
                "too_many_bodies",
                StatusCode::SERVICE_UNAVAILABLE,
                "The replica holds too many bytes of request bodies",
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

/// A caller's rate limit.
pub const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// What is left of the rate limit.
pub const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// Seconds after which a request that got 503 may be repeated.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("2");

/// A failure. [`finish`] makes a document of it, with the request's id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    code: Code,
    detail: String,
    present: Option<Box<Present>>,
    /// Seconds after which the request may be repeated, if that depends on the caller.
    retry_after: Option<u64>,
    /// The state of the rate limit that refused the request.
    rate_status: Option<Box<RateStatus>>,
}

/// What a write has met that a condition refused.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Present {
    /// The field's value.
    Value(CurrentValue),
    /// The values of the fields that a patch tests.
    Fields(BTreeMap<String, CurrentValue>),
    /// The position of a room's last message.
    Head(EventId),
}

/// The present value of a field whose condition failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct CurrentValue {
    /// The value. Missing if the field has no value, or if the value is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub value: Option<String>,
    /// The value in Base64, if it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub value_base64: Option<String>,
}

/// A problem document (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem, example = json!({
    "type": "urn:roomcast:problem:field_not_found", "title": "No such field", "status": 404,
    "detail": "the hash \"lamp\" has no field \"colour\"", "code": "field_not_found",
    "request_id": "0195f7a4-64a0-7c35-b0a5-2f6f0c3c9c52"
}))]
pub struct ProblemDocument {
    /// The kind of problem: `urn:roomcast:problem:` and the code.
    #[serde(rename = "type")]
    kind: String,
    /// The kind of problem, in words.
    title: String,
    /// The HTTP status.
    status: u16,
    /// The cause in this case, for people.
    detail: String,
    /// The stable name of the kind of problem, for programs.
    #[schema(value_type = Code)]
    code: String,
    /// The request's id, as in the header `X-Request-Id` and in the gateway's log.
    request_id: String,
    /// With status 412 only: the field's present value. Left out if it is large, or if the caller may not read it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    present: Option<CurrentValue>,
    /// With status 412 to a patch only: the present values of the fields that it tests. Left out likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    present_fields: Option<BTreeMap<String, CurrentValue>>,
    /// With status 412 to a publish only: the position of the room's last message, as in the header `ETag`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, example = "1790000000000000-42")]
    head: Option<String>,
}

impl Problem {
    /// A failure. `detail` is the cause in this case.
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), present: None, retry_after: None, rate_status: None }
    }

    /// A failure of a request that may be repeated after some time.
    pub fn later(code: Code, detail: impl Into<String>, after: Duration) -> Self {
        // Whole seconds, rounded up (RFC 9110, section 10.2.3).
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        Self { retry_after: Some(seconds.max(1)), ..Self::new(code, detail) }
    }

    /// Adds the state of the rate limit that refused the request.
    #[must_use]
    pub fn with_rate_status(self, rate_status: RateStatus) -> Self {
        Self { rate_status: Some(Box::new(rate_status)), ..self }
    }

    /// The failed condition of a write, with the present value.
    pub fn precondition(detail: impl Into<String>, present: CurrentValue) -> Self {
        Self { present: Some(Box::new(Present::Value(present))), ..Self::new(Code::PreconditionFailed, detail) }
    }

    /// The failed test of a patch, with the present values of the fields that it tests.
    pub fn failed_test(detail: impl Into<String>, present: BTreeMap<String, CurrentValue>) -> Self {
        Self { present: Some(Box::new(Present::Fields(present))), ..Self::new(Code::PreconditionFailed, detail) }
    }

    /// The failed condition of a publish, with the present position of the room's last message.
    pub fn head_moved(detail: impl Into<String>, head: EventId) -> Self {
        Self { present: Some(Box::new(Present::Head(head))), ..Self::new(Code::PreconditionFailed, detail) }
    }

    /// The kind of failure.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The cause in this case.
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

impl From<AppendError> for Problem {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::TooManyTopics { retry_after } => Self::later(
                Code::TooManyWrittenRooms,
                "the replica can't remember further rooms that this caller publishes to; those of the last minutes \
                 still take events, others do after the seconds in Retry-After",
                retry_after,
            ),
            AppendError::Broker(error) => error.into(),
        }
    }
}

impl From<BrokerError> for Problem {
    fn from(error: BrokerError) -> Self {
        match error {
            BrokerError::WrongType => Self::new(
                Code::WrongType,
                "another program has stored a value of another type under this key in Redis; \
                 another name, or --redis-prefix and --hash-key, keep the gateway's keys apart",
            ),
            BrokerError::NotANumber => Self::new(
                Code::NotANumber,
                format!(
                    "the field's value, or the sum, is neither a 64-bit whole number nor a decimal of at most \
                     {MAX_DIGITS} digits"
                ),
            ),
            BrokerError::CopyTooLarge => Self::new(
                Code::BodyTooLarge,
                format!("the values that the patch copies and moves have more than {MAX_COPIED_BYTES} bytes"),
            ),
            BrokerError::TooManyFields => {
                Self::new(Code::TooManyFields, format!("a hash has at most {MAX_FIELDS} fields"))
            }
            BrokerError::TooLargeToWatch => Self::new(
                Code::HashTooLarge,
                "the hash is too large to be watched: it has more than 100,000 fields or 16 MiB; list its fields instead",
            ),
            BrokerError::KeyReused => Self::new(
                Code::IdempotencyKeyReused,
                "this Idempotency-Key was used for other content in this room or hash; use a new key",
            ),
            BrokerError::Finished => Self::new(
                Code::RoomFinished,
                "the room takes no event after its final one, until DELETE of its events opens it again",
            ),
            BrokerError::HeadMoved => Self::new(Code::PreconditionFailed, error.to_string()),
            BrokerError::UnknownPage => Self::new(
                Code::InvalidQuery,
                "after: no page starts here; follow the Link header of the page before",
            ),
            // The fault's detail may name servers. It goes to the log; the caller gets the kind only.
            BrokerError::Unavailable(fault) => {
                request_context::log_limited(fault.kind.name(), |omitted| {
                    tracing::warn!(%fault, omitted, "a request failed: the broker is degraded");
                });
                let (code, cause) = cause(&fault);
                let detail = format!("nothing was stored or read: {cause} ({}); try again", fault.kind.name());
                Self::new(code, detail)
            }
            BrokerError::OutcomeUnknown(fault) => {
                request_context::log_limited(Code::OutcomeUnknown.name(), |omitted| {
                    tracing::warn!(%fault, omitted, "outcome unknown: the broker's answer was lost");
                });
                let detail = format!(
                    "the write may or may not be stored ({}); if it has an Idempotency-Key or an If-Match that its \
                     route supports, it can be repeated safely",
                    fault.kind.name()
                );
                Self::new(Code::OutcomeUnknown, detail)
            }
        }
    }
}

/// The code for a fault of the broker, and the cause in words.
fn cause(fault: &Fault) -> (Code, &'static str) {
    match fault.kind {
        FaultKind::OutOfMemory => {
            (Code::OutOfMemory, "the broker's memory is full: maxmemory of Redis, or --embedded-max-bytes")
        }
        FaultKind::ReadOnly => {
            (Code::ReadOnly, "the Redis server is a replica and refuses writes; see --redis-url")
        }
        FaultKind::NoReplicas => (Code::NoReplicas, "Redis has fewer replicas than min-replicas-to-write"),
        FaultKind::Misconfigured => (Code::Misconfigured, "Redis can't save its data to its disk"),
        FaultKind::DiskFull => (Code::DiskFull, "the disk of --data-dir is full"),
        FaultKind::DiskFailed => (Code::DiskFailed, "the disk of --data-dir fails"),
        FaultKind::Busy => (
            Code::Busy,
            "the broker can't take more for now: a script blocks Redis, too many writes wait for the disk, or too many removals are stored",
        ),
        FaultKind::Unreachable
        | FaultKind::TimedOut
        | FaultKind::NotReceiving
        | FaultKind::Loading
        | FaultKind::NotPermitted
        | FaultKind::Failed => (Code::Unavailable, "the broker is unavailable"),
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.code.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Makes a document of every failure: of a [`Problem`], and of an error status that the framework set. Calls `count`
/// with its code.
pub fn finish(mut response: Response, request_id: &str, count: impl FnOnce(Code)) -> Response {
    let status = response.status();
    // An error response with a JSON body of its own, such as that of /healthz, is not replaced.
    let has_own_body = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    let problem = response.extensions_mut().remove::<Problem>();
    let problem = problem.or_else(|| if has_own_body { None } else { framework_problem(status) });
    let Some(problem) = problem else { return response };
    count(problem.code);
    let challenge = challenge(&problem);
    let (code, status, title) = problem.code.parts();
    if status == StatusCode::INTERNAL_SERVER_ERROR {
        request_context::log_limited(code, |omitted| {
            tracing::error!(detail = problem.detail, omitted, "the gateway failed");
        });
    }
    let (mut present, mut present_fields, mut head) = (None, None, None);
    match problem.present.map(|present| *present) {
        None => {}
        Some(Present::Value(value)) => present = Some(value),
        Some(Present::Fields(fields)) => present_fields = Some(fields),
        Some(Present::Head(position)) => head = Some(position.to_string()),
    }
    let tag = head.as_deref().map(quoted);
    let document = ProblemDocument {
        kind: format!("urn:roomcast:problem:{code}"),
        title: title.into(),
        status: status.as_u16(),
        detail: problem.detail,
        code: code.into(),
        request_id: request_id.into(),
        present,
        present_fields,
        head,
    };
    let mut answer = (status, Json(document)).into_response();
    // Keep headers such as `Allow` and `ETag`. Drop those that describe the replaced body.
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
    if problem.code == Code::UnsupportedEncoding {
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
    }
    headers.extend(tag.map(|tag| (header::ETAG, tag)));
    if let Some(challenge) = challenge {
        headers.insert(header::WWW_AUTHENTICATE, challenge);
    }
    answer
}

/// The `WWW-Authenticate` header (RFC 6750, section 3) for a caller that needs a token, or another token.
fn challenge(problem: &Problem) -> Option<HeaderValue> {
    let error = match problem.code {
        Code::TokenMissing => String::new(),
        Code::TokenInvalid | Code::TokenExpired => {
            // The characters that a description may have.
            let is_allowed = |c: &char| matches!(c, ' '..='~') && !matches!(c, '"' | '\\');
            let description: String = problem.detail.chars().filter(is_allowed).collect();
            format!(", error=\"invalid_token\", error_description=\"{description}\"")
        }
        Code::Forbidden => ", error=\"insufficient_scope\"".into(),
        _ => return None,
    };
    HeaderValue::from_str(&format!("Bearer realm=\"roomcast\"{error}")).ok()
}

/// Adds the headers of draft-ietf-httpapi-ratelimit-headers: a limit, and what is left of it.
pub fn add_rate_status(headers: &mut HeaderMap, rate_status: &RateStatus) {
    let RateStatus { policy, quota, window, remaining } = rate_status;
    let texts = [
        (RATE_LIMIT_POLICY, format!("\"{policy}\";q={quota};w={window}")),
        (RATE_LIMIT, format!("\"{policy}\";r={remaining}")),
    ];
    for (name, text) in texts {
        headers.insert(name, HeaderValue::from_str(&text).expect("policy names and numbers are visible ASCII"));
    }
}

/// The problem for an error status that the framework set without one.
fn framework_problem(status: StatusCode) -> Option<Problem> {
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
        Code::MethodNotAllowed => "the Allow header lists the methods of this route",
        other => other.parts().2,
    };
    Some(Problem::new(code, detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_the_name_of_every_code() {
        let schema = serde_json::to_value(<Code as utoipa::PartialSchema>::schema()).unwrap();
        let names = schema["enum"].as_array().unwrap();
        assert!(names.len() > 30);
        for name in names {
            let code: Code = serde_json::from_value(name.clone()).unwrap();
            assert_eq!(code.name(), name);
        }
    }

    #[test]
    fn every_broker_fault_has_its_code_and_its_status() {
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
