//! The OpenAPI documents in `openapi/` equal those that the code generates. `UPDATE_OPENAPI=1 cargo test openapi`
//! rewrites them.

use std::path::Path;

use reqwest::Method;
use roomcast::config::OpenApiVersion;
use roomcast::http::openapi::text;
use serde_json::{Value, json};

use crate::support::Gateway;

const VERSIONS: [OpenApiVersion; 3] = [OpenApiVersion::V30, OpenApiVersion::V31, OpenApiVersion::V32];

#[allow(clippy::disallowed_methods, reason = "a switch of the test, not of the gateway")]
fn assert_up_to_date(file: &str, version: OpenApiVersion) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi").join(file);
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(&path, text(version)).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap();
    assert!(
        stored == text(version),
        "{file} differs from the code; UPDATE_OPENAPI=1 cargo test openapi rewrites it, and tests/generators shows \
         whether the clients made from it still compile"
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
    assert_up_to_date("openapi-3.0.json", OpenApiVersion::V30);
    assert_up_to_date("openapi-3.2.json", OpenApiVersion::V32);
}

#[test]
fn only_the_newer_document_describes_the_items_of_streams() {
    assert_eq!(document(OpenApiVersion::V31)["openapi"], "3.1.0");
    assert_eq!(document(OpenApiVersion::V32)["openapi"], "3.2.0");
    assert!(!text(OpenApiVersion::V31).contains("itemSchema"));
    assert_eq!(text(OpenApiVersion::V32).matches("itemSchema").count(), 3);
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

/// Calls `visit` with every object in the document that is not part of an example.
fn visit_objects<'a>(value: &'a Value, visit: &mut impl FnMut(&'a serde_json::Map<String, Value>)) {
    match value {
        Value::Object(members) => {
            visit(members);
            members
                .iter()
                .filter(|(name, _)| *name != "example")
                .for_each(|(_, value)| visit_objects(value, visit));
        }
        Value::Array(items) => items.iter().for_each(|value| visit_objects(value, visit)),
        _ => {}
    }
}

#[test]
fn a_request_body_has_one_type_so_that_generated_clients_name_it() {
    for version in VERSIONS {
        let document = document(version);
        let bodies = operations(&document)
            .into_iter()
            .filter_map(|(name, operation)| Some((name, operation.get("requestBody")?)));
        let mut count = 0;
        for (name, body) in bodies {
            let types: Vec<_> = body["content"].as_object().unwrap().keys().collect();
            assert_eq!(types, ["application/json"], "{name}");
            count += 1;
        }
        assert!(count >= 5);
    }
}

#[test]
fn a_response_has_one_type_so_that_generated_clients_read_it() {
    for version in VERSIONS {
        let document = document(version);
        for (name, operation) in operations(&document) {
            for (status, response) in operation["responses"].as_object().unwrap() {
                let types = response.get("content").map_or(0, |content| content.as_object().unwrap().len());
                assert!(types <= 1, "{name} {status}");
            }
        }
    }
}

#[test]
fn routes_that_need_no_token_say_so() {
    for version in VERSIONS {
        let document = document(version);
        let open: Vec<_> = operations(&document)
            .into_iter()
            .filter(|(_, operation)| operation["security"] == json!([]))
            .map(|(name, _)| name)
            .collect();
        let expected = [
            "get /healthz",
            "get /livez",
            "get /openapi-3.0.json",
            "get /openapi-3.2.json",
            "get /openapi.json",
            "get /readyz",
        ];
        assert_eq!(open, expected);
        assert!(operations(&document).iter().all(|(_, operation)| operation["security"].is_array()));
    }
}

#[test]
fn every_name_key_and_tag_in_a_request_has_a_pattern_and_limits() {
    let document = document(OpenApiVersion::V31);
    let assert_limits = |place: &str, name: &str, schema: &Value| {
        let schema = schema.get("items").unwrap_or(schema);
        let length = match name {
            "room" | "rooms" | "hash" | "event" | "subscriber" | "except" => 128,
            "field" | "remove" => 256,
            "Idempotency-Key" | "idempotency_key" => 255,
            "If-Match" | "If-None-Match" => 1024,
            _ => return 0,
        };
        assert!(schema["pattern"].as_str().is_some_and(|pattern| pattern.starts_with('^')), "{place} {name}");
        assert_eq!((&schema["minLength"], &schema["maxLength"]), (&json!(1), &json!(length)), "{place} {name}");
        1
    };
    let mut count = 0;
    for (place, operation) in operations(&document) {
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            count += assert_limits(&place, parameter["name"].as_str().unwrap(), &parameter["schema"]);
        }
    }
    for body in ["Publish", "BatchItem"] {
        for (name, schema) in document["components"]["schemas"][body]["properties"].as_object().unwrap() {
            count += assert_limits(body, name, schema);
        }
    }
    assert!(count >= 25, "{count}");
}

