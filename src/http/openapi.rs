//! The OpenAPI document in three versions, all made from one value. Generators refuse `itemSchema` in 3.1, some refuse
//! 3.2, and a few read only 3.0.

mod names;
#[allow(dead_code, reason = "its types only describe what `delivery` writes")]
mod pages;
#[allow(dead_code, reason = "its types only describe what `delivery` writes")]
mod streams;
mod v30;

use std::sync::LazyLock;

use axum::extract::State;
use axum::http::Method;
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use utoipa::OpenApi;

pub(in crate::http) use self::pages::EventListSchema;
use self::streams::GapReasonSchema;
use self::streams::{
    HashCleared, HashFieldsDeleted, HashFieldsSet, HashSnapshot, PresenceChange, RoomEvent, ServerEvent,
    StreamEndSchema, StreamGapSchema, StreamOpenSchema, StreamPositionSchema,
};
use super::problem::{MEDIA_TYPE, Problem, ProblemDocument};
use super::{App, caller};
use crate::config::OpenApiVersion;
use crate::rate_limit::BYTES_OF_A_REQUEST;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Roomcast",
        description = "HTTP gateway for realtime rooms and shared values: publish with POST, receive as Server-Sent \
Events.",
        contact(name = "The operators of this gateway"),
        license(name = "Apache-2.0 OR MIT", identifier = "Apache-2.0 OR MIT")
    ),
    servers((url = "/", description = "This gateway")),
    components(schemas(
        ProblemDocument, ServerEvent, StreamOpenSchema, StreamGapSchema, StreamPositionSchema, StreamEndSchema, PresenceChange, RoomEvent,
        HashSnapshot, HashFieldsSet, HashFieldsDeleted, HashCleared
    )),
    tags(
        (name = "Rooms", description = "Publish events to rooms, and read the logs of rooms"),
        (name = "Streams", description = "Receive the events of rooms and the changes of hashes as Server-Sent Events"),
        (name = "Hashes", description = "Read and write shared values, by hash and field"),
        (name = "Presence", description = "List members and replicas; remove subscribers, users and tokens"),
        (name = "Health", description = "For monitors, load balancers and containers"),
        (name = "Document", description = "This document"),
    )
)]
struct Base;

/// The document without its routes.
pub(super) fn base() -> utoipa::openapi::OpenApi {
    Base::openapi()
}

/// A status, and its description.
type Failure = (&'static str, &'static str);

/// Failures of every route.
const COMMON: [Failure; 4] = [
    ("400", "The request is invalid: a name, the query, a header or the body"),
    (
        "403",
        "The token lacks a permission; or, on a gateway without keys, the request is not from this machine, or it is \
         from a page of another site",
    ),
    ("408", "The request did not arrive in time"),
    ("500", "The gateway failed"),
];
/// Failures of routes that use the broker.
const BROKER: [Failure; 2] = [
    ("409", "The key in Redis has another type; or, for a stream, the subscriber name belongs to another caller"),
    (
        "503",
        "The broker is unavailable or degraded, or the replica has reached its limit of connections; try again",
    ),
];
/// The failure of routes that count requests.
const RATE_LIMIT: Failure = ("429", "Too many requests by the caller, or by all callers together; try again");
/// The failure of routes that need a token.
const TOKEN: Failure = ("401", "A token is required, or the token is not valid");
/// The failure of routes with a body.
const BODY: Failure = ("413", "The body is too large");
/// The failure of routes that do not use the broker.
const REPLICA: Failure = ("503", "The replica has reached its limit of connections; try again");

static V30: LazyLock<String> = LazyLock::new(|| document(OpenApiVersion::V30));
static V31: LazyLock<String> = LazyLock::new(|| document(OpenApiVersion::V31));
static V32: LazyLock<String> = LazyLock::new(|| document(OpenApiVersion::V32));

/// The text of the document.
pub fn text(version: OpenApiVersion) -> &'static str {
    match version {
        OpenApiVersion::V30 => &V30,
        OpenApiVersion::V31 => &V31,
        OpenApiVersion::V32 => &V32,
    }
}

fn document(version: OpenApiVersion) -> String {
    let document = super::routes().into_openapi();
    let mut document = serde_json::to_value(document).expect("a document is JSON");
    document["openapi"] = if version == OpenApiVersion::V32 { "3.2.0".into() } else { "3.1.0".into() };
    document["components"]["securitySchemes"] = security_schemes();
    let paths = document["paths"].as_object_mut().expect("a document has paths");
    for (path, item) in paths {
        for operation in item.as_object_mut().into_iter().flat_map(|item| item.values_mut()) {
            let has_body = operation.get("requestBody").is_some();
            add_common_failures(path, has_body, &mut operation["responses"]);
            add_problem_documents(&mut operation["responses"]);
            add_headers(&mut operation["responses"]);
            operation["security"] = if needs_token(path) {
                json!([{ "bearer": [] }, { "cookie": [] }, { "query": [] }, {}])
            } else {
                json!([])
            };
            remove_null_types(operation);
        }
    }
    streams::describe(&mut document, version);
    names::add_patterns(&mut document);
    if version == OpenApiVersion::V30 {
        v30::downgrade(&mut document);
    }
    let mut text = serde_json::to_string_pretty(&document).expect("a document is JSON");
    text.push('\n');
    text
}

