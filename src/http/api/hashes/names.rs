//! The list of hashes.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::auth::Permission;
use crate::broker::NamesQuery;
use crate::http::App;
use crate::http::caller::Caller;
use crate::http::extract::QueryParams;
use crate::http::page::{add_link, escape, page_limit};
use crate::http::problem::Problem;
use crate::names::{HashName, MAX_NAME_BYTES};

const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;
/// Bytes of names that are compared with the caller's patterns for a page, once for each pattern.
const MAX_COMPARED_BYTES: usize = 1024 * 1024;
/// What a key that is looked at counts for the caller's limits, in bytes.
const BYTES_OF_A_KEY: usize = 64;

/// The query of a list of hashes.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListHashesQuery {
    /// Only hashes whose names begin with this.
    prefix: Option<String>,
    /// The start of the next page: `next` of the page before.
    after: Option<String>,
    /// The approximate maximum number of hashes.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<usize>,
}

/// Hashes.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({"hashes": [{"hash": "lamp"}], "next": null}))]
pub struct HashList {
    /// The hashes of the page, sorted by name.
    hashes: Vec<HashSummary>,
    /// The start of the next page. Null on the last page.
    #[schema(required = true)]
    next: Option<String>,
}

/// A hash.
#[derive(Serialize, ToSchema)]
pub struct HashSummary {
    /// The hash's name.
    hash: String,
}

/// List the hashes
///
/// The list has the hashes that the caller may read and whose names begin with `prefix`. A page may have few hashes, or
/// none, if many keys lie between them: only the last one has no `next`. Each page is sorted. On Redis the pages are not,
/// and a hash may be on two of them. A hash that exists during the whole listing is on some page; if hashes that the caller
/// may not read are deleted meanwhile, the embedded broker may leave some out. The keys that were looked at count for the
/// rate limits, about 1,000 as one request.
#[utoipa::path(
    get, path = "/v1/hashes", operation_id = "listHashes", tag = "Hashes",
    params(ListHashesQuery),
    responses((status = 200, description = "Hashes", body = HashList,
        headers(("Link" = String, description = "The next page, if there is one")))),
)]
pub async fn list_hashes(
    caller: Caller,
    QueryParams(query): QueryParams<ListHashesQuery>,
    State(app): State<App>,
) -> Result<Response, Problem> {
    caller.require_some(Permission::Read)?;
    let limit = page_limit(query.limit, DEFAULT_LIMIT, MAX_LIMIT)?;
    let prefix = query.prefix.unwrap_or_default();
    let patterns = caller.identity().grants.pattern_count(Permission::Read).max(1);
    let compared_bytes = AtomicUsize::new(0);
    // A caller must not learn that a hash exists which it may not read.
    let is_visible = |hash: &HashName| {
        compared_bytes.fetch_add(hash.as_str().len() * patterns, Ordering::Relaxed);
        caller.may(Permission::Read, hash.as_str())
    };
    let names = app.hashes.names(NamesQuery {
        prefix: &prefix,
        from: query.after.as_deref(),
        limit,
        most_compared: (MAX_COMPARED_BYTES / (MAX_NAME_BYTES * patterns)).max(1),
        is_visible: &is_visible,
    });
    let cost = |looked_at: usize| looked_at * BYTES_OF_A_KEY + compared_bytes.load(Ordering::Relaxed);
    let page = caller.read(&app, names, |page| cost(page.looked_at)).await?;
    let hashes = page.names.iter().map(|hash| HashSummary { hash: hash.to_string() }).collect();
    let link = page.next.as_ref().map(|next| {
        let prefix = if prefix.is_empty() { String::new() } else { format!("&prefix={}", escape(&prefix)) };
        format!("/v1/hashes?limit={limit}&after={}{prefix}", escape(next))
    });
    let mut response = Json(HashList { hashes, next: page.next }).into_response();
    if let Some(link) = link {
        add_link(&mut response, &link);
    }
    Ok(response)
}
