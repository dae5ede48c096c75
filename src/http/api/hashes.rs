//! A hash: listing its fields, changing several of them together, deleting it. Single fields are in [`fields`].

mod accept;
mod conditions;
pub mod expiry;
pub mod fields;
pub mod names;
mod patches;
mod values;
mod writes;

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::future::try_join;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use tokio::task::yield_now;
use utoipa::{IntoParams, ToSchema};

use self::patches::{JSON_PATCH, Patch, tested_fields};
pub use self::values::TaggedValue;
use self::values::{check_value, current_value, fit_in_problem};
use self::writes::{WriteHeaders, require_memory};
use crate::auth::Permission;
use crate::broker::{FieldPage, HashWrite, WriteEffect, WriteOutcome};
use crate::http::App;
use crate::http::body::read_json_body;
use crate::http::caller::Caller;
use crate::http::extract::{HashPath, QueryParams, has_media_type, parse_name};
use crate::http::page::{add_link, escape, page_limit};
use crate::http::problem::{Code, Problem};
use crate::names::{Bookmark, FieldName, HashName, WatchedValue};
use crate::timestamp;

const DEFAULT_LIMIT: usize = 1000;
const MAX_LIMIT: usize = 10_000;
/// Bytes of JSON that are made before other tasks of the thread get a turn.
const BYTES_BETWEEN_YIELDS: usize = 64 * 1024;
/// Fields that one request can select by name.
const MAX_SELECTED: usize = 1000;

/// The query of a list of fields.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct FieldsQuery {
    /// Only the field with this name. Can be repeated.
    #[serde(default)]
    field: BTreeSet<String>,
    /// The start of the next page: `next` of the page before.
    after: Option<String>,
    /// The approximate maximum number of fields. A page of large values has fewer.
    #[param(minimum = 1, maximum = 10000, default = 1000)]
    limit: Option<usize>,
}

/// Fields of a hash.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({"hash": "lamp",
    "fields": {"colour": {"value": "green", "etag": "\"bc74f4f071a5a33f00ab88a6d6385b5e6638b86c\""}},
    "expires_at": null, "refresh_seconds": null, "next": null, "position": "1790000000000000-42~1f3a"}))]
pub struct FieldList {
    /// The hash's name.
    hash: String,
    /// The values, by the names of their fields.
    #[schema(value_type = BTreeMap<String, TaggedValue>)]
    fields: BTreeMap<String, Box<RawValue>>,
    /// When the hash expires, or null if it does not.
    #[schema(required = true, format = DateTime, example = "2026-11-25T02:03:31.976Z")]
    expires_at: Option<String>,
    /// The seconds that each write begins anew, or null if writes leave the expiry as it is.
    #[schema(required = true)]
    refresh_seconds: Option<u64>,
    /// The start of the next page. Null on the last page.
    #[schema(required = true)]
    next: Option<String>,
    /// The number of fields left out of this page, because no request can have their names: another client of Redis wrote
    /// them. Missing if there are none.
    #[serde(skip_serializing_if = "is_zero")]
    #[schema(required = false)]
    skipped: usize,
    /// The position for `after` of a stream of the hash. The stream may begin with a snapshot all the same: with all pages of
    /// a list, with selected fields, and on a replica that nobody watches the hash on.
    #[schema(example = "1790000000000000-42~1f3a")]
    position: String,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// List the fields of a hash
///
/// The response has the fields that `field` selects, or a page of all fields. A page has about 1 MiB of JSON at most;
/// `next` is `after` of the next one, with the same `field`s. `Link` with `rel="next"` leads to the next page of all
/// fields. A hash without fields does not exist; its list is empty.
#[utoipa::path(
    get, path = "/v1/hashes/{hash}", operation_id = "listFields", tag = "Hashes",
    params(("hash" = String, Path, description = "The hash's name", example = "lamp"), FieldsQuery),
    responses(
        (status = 200, description = "The values, by field", body = FieldList,
            headers(("Link" = String, description = "The next page, if there is one"))),
        (status = 409, description = "The key in Redis has another type"),
    )
)]
pub async fn list_fields(
    caller: Caller,
    HashPath(hash): HashPath,
    QueryParams(query): QueryParams<FieldsQuery>,
    State(app): State<App>,
) -> Result<Response, Problem> {
    caller.require(Permission::Read, hash.as_str())?;
    let limit = page_limit(query.limit, DEFAULT_LIMIT, MAX_LIMIT)?;
    let page = async {
        let after = query.after.as_deref();
        if query.field.is_empty() {
            app.hashes.page(&hash, after, limit).await.map_err(Problem::from)
        } else {
            selected_fields(&app, &hash, &query.field, after.unwrap_or_default()).await
        }
    };
    let page_and_expiry = try_join(page, async { Ok(app.hashes.expiry(&hash).await?) });
    let (page, expiry) = caller.read(&app, page_and_expiry, |(page, _)| page.bytes()).await?;
    let is_whole = query.field.is_empty() && query.after.is_none() && page.next.is_none();
    let bookmark = if is_whole { app.live.bookmark_of(&hash, &page.fields).await } else { None };
    let fields = encode(page.fields).await;
    let list = FieldList {
        hash: hash.to_string(),
        fields,
        expires_at: expiry.map(|expiry| timestamp::from_milliseconds(expiry.at)),
        refresh_seconds: expiry.and_then(|expiry| expiry.refresh).map(|lifetime| lifetime / 1000),
        next: page.next,
        skipped: page.skipped,
        position: bookmark.unwrap_or(Bookmark::WITHOUT_BASE).to_string(),
    };
    // A selection may be too long for a header.
    let link = list
        .next
        .as_ref()
        .filter(|_| query.field.is_empty())
        .map(|next| format!("/v1/hashes/{}?limit={limit}&after={}", escape(hash.as_str()), escape(next)));
    let mut response = Json(list).into_response();
    if let Some(link) = link {
        add_link(&mut response, &link);
    }
    Ok(response)
}

