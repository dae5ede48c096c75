//! The OpenAPI document, in two versions made from one: generators refuse `itemSchema` in 3.1, and some refuse 3.2.

use std::sync::LazyLock;

use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use utoipa::OpenApi;

use super::problem::{Document, MEDIA_TYPE};
use super::streams::ServerEvent;
use crate::config::OpenApiVersion;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Roomcast",
        description = "HTTP gateway for realtime rooms and shared values: publish with POST, read as Server-Sent Events.",
        license(name = "Apache-2.0 OR MIT", identifier = "Apache-2.0 OR MIT")
    ),
    servers((url = "/", description = "This gateway")),
    components(schemas(Document, ServerEvent)),
    tags(
        (name = "Rooms", description = "Publish events to rooms, and read their logs"),
        (name = "Streams", description = "Rooms as Server-Sent Events"),
        (name = "Hashes", description = "Shared values, by hash and field"),
        (name = "Presence", description = "Who is where, and who may not be"),
        (name = "Health", description = "For monitors, balancers and containers"),
        (name = "Document", description = "This document"),
    )
)]
struct Base;

/// The document without its routes.
pub(super) fn base() -> utoipa::openapi::OpenApi {
    Base::openapi()
}

/// Failures that any route can meet.
const COMMON: [(&str, &str); 4] = [
    ("400", "The request can't be read: a name, the query, a header or the body"),
    ("403", "The token does not grant it; or, without keys, not from this machine, or from a page of another site"),
    ("408", "The request was not complete in time"),
    ("500", "The gateway failed"),
];
/// Failures of routes that need the broker.
const OF_BROKER: [(&str, &str); 2] = [
    ("409", "The key on Redis holds something else; or, of a stream, the subscriber is another caller's"),
    ("503", "The broker is away or ill, or the replica is full; try again"),
];
/// The failure of routes on which requests are counted.
const OF_LIMIT: (&str, &str) = ("429", "Too many requests of the caller, or in all; try again");
/// The failure of routes that take a token.
const OF_TOKEN: (&str, &str) = ("401", "It takes a token, or the token is not taken");
/// The failure of routes that take a body.
const OF_BODY: (&str, &str) = ("413", "The body is too large");
/// What any other route can still meet.
const OF_REPLICA: (&str, &str) = ("503", "The replica has all the connections it takes; try again");

static V31: LazyLock<String> = LazyLock::new(|| document(OpenApiVersion::V31));
static V32: LazyLock<String> = LazyLock::new(|| document(OpenApiVersion::V32));

/// The document's text.
pub fn text(version: OpenApiVersion) -> &'static str {
    match version {
        OpenApiVersion::V31 => &V31,
        OpenApiVersion::V32 => &V32,
    }
}

fn document(version: OpenApiVersion) -> String {
    let document = super::routes().into_openapi();
    let mut document = serde_json::to_value(document).expect("a document is JSON");
    document["openapi"] = match version {
        OpenApiVersion::V31 => "3.1.0".into(),
        OpenApiVersion::V32 => "3.2.0".into(),
    };
    document["components"]["securitySchemes"] = token_places();
    let paths = document["paths"].as_object_mut().expect("a document has paths");
    for (path, item) in paths {
        for operation in item.as_object_mut().into_iter().flat_map(|item| item.values_mut()) {
            let has_body = operation.get("requestBody").is_some();
            add_common_failures(path, has_body, &mut operation["responses"]);
            add_headers(&mut operation["responses"]);
            if takes_token(path) {
                operation["security"] = json!([{ "bearer": [] }, { "cookie": [] }, { "query": [] }, {}]);
            }
            plain_parameters(operation);
            if version == OpenApiVersion::V31 {
                strip_items(&mut operation["responses"]);
            }
        }
    }
    let mut text = serde_json::to_string_pretty(&document).expect("a document is JSON");
    text.push('\n');
    text
}

/// Whether a route is about rooms or hashes.
fn takes_token(path: &str) -> bool {
    path.starts_with("/v1/") || path == "/metrics"
}

/// The places in which a token may stand. An open gateway takes none.
fn token_places() -> Value {
    json!({
        "bearer": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT" },
        "cookie": { "type": "apiKey", "in": "cookie", "name": "__Host-roomcast",
            "description": "Its name is a setting; writes need an Origin that the gateway allows" },
        "query": { "type": "apiKey", "in": "query", "name": "access_token",
            "description": "For EventSource, which can't set headers" },
    })
}

fn add_common_failures(path: &str, has_body: bool, responses: &mut Value) {
    let of_broker = if path.starts_with("/v1/") { &OF_BROKER[..] } else { &[OF_REPLICA] };
    let (of_body, of_token) = (has_body.then_some(OF_BODY), takes_token(path).then_some([OF_TOKEN, OF_LIMIT]));
    let common =
        COMMON.into_iter().chain(of_token.into_iter().flatten()).chain(of_broker.iter().copied()).chain(of_body);
    for (status, description) in common {
        if responses.get(status).is_none() {
            responses[status] = json!({
                "description": description,
                "content": { MEDIA_TYPE: { "schema": { "$ref": "#/components/schemas/Problem" } } },
            });
        }
    }
}

/// Headers that every answer has, and those of a kind.
fn add_headers(responses: &mut Value) {
    let header = |description: &str| json!({ "description": description, "schema": { "type": "string" } });
    for (status, response) in responses.as_object_mut().into_iter().flatten() {
        response["headers"]["x-request-id"] = header("Names the request in the gateway's log");
        if status == "503" || status == "429" {
            response["headers"]["Retry-After"] = header("Seconds after which to try again");
        }
        if status == "401" {
            response["headers"]["WWW-Authenticate"] =
                header("That a token is wanted, and what is wrong with the one that came");
        }
    }
}

/// A header that may be left out is not one that may be null.
fn plain_parameters(operation: &mut Value) {
    for parameter in operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten() {
        let kind = &mut parameter["schema"]["type"];
        if let Some(first) = kind.as_array().and_then(|kinds| kinds.first()).cloned() {
            *kind = first;
        }
    }
}

fn strip_items(responses: &mut Value) {
    for response in responses.as_object_mut().into_iter().flat_map(|responses| responses.values_mut()) {
        let content = response.get_mut("content").and_then(Value::as_object_mut);
        for media in content.into_iter().flat_map(|content| content.values_mut()) {
            if let Some(media) = media.as_object_mut() {
                media.remove("itemSchema");
            }
        }
    }
}

fn serve(version: OpenApiVersion) -> Response {
    ([(axum::http::header::CONTENT_TYPE, "application/json")], text(version)).into_response()
}

/// Get the OpenAPI document
///
/// Version 3.1, which most generators read.
#[utoipa::path(
    get, path = "/openapi.json", operation_id = "getOpenapi", tag = "Document",
    responses((status = 200, description = "The document", body = serde_json::Value))
)]
pub async fn get_openapi() -> Response {
    serve(OpenApiVersion::V31)
}

/// Get the OpenAPI document in version 3.2
///
/// It also describes the items of streams.
#[utoipa::path(
    get, path = "/openapi-3.2.json", operation_id = "getOpenapi32", tag = "Document",
    responses((status = 200, description = "The document", body = serde_json::Value))
)]
pub async fn get_openapi_3_2() -> Response {
    serve(OpenApiVersion::V32)
}
