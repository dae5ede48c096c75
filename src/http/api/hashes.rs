//! Shared hashes: fields with values, set and read one by one or together.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::auth::Permission;
use crate::broker::{Condition, FieldPage, Removed, Written, entity_tag};
use crate::http::App;
use crate::http::caller::Caller;
use crate::http::extract::{
    FieldPath, HashPath, JsonBody, Media, Object, Query, body, header_text, json, media, name,
};
use crate::http::page::{add_link, escape, page_limit};
use crate::http::problem::{Code, CurrentValue, Document, Problem};
use crate::names::{FieldName, HashName};

const DEFAULT_LIMIT: usize = 1000;
const MAX_LIMIT: usize = 10_000;
/// Fields that one request can ask for by name.
const MAX_NAMED_FIELDS: usize = 1000;
/// Entity tags in one `If-Match`.
const MAX_TAGS: usize = 20;

/// A value as JSON: `value` where it is UTF-8, else `value_base64`.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({"value": "green"}))]
pub struct HashValue {
    /// The value.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    value: Option<String>,
    /// The value in Base64, where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    value_base64: Option<String>,
}

impl HashValue {
    fn from_bytes(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self { value: Some(text.into()), value_base64: None },
            Err(_) => Self { value: None, value_base64: Some(STANDARD.encode(bytes)) },
        }
    }
}

fn present(bytes: Option<&Bytes>) -> CurrentValue {
    let none = HashValue { value: None, value_base64: None };
    let HashValue { value, value_base64 } = bytes.map_or(none, |bytes| HashValue::from_bytes(bytes));
    CurrentValue { value, value_base64 }
}

/// A field of a hash.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({"hash": "lamp", "field": "colour", "value": "green"}))]
pub struct FieldValue {
    /// The hash.
    hash: String,
    /// The field.
    field: String,
    /// The value.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    value: Option<String>,
    /// The value in Base64, where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    value_base64: Option<String>,
}

fn field_value(hash: &HashName, field: &FieldName, value: &[u8]) -> FieldValue {
    let HashValue { value, value_base64 } = HashValue::from_bytes(value);
    FieldValue { hash: hash.to_string(), field: field.to_string(), value, value_base64 }
}

fn quoted(tag: &str) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{tag}\"")).expect("hexadecimal digits are visible ASCII")
}

/// Get a field
///
/// As JSON, or as its raw bytes for `Accept: text/plain` or `application/octet-stream`. The `ETag` comes from the value.
#[utoipa::path(
    get, path = "/v1/hashes/{hash}/fields/{field}", operation_id = "getField", tag = "Hashes",
    params(("hash" = String, Path, description = "The hash's name", max_length = 128, example = "lamp"),
        ("field" = String, Path, description = "The field's name", max_length = 256, example = "colour"),
        ("If-None-Match" = Option<String>, Header, description = "Answer 304 if the value still has this `ETag`")),
    responses(
        (status = 200, description = "The value", content(
            (FieldValue = "application/json"), (String = "text/plain", example = "green"),
            (String = "application/octet-stream")), headers(("ETag" = String, description = "Of the value"))),
        (status = 304, description = "The value still has the given `ETag`"),
        (status = 404, description = "No such field", body = Document, content_type = "application/problem+json"),
        (status = 409, description = "The key holds something else", body = Document, content_type = "application/problem+json"),
    )
)]
pub async fn get_field(
    caller: Caller,
    FieldPath(hash, field): FieldPath,
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    caller.require(Permission::Read, hash.as_str())?;
    let value = app.hashes.value(&hash, &field).await?.ok_or_else(|| no_field(&hash, &field))?;
    let tag = entity_tag(&value);
    let known = tags(&headers, &header::IF_NONE_MATCH)?;
    let mut response = if known.is_some_and(|known| known.matches(&tag)) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        match raw_type(&headers)? {
            Some(raw) => ([(header::CONTENT_TYPE, HeaderValue::from_static(raw))], value).into_response(),
            None => Json(field_value(&hash, &field, &value)).into_response(),
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::ETAG, quoted(&tag));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    headers.insert(header::VARY, HeaderValue::from_static("accept"));
    Ok(response)
}

