//! A hash: listing its fields, changing several of them together, deleting it. Single fields are in [`fields`].

mod accept;
mod conditions;
pub mod fields;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use tokio::task::yield_now;
use utoipa::{IntoParams, ToSchema};

use self::values::{HashValue, check_value};
use crate::auth::Permission;
use crate::broker::{BrokerError, Fault, FaultKind, FieldPage, MemoryUse};
use crate::http::App;
use crate::http::body::read_json_body;
use crate::http::caller::Caller;
use crate::http::extract::{HashPath, QueryParams, parse_json, parse_name};
use crate::http::page::{add_link, escape, page_limit};
use crate::http::problem::{Code, Problem};
use crate::names::{FieldName, HashName};

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
#[schema(example = json!({"hash": "lamp", "fields": {"colour": {"value": "green"}}, "next": null}))]
pub struct FieldList {
    /// The hash's name.
    hash: String,
    /// The values, by the names of their fields.
    #[schema(value_type = BTreeMap<String, HashValue>)]
    fields: BTreeMap<String, Box<RawValue>>,
    /// The start of the next page. Null on the last page.
    #[schema(required = true)]
    next: Option<String>,
    /// The number of fields left out of this page, because no request can have their names: another client of Redis wrote
    /// them. Missing if there are none.
    #[serde(skip_serializing_if = "is_zero")]
    #[schema(required = false)]
    skipped: usize,
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
    let page = caller.read(&app, page, FieldPage::bytes).await?;
    let fields = encode(page.fields).await;
    let list = FieldList { hash: hash.to_string(), fields, next: page.next, skipped: page.skipped };
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
        let encoded = to_raw_value(&HashValue::from_bytes(&value)).expect("a text is always JSON");
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

/// The changes of a patch. A field may be there once: parsers differ in which of two values they take.
struct Patch(BTreeMap<FieldName, Option<Bytes>>);

impl<'de> Deserialize<'de> for Patch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PatchVisitor;
        impl<'de> Visitor<'de> for PatchVisitor {
            type Value = Patch;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings and nulls")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Patch, A::Error> {
                let mut changes = BTreeMap::new();
                while let Some((field, value)) = members.next_entry::<FieldName, Option<String>>()? {
                    if changes.contains_key(&field) {
                        return Err(A::Error::custom(format!("it has the field {field:?} twice")));
                    }
                    changes.insert(field, value.map(Bytes::from));
                }
                Ok(Patch(changes))
            }
        }
        deserializer.deserialize_map(PatchVisitor)
    }
}

/// The query of a patch.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PatchQuery {
    /// A field to remove. Can be repeated. For clients that can't send null; the body may then be `{}`.
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
    created: u64,
    /// The number of fields that were set and had a value before.
    replaced: u64,
    /// The number of fields that were removed.
    removed: u64,
}

/// Set and remove several fields
///
/// The body is a JSON merge patch (RFC 7396): a string sets a field, and `null` removes it. `remove` in the query removes
/// a field, too. Either all changes are made, or none. A field may be named once. `application/merge-patch+json` means
/// the same as `application/json`. Bytes that are not UTF-8 are written with `PUT`.
#[utoipa::path(
    patch, path = "/v1/hashes/{hash}", operation_id = "patchFields", tag = "Hashes",
    params(("hash" = String, Path, description = "The hash's name", example = "lamp"), PatchQuery),
    request_body(content = BTreeMap<String, Option<String>>, content_type = "application/json",
        description = "A string or null for each field", example = json!({"colour": "green", "dimmed": null})),
    responses(
        (status = 200, description = "The changes are made", body = PatchAnswer),
        (status = 409, description = "The hash would have too many fields; or the key in Redis has another type"),
        (status = 413, description = "The body or a value is too large"),
        (status = 415, description = "The body is not JSON"),
    )
)]
pub async fn patch_fields(
    caller: Caller,
    HashPath(hash): HashPath,
    QueryParams(query): QueryParams<PatchQuery>,
    State(app): State<App>,
    request: Request,
) -> Result<Json<PatchAnswer>, Problem> {
    caller.require(Permission::Write, hash.as_str())?;
    let body = read_json_body(request, &app, &caller).await?;
    let Patch(mut changes) = parse_json(&body)?;
    for text in &query.remove {
        let field = parse_name("the field", text, FieldName::new)?;
        if changes.insert(field, None).is_some() {
            return Err(Problem::new(Code::InvalidQuery, format!("the patch has the field {text:?} twice")));
        }
    }
    let limit = app.settings.requests.max_batch_items;
    if changes.is_empty() || changes.len() > limit {
        let detail = format!("a patch must have 1 to {limit} fields (--max-batch-items)");
        return Err(Problem::new(Code::InvalidBody, detail));
    }
    for value in changes.values().flatten() {
        check_value(&app, value)?;
    }
    if changes.values().any(Option::is_some) {
        require_memory(&app)?;
    }
    caller.spend(&app, changes.len(), body.len()).await?;
    let done = app.hashes.patch(&hash, &changes).await?;
    Ok(Json(PatchAnswer {
        hash: hash.to_string(),
        created: done.created,
        replaced: done.replaced,
        removed: done.removed,
    }))
}

/// Refuses values while the broker is nearly full: the last part of its memory is kept for events.
fn require_memory(app: &App) -> Result<(), Problem> {
    if app.log.health().memory.is_some_and(MemoryUse::is_nearly_full) {
        let detail = "the broker's memory is nearly full, and takes no more values; delete fields or hashes";
        return Err(BrokerError::Unavailable(Fault::new(FaultKind::OutOfMemory, detail)).into());
    }
    Ok(())
}

/// Delete a hash
///
/// The hash and all its fields are deleted together.
#[utoipa::path(
    delete, path = "/v1/hashes/{hash}", operation_id = "deleteHash", tag = "Hashes",
    params(("hash" = String, Path, description = "The hash's name", example = "lamp")),
    responses(
        (status = 204, description = "The hash is deleted"),
        (status = 404, description = "The hash does not exist"),
        (status = 409, description = "The key in Redis has another type"),
    )
)]
pub async fn delete_hash(
    caller: Caller,
    HashPath(hash): HashPath,
    State(app): State<App>,
) -> Result<StatusCode, Problem> {
    caller.require(Permission::Write, hash.as_str())?;
    if app.hashes.delete(&hash).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Problem::new(Code::HashNotFound, format!("the hash {hash:?} does not exist")))
    }
}