/// The values as JSON. Other tasks of the thread get a turn between large ones.
async fn encode(page: Vec<(String, Bytes)>) -> BTreeMap<String, Box<RawValue>> {
    let (mut fields, mut bytes) = (BTreeMap::new(), 0);
    for (field, value) in page {
        let encoded = to_raw_value(&WatchedValue::new(&value)).expect("a text is always JSON");
        bytes += encoded.get().len();
        fields.insert(field, encoded);
        if bytes >= BYTES_BETWEEN_YIELDS {
            bytes = 0;
            yield_now().await;
        }
    }
    fields
}

/// The selected fields with names above `after`, or as many of them as fit into one response.
async fn selected_fields(
    app: &App,
    hash: &HashName,
    names: &BTreeSet<String>,
    after: &str,
) -> Result<FieldPage, Problem> {
    if names.len() > MAX_SELECTED {
        let detail = format!("the query selects more than {MAX_SELECTED} fields");
        return Err(Problem::new(Code::InvalidQuery, detail));
    }
    let names = names.iter().map(|text| parse_name("the field", text, FieldName::new));
    let mut names = names.collect::<Result<Vec<_>, _>>()?;
    names.retain(|name| name.as_str() > after);
    if names.is_empty() {
        return Ok(FieldPage::default());
    }
    let values = app.hashes.values(hash, &names).await?;
    let next = names[..values.len()].last().filter(|_| values.len() < names.len()).map(ToString::to_string);
    let found = names.into_iter().zip(values).filter_map(|(name, value)| Some((name.to_string(), value?)));
    Ok(FieldPage { fields: found.collect(), next, skipped: 0 })
}

/// The query of a patch.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PatchQuery {
    /// A field to remove by a merge patch. Can be repeated. For clients that can't send null; the body may then be `{}`.
    #[serde(default)]
    remove: Vec<String>,
}

/// The effect of a patch.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({"hash": "lamp", "created": 1, "replaced": 1, "removed": 0}))]
pub struct PatchAnswer {
    /// The hash's name.
    hash: String,
    /// The number of fields that are new.
    created: u32,
    /// The number of fields that were set and had a value before.
    replaced: u32,
    /// The number of fields that were removed.
    removed: u32,
}