/// JSON unless only raw bytes are asked for: the first media type that is known decides.
fn raw_type(headers: &HeaderMap) -> Result<Option<&'static str>, Problem> {
    let accept = header_text(headers, &header::ACCEPT)?.unwrap_or_default();
    let mut wanted = accept.split(',').filter_map(|range| range.split(';').next()).map(str::trim);
    Ok(wanted
        .find_map(|range| match range {
            "text/plain" => Some(Some("text/plain; charset=utf-8")),
            "application/octet-stream" => Some(Some("application/octet-stream")),
            "application/json" | "*/*" | "application/*" => Some(None),
            _ => None,
        })
        .flatten())
}

fn no_field(hash: &HashName, field: &FieldName) -> Problem {
    Problem::new(Code::FieldNotFound, format!("hash {hash:?} has no field {field:?}"))
}

/// A value to set.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"value": "green"}))]
pub struct SetField {
    /// The value: a string.
    value: String,
}

/// Set a field
///
/// JSON `{"value": string}`, or any other type's bytes as they are. 201 if the field is new, 200 if it had a value.
/// With `If-Match` or `If-None-Match: *` it is set only if the value is what the caller takes it for.
#[utoipa::path(
    put, path = "/v1/hashes/{hash}/fields/{field}", operation_id = "setField", tag = "Hashes",
    params(("hash" = String, Path, description = "The hash's name", max_length = 128, example = "lamp"),
        ("field" = String, Path, description = "The field's name", max_length = 256, example = "colour"),
        ("If-Match" = Option<String>, Header, description = "Only if the value has this `ETag`, or `*`: if there is one"),
        ("If-None-Match" = Option<String>, Header, description = "`*`: only if there is none")),
    request_body(description = "The value", content(
        (SetField = "application/json"), (String = "text/plain", example = "green"),
        (String = "application/octet-stream"))),
    responses(
        (status = 200, description = "Set; there was a value before", body = FieldValue,
            headers(("ETag" = String, description = "Of the value"))),
        (status = 201, description = "Set; the field is new", body = FieldValue,
            headers(("ETag" = String, description = "Of the value"))),
        (status = 409, description = "The key holds something else", body = Document, content_type = "application/problem+json"),
        (status = 412, description = "The condition does not hold; `present` is the value", body = Document, content_type = "application/problem+json"),
        (status = 413, description = "The value is too large", body = Document, content_type = "application/problem+json"),
        (status = 415, description = "Neither JSON, text nor bytes", body = Document, content_type = "application/problem+json"),
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
    let media = media(request.headers())?;
    let body = body(request, &app).await?;
    let value = match media {
        Media::Json => Bytes::from(json::<Object<SetField>>(&body)?.0.value),
        Media::Text | Media::Bytes => body,
    };
    check_value(&app, &value)?;
    let status = match app.hashes.set(&hash, &field, value.clone(), &condition).await? {
        Written::Created => StatusCode::CREATED,
        Written::Replaced => StatusCode::OK,
        Written::Refused(met) => return Err(refused(&caller, &hash, &field, met.as_ref())),
    };
    let tag = quoted(&entity_tag(&value));
    Ok((status, [(header::ETAG, tag)], Json(field_value(&hash, &field, &value))).into_response())
}

fn check_value(app: &App, value: &[u8]) -> Result<(), Problem> {
    let limit = app.settings.requests.max_value_bytes;
    if value.len() > limit {
        return Err(Problem::new(Code::BodyTooLarge, format!("a value is at most {limit} bytes")));
    }
    Ok(())
}

fn refused(caller: &Caller, hash: &HashName, field: &FieldName, met: Option<&Bytes>) -> Problem {
    let now = if met.is_some() { "has another value" } else { "has no value" };
    // The value itself is only for those who may read it.
    let met = met.filter(|_| caller.may(Permission::Read, hash.as_str()));
    Problem::precondition(format!("field {field:?} of hash {hash:?} {now}"), present(met))
}

