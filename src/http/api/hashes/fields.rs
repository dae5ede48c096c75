//! One field of a hash: reading, setting, deleting and incrementing it.

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::accept::ValueFormat;
use super::conditions::{Tags, condition, etag, quoted};
use super::values::{HashValue, check_value, current_value, fit_in_problem};
use super::writes::{WriteHeaders, require_memory};
use crate::auth::Permission;
use crate::broker::{Condition, HashWrite, Number, WriteOutcome, entity_tag};
use crate::http::App;
use crate::http::body::{read_json_body, read_typed_body, reserve_answer};
use crate::http::caller::Caller;
use crate::http::extract::{BodyType, FieldPath, JsonObject, parse_json};
use crate::http::problem::{Code, Problem};
use crate::names::{FieldName, HashName};

/// Bytes of a field's JSON that are not those of its value, unless the names are long.
const JSON_OVERHEAD: usize = 128;
/// The headers of the response with a field, as it is sent: with room for all of them, they are stored once.
const HEADERS: usize = 12;

/// A field of a hash.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({"hash": "lamp", "field": "colour", "value": "green"}))]
pub struct FieldValue {
    /// The hash's name.
    hash: String,
    /// The field's name.
    field: String,
    /// The value, if it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    value: Option<String>,
    /// The value in Base64, if it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    value_base64: Option<String>,
}

impl FieldValue {
    fn new(hash: &HashName, field: &FieldName, value: &[u8]) -> Self {
        let HashValue { value, value_base64 } = HashValue::from_bytes(value);
        Self { hash: hash.as_str().into(), field: field.as_str().into(), value, value_base64 }
    }

    fn to_json(&self) -> FieldJson {
        let value = self.value.as_ref().or(self.value_base64.as_ref());
        let mut json = Vec::with_capacity(JSON_OVERHEAD + value.map_or(0, String::len));
        serde_json::to_writer(&mut json, self).expect("a text is always JSON");
        FieldJson(json)
    }
}

/// A [`FieldValue`] in JSON.
struct FieldJson(Vec<u8>);

impl IntoResponse for FieldJson {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.0));
        let headers = response.headers_mut();
        headers.reserve(HEADERS);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

/// Get a field
///
/// The response is JSON, or the raw value as `text/plain` or `application/octet-stream`: the type that `Accept` weighs
/// highest, and JSON of equal ones under one range. The `ETag` depends on the value only.
#[utoipa::path(
    get, path = "/v1/hashes/{hash}/fields/{field}", operation_id = "getField", tag = "Hashes",
    params(("hash" = String, Path, description = "The hash's name", example = "lamp"),
        ("field" = String, Path, description = "The field's name", example = "colour"),
        ("If-Match" = Option<String>, Header,
            description = "Entity tags: if the value has none of them, the response is 412"),
        ("If-None-Match" = Option<String>, Header,
            description = "Entity tags: if the value has one of them, the response is 304")),
    responses(
        (status = 200, description = "The value", body = FieldValue,
            headers(("ETag" = String, description = "The entity tag of the value"))),
        (status = 304, description = "The value has one of the given entity tags"),
        (status = 404, description = "The field does not exist"),
        (status = 406, description = "`Accept` excludes every type in which a value is sent"),
        (status = 409, description = "The key in Redis has another type"),
        (status = 412, description = "The value has none of the entity tags of `If-Match`; `present` is the value"),
    )
)]
pub async fn get_field(
    caller: Caller,
    FieldPath(hash, field): FieldPath,
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    caller.require(Permission::Read, hash.as_str())?;
    let value = read_value(&app, &caller, &hash, &field).await?.ok_or_else(|| not_found(&hash, &field))?;
    let tag = entity_tag(&value);
    if Tags::from_header(&headers, &header::IF_MATCH)?.is_some_and(|wanted| !wanted.matches(&tag)) {
        return Err(condition_problem(&hash, &field, Some(&value)));
    }
    let known = Tags::from_header(&headers, &header::IF_NONE_MATCH)?;
    let mut response = if known.is_some_and(|known| known.matches(&tag)) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let raw = |kind| [(header::CONTENT_TYPE, HeaderValue::from_static(kind))];
        match ValueFormat::from_headers(&headers, &value)? {
            ValueFormat::Json => FieldValue::new(&hash, &field, &value).to_json().into_response(),
            ValueFormat::Text => (raw("text/plain; charset=utf-8"), value).into_response(),
            // Never the type of its writer, with which a browser could run it.
            ValueFormat::Bytes => (raw("application/octet-stream"), value).into_response(),
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::ETAG, quoted(&tag));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    headers.insert(header::VARY, HeaderValue::from_static("accept"));
    Ok(response)
}