#[test]
fn a_member_that_may_be_null_is_not_required_unless_it_is_a_plain_value() {
    // The generated reader of Java refuses null for a required object.
    let document = document(OpenApiVersion::V31);
    let mut count = 0;
    visit_objects(&document, &mut |schema| {
        for required in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
            let Some(member) = required.as_str().map(|name| &schema["properties"][name]) else { continue };
            assert!(member.get("oneOf").is_none(), "{required} in {schema:?}");
            count += 1;
        }
    });
    assert!(count > 50);
}

#[test]
fn no_operation_has_two_parameters_that_a_language_would_write_alike() {
    // A parameter that repeats another one, for clients that are not generated, is left out by `#[param(ignore)]`.
    let document = document(OpenApiVersion::V31);
    for (place, operation) in operations(&document) {
        let mut names = std::collections::BTreeSet::new();
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let name = parameter["name"].as_str().unwrap();
            let letters = name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase();
            assert!(names.insert(letters), "{place} has another parameter like {name}");
        }
    }
}

#[test]
fn no_value_belongs_to_two_enums_that_have_a_name() {
    // Generated Go has one namespace for them.
    let document = document(OpenApiVersion::V31);
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let mut seen = std::collections::BTreeMap::new();
    for (name, schema) in schemas {
        for value in schema.get("enum").and_then(Value::as_array).into_iter().flatten() {
            assert_eq!(seen.insert(value.as_str().unwrap(), name), None, "{value} of {name}");
        }
    }
    assert!(seen.len() > 30);
}

#[test]
fn the_codes_of_problems_are_those_on_their_page() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/errors.md")).unwrap();
    let mut described: Vec<_> = page
        .lines()
        .filter_map(|line| {
            let (code, rest) = line.strip_prefix("| `")?.split_once("` | ")?;
            rest.starts_with(|first: char| first.is_ascii_digit()).then_some(code)
        })
        .collect();
    described.sort_unstable();
    let document = document(OpenApiVersion::V31);
    let codes = document["components"]["schemas"]["ProblemCode"]["enum"].as_array().unwrap();
    let mut codes: Vec<_> = codes.iter().map(|code| code.as_str().unwrap()).collect();
    codes.sort_unstable();
    assert_eq!(codes, described);
}

#[test]
fn the_oldest_document_has_nothing_that_is_newer() {
    let document = document(OpenApiVersion::V30);
    assert_eq!(document["openapi"], "3.0.3");
    let mut nullable = 0;
    visit_objects(&document, &mut |object| {
        for newer in ["propertyNames", "const", "itemSchema", "identifier", "contentSchema", "examples"] {
            assert!(!object.contains_key(newer), "{newer} in {object:?}");
        }
        assert!(!object.get("type").is_some_and(|kind| kind.is_array() || kind == "null"), "{object:?}");
        assert!(!object.contains_key("$ref") || object.len() == 1, "{object:?}");
        if object.contains_key("nullable") {
            assert!(object.contains_key("type"), "{object:?}");
            nullable += 1;
        }
    });
    assert!(nullable > 5, "{nullable}");
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
    for version in VERSIONS {
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
    assert_eq!(gateway.get("/openapi-3.0.json").await.1, document(OpenApiVersion::V30));
    assert_eq!(gateway.get("/openapi-3.2.json").await.1, document(OpenApiVersion::V32));
}

/// The document knows every route, so that a new one is tried, too.
#[tokio::test]
async fn every_route_below_v1_refuses_a_parameter_that_the_document_does_not_have() {
    let gateway =
        Gateway::start(|settings| settings.access.cors_origin = vec!["https://app.example".parse().unwrap()]).await;
    let document = document(OpenApiVersion::V31);
    let mut count = 0;
    for (name, operation) in operations(&document) {
        let (method, path) = name.split_once(' ').unwrap();
        let path = path.replace(['{', '}'], "");
        let get = |method: Method, query: &str| gateway.request(method, &format!("{path}?{query}"));
        if !path.starts_with("/v1/") {
            // Monitors and balancers may add a parameter of their own.
            assert!(gateway.answer(get(Method::GET, "unknown=1&flag")).await.status().is_success(), "{name}");
            continue;
        }
        count += 1;
        let method: Method = method.to_uppercase().parse().unwrap();
        let (status, problem) = gateway.send(get(method.clone(), "unknown=1").body("{}")).await;
        assert_eq!((status.as_u16(), &problem["code"]), (400, &json!("invalid_query")), "{name}: {problem}");
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        let known = parameters.filter(|parameter| parameter["in"] == "query").map(|parameter| &parameter["name"]);
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.starts_with("there is no parameter \"unknown\" here"), "{name}: {detail}");
        for known in known {
            assert!(detail.contains(known.as_str().unwrap()), "{name}: {detail}");
        }
        if method == Method::GET {
            assert_eq!(gateway.answer(get(Method::HEAD, "unknown=1")).await.status(), 400, "{name}");
        }
        let preflight = get(Method::OPTIONS, "unknown=1").header("origin", "https://app.example");
        let preflight = gateway.answer(preflight.header("access-control-request-method", method.as_str())).await;
        assert_eq!(preflight.headers()["access-control-allow-origin"], "https://app.example", "{name}");
    }
    assert!(count >= 19, "{count}");
}