/// Delete a field
///
/// With `If-Match` only if the value is what the caller takes it for. A hash whose last field goes is gone too.
#[utoipa::path(
    delete, path = "/v1/hashes/{hash}/fields/{field}", operation_id = "deleteField", tag = "Hashes",
    params(("hash" = String, Path, description = "The hash's name", max_length = 128, example = "lamp"),
        ("field" = String, Path, description = "The field's name", max_length = 256, example = "colour"),
        ("If-Match" = Option<String>, Header, description = "Only if the value has this `ETag`")),
    responses(
        (status = 204, description = "Deleted"),
        (status = 404, description = "No such field", body = Document, content_type = "application/problem+json"),
        (status = 409, description = "The key holds something else", body = Document, content_type = "application/problem+json"),
        (status = 412, description = "The condition does not hold; `present` is the value", body = Document, content_type = "application/problem+json"),
    )
)]
pub async fn delete_field(
    caller: Caller,
    FieldPath(hash, field): FieldPath,
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    caller.require(Permission::Write, hash.as_str())?;
    let condition = condition(&headers)?;
    if condition == Condition::Absent {
        return Err(Problem::new(Code::InvalidHeader, "If-None-Match: * and DELETE exclude each other"));
    }
    match app.hashes.remove(&hash, &field, &condition).await? {
        Removed::Gone => Ok(StatusCode::NO_CONTENT),
        Removed::Absent => Err(no_field(&hash, &field)),
        Removed::Refused(met) => Err(refused(&caller, &hash, &field, met.as_ref())),
    }
}

/// Entity tags of a conditional request.
enum Tags {
    Any,
    These(Vec<String>),
}

impl Tags {
    fn matches(&self, tag: &str) -> bool {
        match self {
            Self::Any => true,
            Self::These(tags) => tags.iter().any(|known| known == tag),
        }
    }
}

fn tags(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Tags>, Problem> {
    let Some(text) = header_text(headers, name)? else { return Ok(None) };
    if text.trim() == "*" {
        return Ok(Some(Tags::Any));
    }
    let tags: Option<Vec<_>> = text
        .split(',')
        .map(|tag| {
            let tag = tag.trim();
            // Balancers may weaken a tag; values are equal to the byte or not at all, so it means the same.
            let tag = tag.strip_prefix("W/").unwrap_or(tag);
            Some(tag.strip_prefix('"')?.strip_suffix('"')?.to_owned())
        })
        .collect();
    match tags {
        Some(tags) if tags.len() <= MAX_TAGS => Ok(Some(Tags::These(tags))),
        _ => Err(Problem::new(Code::InvalidHeader, format!("{name} is * or up to {MAX_TAGS} quoted entity tags"))),
    }
}

/// Better refused than left out: the write would be done although the condition does not hold.
fn refuse_conditions(headers: &HeaderMap) -> Result<(), Problem> {
    match condition(headers)? {
        Condition::Always => Ok(()),
        _ => Err(Problem::new(Code::InvalidHeader, "If-Match and If-None-Match are for single fields")),
    }
}

fn condition(headers: &HeaderMap) -> Result<Condition, Problem> {
    match (tags(headers, &header::IF_MATCH)?, tags(headers, &header::IF_NONE_MATCH)?) {
        (None, None) => Ok(Condition::Always),
        (Some(Tags::Any), None) => Ok(Condition::Present),
        (Some(Tags::These(tags)), None) => Ok(Condition::Matches(tags)),
        (None, Some(Tags::Any)) => Ok(Condition::Absent),
        (None, Some(Tags::These(_))) => Err(Problem::new(
            Code::InvalidHeader,
            "a write takes If-None-Match: * only; If-Match takes entity tags",
        )),
        (Some(_), Some(_)) => {
            Err(Problem::new(Code::InvalidHeader, "If-Match and If-None-Match exclude each other"))
        }
    }
}

/// Which fields to list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FieldsQuery {
    /// Only this field; may be repeated.
    #[serde(default)]
    field: Vec<String>,
    /// Where the next page starts, from `next` of the one before.
    after: Option<String>,
    /// About how many at most.
    #[param(minimum = 1, maximum = 10000, default = 1000)]
    limit: Option<usize>,
}