/// Whether the document has an operation below `/v1/` and no parameters in its query.
pub(super) fn has_no_query(method: &Method, path: &str) -> bool {
    static PATHS: LazyLock<Value> = LazyLock::new(|| {
        let mut document: Value = serde_json::from_str(text(OpenApiVersion::V31)).expect("a document is JSON");
        document["paths"].take()
    });
    let method = if method == Method::HEAD { &Method::GET } else { method };
    let operation = &PATHS[path][method.as_str().to_ascii_lowercase()];
    let mut parameters = operation["parameters"].as_array().into_iter().flatten();
    path.starts_with("/v1/") && operation.is_object() && !parameters.any(|parameter| parameter["in"] == "query")
}

/// Whether a route needs a token if the gateway has keys.
fn needs_token(path: &str) -> bool {
    path.starts_with("/v1/") || path == "/metrics"
}

/// The ways to send a token. A gateway without keys needs none.
fn security_schemes() -> Value {
    json!({
        "bearer": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT" },
        "cookie": { "type": "apiKey", "in": "cookie", "name": "__Host-roomcast",
            "description": "The cookie's name is a setting. Writes with it need an Origin that the gateway allows." },
        "query": { "type": "apiKey", "in": "query", "name": "access_token",
            "description": "For EventSource, which can't set headers." },
    })
}

fn add_common_failures(path: &str, has_body: bool, responses: &mut Value) {
    let broker = if path.starts_with("/v1/") { &BROKER[..] } else { &[REPLICA] };
    let (body, token) = (has_body.then_some(BODY), needs_token(path).then_some([TOKEN, RATE_LIMIT]));
    let failures = COMMON.into_iter().chain(token.into_iter().flatten()).chain(broker.iter().copied()).chain(body);
    for (status, description) in failures {
        if responses.get(status).is_none() {
            responses[status] = json!({ "description": description });
        }
    }
}

/// Gives a problem document to every failure that has no content of its own.
fn add_problem_documents(responses: &mut Value) {
    for (status, response) in responses.as_object_mut().into_iter().flatten() {
        if status.as_str() >= "400" && response.get("content").is_none() {
            response["content"] = json!({ MEDIA_TYPE: { "schema": { "$ref": "#/components/schemas/Problem" } } });
        }
    }
}

/// Adds the headers of every response, and those of some statuses.
fn add_headers(responses: &mut Value) {
    let header = |description: &str| json!({ "description": description, "schema": { "type": "string" } });
    for (status, response) in responses.as_object_mut().into_iter().flatten() {
        response["headers"]["x-request-id"] = header("Identifies the request in the gateway's log");
        if status == "503" || status == "429" {
            response["headers"]["Retry-After"] = header("Seconds after which to try again");
        }
        if status == "401" {
            response["headers"]["WWW-Authenticate"] =
                header("Says that a token is required, and what is wrong with the token of the request");
        }
    }
}

/// Makes a parameter that is optional, and therefore nullable for utoipa, a plain one: a parameter is missing, never
/// null.
fn remove_null_types(operation: &mut Value) {
    for parameter in operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten() {
        let kind = &mut parameter["schema"]["type"];
        if let Some(first) = kind.as_array().and_then(|kinds| kinds.first()).cloned() {
            *kind = first;
        }
    }
}

/// Serves a document. It needs no token, and counts for the limits of callers without one.
async fn serve(version: OpenApiVersion, parts: &Parts, app: &App) -> Result<Response, Problem> {
    let text = text(version);
    caller::count_without_token(parts, app, 1 + (text.len() / BYTES_OF_A_REQUEST) as u64).await?;
    Ok(([(CONTENT_TYPE, "application/json")], text).into_response())
}

/// Get the OpenAPI document
///
/// Version 3.1, which most generators read.
#[utoipa::path(
    get, path = "/openapi.json", operation_id = "getOpenapi", tag = "Document",
    responses((status = 200, description = "The document", body = serde_json::Value))
)]
pub async fn get_openapi(parts: Parts, State(app): State<App>) -> Result<Response, Problem> {
    serve(OpenApiVersion::V31, &parts, &app).await
}

/// Get the OpenAPI document in version 3.2
///
/// This version also describes the items of streams.
#[utoipa::path(
    get, path = "/openapi-3.2.json", operation_id = "getOpenapi32", tag = "Document",
    responses((status = 200, description = "The document", body = serde_json::Value))
)]
pub async fn get_openapi_3_2(parts: Parts, State(app): State<App>) -> Result<Response, Problem> {
    serve(OpenApiVersion::V32, &parts, &app).await
}

/// Get the OpenAPI document in version 3.0
///
/// For generators that read no other version.
#[utoipa::path(
    get, path = "/openapi-3.0.json", operation_id = "getOpenapi30", tag = "Document",
    responses((status = 200, description = "The document", body = serde_json::Value))
)]
pub async fn get_openapi_3_0(parts: Parts, State(app): State<App>) -> Result<Response, Problem> {
    serve(OpenApiVersion::V30, &parts, &app).await
}
