//! Patterns of names, keys and tags in the document: what generators of clients and of requests can know about them.

use serde_json::{Value, json};

/// No ASCII character is in a name but letters, digits and `. _ ~ : @ + = -`. Which other characters are letters, many
/// dialects of regular expressions can't say.
const NAME: &str = r"^[^\x00-\x2a\x2c\x2f\x3b\x3c\x3e\x3f\x5b-\x5e\x60\x7b-\x7f]+$";
/// No control character is in the name of a field.
const FIELD_NAME: &str = r"^[^\x00-\x1f\x7f-\x9f]+$";

/// An idempotency key has visible ASCII characters only.
const KEY: &str = r"^[\x21-\x7e]+$";
/// A list of entity tags, or `*`. It may have up to 20 of them, which is not in the pattern.
const TAGS: &str = r#"^(\*|(W/)?"[^"]*"(, *(W/)?"[^"]*")*)$"#;
/// Most characters of such a list: the usual length of 20 tags.
const TAGS_LENGTH: usize = 1024;

/// Schemas of requests that have names, as members.
const BODIES: [&str; 2] = ["Publish", "BatchItem"];

/// The pattern and the most characters of what is called so in a request, if it has a pattern.
fn limits(name: &str) -> Option<(&'static str, usize)> {
    match name {
        "room" | "rooms" | "hash" | "event" | "subscriber" | "except" => Some((NAME, 128)),
        "field" | "remove" => Some((FIELD_NAME, 256)),
        "Idempotency-Key" | "idempotency_key" => Some((KEY, 255)),
        "If-Match" | "If-None-Match" => Some((TAGS, TAGS_LENGTH)),
        _ => None,
    }
}

/// Adds the pattern and the limits of its length to every name, key and tag in a request.
pub(super) fn add_patterns(document: &mut Value) {
    let items = document["paths"].as_object_mut().into_iter().flat_map(|paths| paths.values_mut());
    for operation in items.flat_map(|item| item.as_object_mut().into_iter().flat_map(|item| item.values_mut())) {
        for parameter in operation.get_mut("parameters").and_then(Value::as_array_mut).into_iter().flatten() {
            let name = parameter["name"].as_str().unwrap_or_default().to_owned();
            add_pattern(&name, &mut parameter["schema"]);
        }
    }
    for body in BODIES {
        let members = document["components"]["schemas"][body]["properties"].as_object_mut();
        members.into_iter().flatten().for_each(|(name, schema)| add_pattern(name, schema));
    }
    let patch = &mut document["paths"]["/v1/hashes/{hash}"]["patch"]["requestBody"]["content"]["application/json"];
    add_pattern("field", &mut patch["schema"]["propertyNames"]);
}

fn add_pattern(name: &str, schema: &mut Value) {
    let Some((pattern, length)) = limits(name) else { return };
    let name = if schema.get("items").is_some() { &mut schema["items"] } else { schema };
    name["pattern"] = pattern.into();
    name["minLength"] = json!(1);
    name["maxLength"] = json!(length);
}