/// Fields of a hash.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({"hash": "lamp", "fields": {"colour": {"value": "green"}}, "next": null}))]
pub struct FieldList {
    /// The hash.
    hash: String,
    /// Values by field.
    fields: BTreeMap<String, HashValue>,
    /// Where the next page starts; null on the last one.
    #[schema(required = true)]
    next: Option<String>,
}

/// List the fields of a hash
///
/// All of them, a page at a time when there are many, or those that `field` names and that are there. A hash without
/// fields does not exist: its list is empty.
#[utoipa::path(
    get, path = "/v1/hashes/{hash}", operation_id = "listFields", tag = "Hashes",
    params(("hash" = String, Path, description = "The hash's name", max_length = 128, example = "lamp"), FieldsQuery),
    responses(
        (status = 200, description = "Values by field", body = FieldList,
            headers(("Link" = String, description = "The next page, if there is more"))),
        (status = 409, description = "The key holds something else", body = Document, content_type = "application/problem+json"),
    )
)]
pub async fn list_fields(
    caller: Caller,
    HashPath(hash): HashPath,
    Query(query): Query<FieldsQuery>,
    State(app): State<App>,
) -> Result<Response, Problem> {
    caller.require(Permission::Read, hash.as_str())?;
    let limit = page_limit(query.limit, DEFAULT_LIMIT, MAX_LIMIT)?;
    let page = if query.field.is_empty() {
        app.hashes.page(&hash, query.after.as_deref(), limit).await?
    } else {
        named_fields(&app, &hash, &query.field).await?
    };
    let fields = page.fields.into_iter().map(|(field, value)| (field, HashValue::from_bytes(&value))).collect();
    let list = FieldList { hash: hash.to_string(), fields, next: page.next };
    let link = list
        .next
        .as_ref()
        .map(|next| format!("/v1/hashes/{}?limit={limit}&after={}", escape(hash.as_str()), escape(next)));
    let mut response = Json(list).into_response();
    if let Some(link) = link {
        add_link(&mut response, &link);
    }
    Ok(response)
}

async fn named_fields(app: &App, hash: &HashName, names: &[String]) -> Result<FieldPage, Problem> {
    if names.len() > MAX_NAMED_FIELDS {
        let detail = format!("a request names {MAX_NAMED_FIELDS} fields at most");
        return Err(Problem::new(Code::InvalidQuery, detail));
    }
    let names = names.iter().map(|text| name("the field", text, FieldName::new));
    let names = names.collect::<Result<Vec<_>, _>>()?;
    let values = app.hashes.values(hash, &names).await?;
    let found = names.into_iter().zip(values).filter_map(|(name, value)| Some((name.to_string(), value?)));
    Ok(FieldPage { fields: found.collect(), next: None })
}

/// What a patch did.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({"hash": "lamp", "created": 1, "replaced": 1, "removed": 0}))]
pub struct PatchAnswer {
    /// The hash.
    hash: String,
    /// Fields that are new.
    created: u64,
    /// Fields that had a value before.
    replaced: u64,
    /// Fields that are gone.
    removed: u64,
}