/// A value to set, in the form in which lists have it: either `value` or `value_base64`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"value": "green"}))]
pub struct SetField {
    /// The value, as text.
    #[schema(nullable = false)]
    value: Option<String>,
    /// The value's bytes, in Base64.
    #[schema(nullable = false)]
    value_base64: Option<String>,
}

impl SetField {
    fn into_bytes(self) -> Result<Bytes, Problem> {
        let refuse = |detail| Problem::new(Code::InvalidBody, detail);
        match (self.value, self.value_base64) {
            (Some(value), None) => Ok(value.into()),
            (None, Some(encoded)) => {
                let bytes = STANDARD.decode(encoded);
                bytes.map(Bytes::from).map_err(|why| refuse(format!("value_base64 is not Base64: {why}")))
            }
            _ => Err(refuse("the body must have either value, a string, or value_base64".into())),
        }
    }
}

/// Set a field
///
/// A body of type `application/json` is `{"value": string}`, or `{"value_base64": string}` for bytes. A body of any
/// other type is the value, byte for byte; its type is not stored. A JSON object without its `Content-Type` is refused
/// with 415. The status is 201 if the field is new, and 200 if it had a value. With `If-Match` or `If-None-Match: *`, the
/// field is set only if its present value matches the condition.
#[utoipa::path(
    put, path = "/v1/hashes/{hash}/fields/{field}", operation_id = "setField", tag = "Hashes",
    params(("hash" = String, Path, description = "The hash's name", example = "lamp"),
        ("field" = String, Path, description = "The field's name", example = "colour"),
        ("If-Match" = Option<String>, Header,
            description = "Set the field only if its value has one of these entity tags; `*`: only if it has a value"),
        ("If-None-Match" = Option<String>, Header, description = "`*`: set the field only if it has no value"),
        ("Idempotency-Key" = Option<String>, Header, max_length = 255,
            description = "Makes the request safe to repeat: the same key with the same content sets nothing twice"),
        ("Prefer" = Option<String>, Header, description = "`return=minimal`: no body")),
    request_body(content = SetField, content_type = "application/json",
        description = "The value. Other types are possible too, such as `text/plain` and `image/png`: the value is then the body, byte for byte."),
    responses(
        (status = 200, description = "The field is set; it had a value before", body = FieldValue,
            headers(("ETag" = String, description = "The entity tag of the value"),
                ("Idempotency-Replayed" = String,
                    description = "`true` if an earlier request with this key has set the field"))),
        (status = 201, description = "The field is set; it is new", body = FieldValue,
            headers(("ETag" = String, description = "The entity tag of the value"),
                ("Idempotency-Replayed" = String,
                    description = "`true` if an earlier request with this key has set the field"))),
        (status = 204, description = "The field is set; it had a value before; with `Prefer: return=minimal`"),
        (status = 409, description = "The hash would have too many fields; or the key in Redis has another type"),
        (status = 412, description = "The value does not match the condition; `present` is the present value"),
        (status = 413, description = "The value is too large"),
        (status = 415, description = "The `Content-Encoding` is not supported"),
        (status = 422, description = "The idempotency key was used for another write"),
    )
)]
pub async fn set_field(
    caller: Caller,
    FieldPath(hash, field): FieldPath,
    State(app): State<App>,
    request: Request,
) -> Result<Response, Problem> {
    caller.require(Permission::Write, hash.as_str())?;
    let condition = condition(request.headers())?;
    let headers = WriteHeaders::from_headers(request.headers())?;
    let body_type = BodyType::of_value(request.headers())?;
    let body = read_typed_body(body_type, request, &app, &caller).await?;
    let value = match body_type {
        BodyType::Json => parse_json::<JsonObject<SetField>>(&body)?.0.into_bytes()?,
        // A copy: the body may be a part of a larger buffer, which the embedded broker would then keep.
        BodyType::Text | BodyType::Untyped | BodyType::Bytes => Bytes::copy_from_slice(&body),
    };
    check_value(&app, &value)?;
    require_memory(&app)?;
    let answer = headers.want_body().then(|| FieldValue::new(&hash, &field, &value).to_json());
    if let Some(FieldJson(json)) = &answer {
        reserve_answer(&app, &caller, json.len())?;
    }
    caller.spend(&app, 1, value.len()).await?;
    let tag = etag(&value);
    let write = HashWrite::Set { field: field.clone(), value, condition };
    let refused = async |_| condition_failed(&app, &caller, &hash, &field).await;
    let done = headers.write(&app, &caller, &hash, &write, refused).await?;
    let status = if done.effect.created == 1 { StatusCode::CREATED } else { StatusCode::OK };
    Ok(done.respond(status, Some(tag), answer))
}

