//! The OpenAPI documents in `openapi/` equal those that the code generates. `UPDATE_OPENAPI=1 cargo test openapi`
//! rewrites them.

use std::path::Path;

use roomcast::config::OpenApiVersion;
use roomcast::http::openapi::text;
use serde_json::Value;

use crate::support::Gateway;

#[allow(clippy::disallowed_methods, reason = "a switch of the test, not of the gateway")]
fn assert_up_to_date(file: &str, version: OpenApiVersion) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi").join(file);
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(&path, text(version)).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap();
    assert!(
        stored == text(version),
        "{file} differs from the code; UPDATE_OPENAPI=1 cargo test openapi rewrites it"
    );
}

fn document(version: OpenApiVersion) -> Value {
    serde_json::from_str(text(version)).unwrap()
}

/// Every operation, with its method and path.
fn operations(document: &Value) -> Vec<(String, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    let each = paths.iter().flat_map(|(path, item)| {
        item.as_object().unwrap().iter().map(move |(method, operation)| (format!("{method} {path}"), operation))
    });
    each.collect()
}

#[test]
fn the_stored_documents_are_up_to_date() {
    assert_up_to_date("openapi.json", OpenApiVersion::V31);
    assert_up_to_date("openapi-3.2.json", OpenApiVersion::V32);
}

#[test]
fn only_the_newer_document_describes_the_items_of_streams() {
    assert_eq!(document(OpenApiVersion::V31)["openapi"], "3.1.0");
    assert_eq!(document(OpenApiVersion::V32)["openapi"], "3.2.0");
    assert!(!text(OpenApiVersion::V31).contains("itemSchema"));
    assert_eq!(text(OpenApiVersion::V32).matches("itemSchema").count(), 2);
}

#[test]
fn every_operation_is_described_with_an_id_a_tag_and_its_failures() {
    let document = document(OpenApiVersion::V31);
    let mut ids = std::collections::BTreeSet::new();
    for (name, operation) in operations(&document) {
        let id = operation["operationId"].as_str().unwrap();
        assert!(ids.insert(id), "the id {id} occurs twice");
        assert!(
            ["get", "list", "publish", "stream", "set", "delete", "patch", "increment", "remove", "revoke"]
                .iter()
                .any(|verb| id.starts_with(verb)),
            "{id}"
        );
        for text in ["summary", "description"] {
            assert!(operation[text].as_str().is_some_and(|text| !text.is_empty()), "{name} has no {text}");
        }
        assert!(!operation["tags"].as_array().unwrap().is_empty(), "{name}");
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            assert!(parameter["description"].as_str().is_some_and(|text| !text.is_empty()), "{name} {parameter}");
        }
        let responses = operation["responses"].as_object().unwrap();
        for (status, response) in responses {
            assert!(response["description"].as_str().is_some_and(|text| !text.is_empty()), "{name} {status}");
            if status.as_str() >= "400" {
                let content = response["content"].as_object().unwrap();
                let is_report = matches!(id, "getReadiness" | "getHealth") && status == "503";
                let content_type = if is_report { "application/json" } else { "application/problem+json" };
                assert!(content.contains_key(content_type), "{name} {status}");
            }
        }
        for status in ["400", "403", "408", "500"] {
            assert!(responses.contains_key(status), "{name} lacks {status}");
        }
    }
    assert!(ids.len() >= 19, "{ids:?}");
}

#[test]
fn every_reference_has_a_target() {
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str));
                members.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    for version in [OpenApiVersion::V31, OpenApiVersion::V32] {
        let document = document(version);
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 50);
        for reference in found {
            assert!(document.pointer(reference.strip_prefix('#').unwrap()).is_some(), "{reference}");
        }
    }
}

#[tokio::test]
async fn the_documents_are_served() {
    let gateway = Gateway::start(|_| {}).await;
    assert_eq!(gateway.get("/openapi.json").await.1, document(OpenApiVersion::V31));
    assert_eq!(gateway.get("/openapi-3.2.json").await.1, document(OpenApiVersion::V32));
}