/// Set and remove several fields at once
///
/// A JSON object, as a merge patch (RFC 7396): a string sets a field, `null` removes it. All of it happens, or none.
#[utoipa::path(
    patch, path = "/v1/hashes/{hash}", operation_id = "patchFields", tag = "Hashes",
    params(("hash" = String, Path, description = "The hash's name", max_length = 128, example = "lamp")),
    request_body(description = "Strings or null by field", content(
        (BTreeMap<String, Option<String>> = "application/json", example = json!({"colour": "green", "dimmed": null})),
        (BTreeMap<String, Option<String>> = "application/merge-patch+json", example = json!({"colour": "green"})))),
    responses(
        (status = 200, description = "Done", body = PatchAnswer),
        (status = 409, description = "The key holds something else", body = Document, content_type = "application/problem+json"),
        (status = 413, description = "The body or a value is too large", body = Document, content_type = "application/problem+json"),
        (status = 415, description = "Not JSON", body = Document, content_type = "application/problem+json"),
    )
)]
pub async fn patch_fields(
    caller: Caller,
    HashPath(hash): HashPath,
    State(app): State<App>,
    headers: HeaderMap,
    JsonBody(patch): JsonBody<BTreeMap<FieldName, Option<String>>>,
) -> Result<Json<PatchAnswer>, Problem> {
    caller.require(Permission::Write, hash.as_str())?;
    refuse_conditions(&headers)?;
    let limit = app.settings.requests.max_batch_items;
    if patch.is_empty() || patch.len() > limit {
        return Err(Problem::new(Code::InvalidBody, format!("a patch has 1 to {limit} fields")));
    }
    let mut changes = BTreeMap::new();
    for (field, value) in patch {
        let value = value.map(Bytes::from);
        value.as_ref().map(|value| check_value(&app, value)).transpose()?;
        changes.insert(field, value);
    }
    let done = app.hashes.patch(&hash, &changes).await?;
    Ok(Json(PatchAnswer {
        hash: hash.to_string(),
        created: done.created,
        replaced: done.replaced,
        removed: done.removed,
    }))
}

/// Delete a hash
///
/// With all its fields, at once.
#[utoipa::path(
    delete, path = "/v1/hashes/{hash}", operation_id = "deleteHash", tag = "Hashes",
    params(("hash" = String, Path, description = "The hash's name", max_length = 128, example = "lamp")),
    responses(
        (status = 204, description = "Deleted"),
        (status = 404, description = "No such hash", body = Document, content_type = "application/problem+json"),
        (status = 409, description = "The key holds something else", body = Document, content_type = "application/problem+json"),
    )
)]
pub async fn delete_hash(
    caller: Caller,
    HashPath(hash): HashPath,
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    caller.require(Permission::Write, hash.as_str())?;
    refuse_conditions(&headers)?;
    if app.hashes.delete(&hash).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Problem::new(Code::HashNotFound, format!("there is no hash {hash:?}")))
    }
}

/// How much to add.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"by": 1}))]
pub struct Increment {
    /// A whole number, negative to subtract.
    by: i64,
}

/// Add to a number
///
/// Atomic. A field that is absent counts as 0.
#[utoipa::path(
    post, path = "/v1/hashes/{hash}/fields/{field}/increment", operation_id = "incrementField", tag = "Hashes",
    params(("hash" = String, Path, description = "The hash's name", max_length = 128, example = "lamp"),
        ("field" = String, Path, description = "The field's name", max_length = 256, example = "switched")),
    request_body(content = Increment, content_type = "application/json"),
    responses(
        (status = 200, description = "The sum, as the string that the field now holds", body = FieldValue,
            headers(("ETag" = String, description = "Of the value"))),
        (status = 409, description = "The value is no whole number of 64 bits, or the sum is not", body = Document, content_type = "application/problem+json"),
        (status = 415, description = "Not JSON", body = Document, content_type = "application/problem+json"),
    )
)]
pub async fn increment_field(
    caller: Caller,
    FieldPath(hash, field): FieldPath,
    State(app): State<App>,
    headers: HeaderMap,
    JsonBody(Object(increment)): JsonBody<Object<Increment>>,
) -> Result<Response, Problem> {
    caller.require(Permission::Write, hash.as_str())?;
    // The answer is the value.
    caller.require(Permission::Read, hash.as_str())?;
    refuse_conditions(&headers)?;
    let sum = app.hashes.increment(&hash, &field, increment.by).await?.to_string();
    let tag = quoted(&entity_tag(sum.as_bytes()));
    Ok(([(header::ETAG, tag)], Json(field_value(&hash, &field, sum.as_bytes()))).into_response())
}