/// Delete a field
///
/// With `If-Match`, the field is deleted only if its present value matches. A hash without fields does not exist.
#[utoipa::path(
    delete, path = "/v1/hashes/{hash}/fields/{field}", operation_id = "deleteField", tag = "Hashes",
    params(("hash" = String, Path, description = "The hash's name", example = "lamp"),
        ("field" = String, Path, description = "The field's name", example = "colour"),
        ("If-Match" = Option<String>, Header,
            description = "Delete the field only if its value has one of these entity tags; `*`: if it has a value"),
        ("Idempotency-Key" = Option<String>, Header, max_length = 255,
            description = "Makes the request safe to repeat: the same key deletes nothing twice")),
    responses(
        (status = 204, description = "The field is deleted", headers(("Idempotency-Replayed" = String,
            description = "`true` if an earlier request with this key has deleted it"))),
        (status = 404, description = "The field does not exist"),
        (status = 409, description = "The key in Redis has another type"),
        (status = 412, description = "The value does not match the condition; `present` is the present value"),
        (status = 422, description = "The idempotency key was used for another write"),
    )
)]
pub async fn delete_field(
    caller: Caller,
    FieldPath(hash, field): FieldPath,
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    caller.require(Permission::Write, hash.as_str())?;
    let condition = condition(&headers)?;
    if condition == Condition::Absent {
        let detail = "DELETE does not support If-None-Match; use If-Match";
        return Err(Problem::new(Code::InvalidHeader, detail));
    }
    let headers = WriteHeaders::from_headers(&headers)?;
    let write = HashWrite::Remove { field: field.clone(), condition };
    let refused = async |outcome| match outcome {
        WriteOutcome::Absent(_) => not_found(&hash, &field),
        _ => condition_failed(&app, &caller, &hash, &field).await,
    };
    let done = headers.write(&app, &caller, &hash, &write, refused).await?;
    Ok(done.respond(StatusCode::NO_CONTENT, None, None::<()>))
}

/// An increment.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"by": 1}))]
pub struct Increment {
    /// The number to add: a 64-bit whole number, or a decimal of at most 15 digits. A negative number is subtracted.
    #[schema(value_type = f64)]
    by: Box<RawValue>,
}