/// Set and remove several fields
///
/// The body is a JSON merge patch (RFC 7396): a string sets a field, and `null` removes it. `remove` in the query removes
/// a field, too. A field may be named once. `application/merge-patch+json` means the same as `application/json`.
///
/// A body of type `application/json-patch+json` is a JSON patch (RFC 6902): operations, each of which meets the hash as
/// those before it have left it. If a `test` fails, the response is 412 with the present values of all fields that the
/// patch tests.
///
/// Either all changes are made, or none. Bytes that are not UTF-8 are written with `PUT`.
#[utoipa::path(
    patch, path = "/v1/hashes/{hash}", operation_id = "patchFields", tag = "Hashes",
    params(("hash" = String, Path, description = "The hash's name", example = "lamp"), PatchQuery,
        ("Idempotency-Key" = Option<String>, Header, max_length = 255,
            description = "Makes the request safe to repeat: the same key with the same patch changes nothing twice"),
        ("Prefer" = Option<String>, Header, description = "`return=minimal`: no body")),
    request_body(content = BTreeMap<String, Option<String>>, content_type = "application/json",
        description = "A string or null for each field. Another type is possible too, `application/json-patch+json`: the \
body is then a list of operations, such as `[{\"op\": \"test\", \"path\": \"/colour\", \"value\": \"green\"}]`.",
        example = json!({"colour": "green", "dimmed": null})),
    responses(
        (status = 200, description = "The changes are made", body = PatchAnswer,
            headers(("Idempotency-Replayed" = String,
                description = "`true` if an earlier request with this key has made the changes"))),
        (status = 204, description = "The changes are made; with `Prefer: return=minimal`"),
        (status = 409, description = "An operation needs a field that does not exist; or the hash would have too many \
fields; or the key in Redis has another type"),
        (status = 412, description = "A `test` fails; `present_fields` has the present values"),
        (status = 413, description = "The body or a value is too large, or the patch copies too much"),
        (status = 415, description = "The body is neither JSON nor a JSON patch"),
        (status = 422, description = "The idempotency key was used for another write"),
    )
)]
pub async fn patch_fields(
    caller: Caller,
    HashPath(hash): HashPath,
    QueryParams(query): QueryParams<PatchQuery>,
    State(app): State<App>,
    request: Request,
) -> Result<Response, Problem> {
    caller.require(Permission::Write, hash.as_str())?;
    let headers = WriteHeaders::from_headers(request.headers())?;
    let is_json_patch = has_media_type(request.headers(), JSON_PATCH)?;
    if is_json_patch && !query.remove.is_empty() {
        let detail = "a JSON patch has the fields to remove in its operations; take remove out of the query";
        return Err(Problem::new(Code::InvalidQuery, detail));
    }
    let body = read_json_body(request, &app, &caller).await?;
    let patch =
        if is_json_patch { Patch::from_json_patch(&body) } else { Patch::from_merge_patch(&body, &query.remove) }?;
    let limit = app.settings.requests.max_batch_items;
    if patch.items == 0 || patch.items > limit {
        let detail = format!("a patch must have 1 to {limit} fields or operations (--max-batch-items)");
        return Err(Problem::new(Code::InvalidBody, detail));
    }
    for value in patch.values() {
        check_value(&app, value)?;
    }
    if patch.writes() {
        require_memory(&app)?;
    }
    caller.spend(&app, patch.items, body.len()).await?;
    let (wants_body, write) = (headers.want_body(), HashWrite::Patch(patch.steps));
    let refused = async |outcome| match outcome {
        WriteOutcome::Absent(Some(field)) => {
            let detail = format!("the hash {hash:?} has no field {field:?}, which the patch needs");
            Problem::new(Code::FieldMissing, detail)
        }
        _ => test_failed(&app, &caller, &hash, &write).await,
    };
    let done = headers.write(&app, &caller, &hash, &write, refused).await?;
    let WriteEffect { created, replaced, removed, copied, .. } = done.effect;
    if !done.is_replayed {
        caller.owe(&app, copied as usize);
    }
    let answer = PatchAnswer { hash: hash.to_string(), created, replaced, removed };
    Ok(done.respond(StatusCode::OK, None, wants_body.then_some(Json(answer))))
}

/// The problem of a patch with a test that failed, with the present values of all fields that it tests.
async fn test_failed(app: &App, caller: &Caller, hash: &HashName, write: &HashWrite) -> Problem {
    let detail = format!("the hash {hash:?} has other values than the patch tests");
    let HashWrite::Patch(steps) = write else { return Problem::new(Code::PreconditionFailed, detail) };
    let tested: Vec<_> = tested_fields(steps).into_iter().collect();
    // A caller that may not read the hash must not see the values.
    if !caller.may(Permission::Read, hash.as_str()) {
        return Problem::new(Code::PreconditionFailed, detail);
    }
    let bytes = |values: &Vec<Option<Bytes>>| values.iter().flatten().map(Bytes::len).sum();
    match caller.read(app, app.hashes.values(hash, &tested), bytes).await {
        Ok(values) if fit_in_problem(values.iter().flatten()) => {
            let present =
                tested.iter().zip(&values).map(|(field, value)| (field.to_string(), current_value(value.as_ref())));
            Problem::failed_test(detail, present.collect())
        }
        Ok(_) => Problem::new(
            Code::PreconditionFailed,
            detail + "; they are too large for this response, read them by GET",
        ),
        // The refusal is certain all the same.
        Err(_) => Problem::new(Code::PreconditionFailed, detail),
    }
}

/// Delete a hash
///
/// The hash and all its fields are deleted together.
#[utoipa::path(
    delete, path = "/v1/hashes/{hash}", operation_id = "deleteHash", tag = "Hashes",
    params(("hash" = String, Path, description = "The hash's name", example = "lamp"),
        ("Idempotency-Key" = Option<String>, Header, max_length = 255,
            description = "Makes the request safe to repeat: the same key deletes nothing twice")),
    responses(
        (status = 204, description = "The hash is deleted", headers(("Idempotency-Replayed" = String,
            description = "`true` if an earlier request with this key has deleted it"))),
        (status = 404, description = "The hash does not exist"),
        (status = 409, description = "The key in Redis has another type"),
        (status = 422, description = "The idempotency key was used for another write"),
    )
)]
pub async fn delete_hash(
    caller: Caller,
    HashPath(hash): HashPath,
    State(app): State<App>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    caller.require(Permission::Write, hash.as_str())?;
    let headers = WriteHeaders::from_headers(&headers)?;
    let done = headers.write(&app, &caller, &hash, &HashWrite::Clear, async |_| hash_not_found(&hash)).await?;
    Ok(done.respond(StatusCode::NO_CONTENT, None, None::<()>))
}

fn hash_not_found(hash: &HashName) -> Problem {
    Problem::new(Code::HashNotFound, format!("the hash {hash:?} does not exist"))
}