/// Add to a number
///
/// The increment is atomic, and exact. A field without a value counts as 0. Whole numbers have 64 bits. If the value or
/// `by` is a decimal, both and the sum have at most 15 digits, with as many decimals as the one that has more. With
/// `If-Match` or `If-None-Match: *`, the number is added only if the present value matches the condition. This route needs
/// the permissions `write` and `read`, because the response is the value.
#[utoipa::path(
    post, path = "/v1/hashes/{hash}/fields/{field}/increment", operation_id = "incrementField", tag = "Hashes",
    params(("hash" = String, Path, description = "The hash's name", example = "lamp"),
        ("field" = String, Path, description = "The field's name", example = "switched"),
        ("If-Match" = Option<String>, Header,
            description = "Add only if the value has one of these entity tags; `*`: only if there is a value"),
        ("If-None-Match" = Option<String>, Header, description = "`*`: add only if the field has no value"),
        ("Idempotency-Key" = Option<String>, Header, max_length = 255,
            description = "Makes the request safe to repeat: the same key with the same number adds nothing twice"),
        ("Prefer" = Option<String>, Header, description = "`return=minimal`: no body")),
    request_body(content = Increment, content_type = "application/json"),
    responses(
        (status = 200, description = "The sum, as the string that the field has now", body = FieldValue,
            headers(("ETag" = String, description = "The entity tag of the value"),
                ("Idempotency-Replayed" = String,
                    description = "`true` if an earlier request with this key has added the number"))),
        (status = 204, description = "The number is added; with `Prefer: return=minimal`"),
        (status = 409, description = "The value, or the sum, is not such a number; or the hash would have too many \
fields; or the key in Redis has another type"),
        (status = 412, description = "The value does not match the condition; `present` is the present value"),
        (status = 415, description = "The body is not JSON"),
        (status = 422, description = "The idempotency key was used for another write"),
    )
)]
pub async fn increment_field(
    caller: Caller,
    FieldPath(hash, field): FieldPath,
    State(app): State<App>,
    request: Request,
) -> Result<Response, Problem> {
    caller.require(Permission::Write, hash.as_str())?;
    // The response is the value.
    caller.require(Permission::Read, hash.as_str())?;
    let condition = condition(request.headers())?;
    let headers = WriteHeaders::from_headers(request.headers())?;
    let body = read_json_body(request, &app, &caller).await?;
    let JsonObject(increment) = parse_json::<JsonObject<Increment>>(&body)?;
    let by = Number::from_json(increment.by.get());
    let by = by.map_err(|why| Problem::new(Code::InvalidBody, format!("by: {why}")))?;
    require_memory(&app)?;
    let wants_body = headers.want_body();
    let write = HashWrite::Increment { field: field.clone(), by, condition };
    let refused = async |_| condition_failed(&app, &caller, &hash, &field).await;
    let done = headers.write(&app, &caller, &hash, &write, refused).await?;
    let sum = done.effect.sum.clone().unwrap_or_default();
    let answer = wants_body.then(|| FieldValue::new(&hash, &field, sum.as_bytes()).to_json());
    Ok(done.respond(StatusCode::OK, Some(etag(sum.as_bytes())), answer))
}

fn not_found(hash: &HashName, field: &FieldName) -> Problem {
    Problem::new(Code::FieldNotFound, format!("the hash {hash:?} has no field {field:?}"))
}

fn condition_detail(hash: &HashName, field: &FieldName) -> String {
    format!("the value of the field {field:?} of the hash {hash:?} does not match the condition")
}

/// The problem of a condition that the field's present value does not meet.
fn condition_problem(hash: &HashName, field: &FieldName, present: Option<&Bytes>) -> Problem {
    let detail = condition_detail(hash, field);
    if fit_in_problem(present) {
        return Problem::precondition(detail, current_value(present));
    }
    Problem::new(Code::PreconditionFailed, detail + "; it is too large for this response, read it by GET")
}

/// The problem of a write whose condition failed, with the field's present value.
async fn condition_failed(app: &App, caller: &Caller, hash: &HashName, field: &FieldName) -> Problem {
    // A caller that may not read the hash must not see the value.
    if caller.may(Permission::Read, hash.as_str())
        && let Ok(present) = read_value(app, caller, hash, field).await
    {
        return condition_problem(hash, field, present.as_ref());
    }
    // The refusal is certain all the same.
    Problem::new(Code::PreconditionFailed, condition_detail(hash, field))
}

async fn read_value(
    app: &App,
    caller: &Caller,
    hash: &HashName,
    field: &FieldName,
) -> Result<Option<Bytes>, Problem> {
    caller.read(app, app.hashes.value(hash, field), |value| value.as_ref().map_or(0, Bytes::len)).await
}
