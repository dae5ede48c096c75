//! The document in OpenAPI 3.0, for generators that read no other version.

use serde_json::{Map, Value, json};

use crate::http::problem::MEDIA_TYPE;

/// Makes a 3.0 document of a 3.1 document.
pub(super) fn downgrade(document: &mut Value) {
    document["openapi"] = "3.0.3".into();
    // Only 3.1 has the identifier of a licence.
    document["info"]["license"] =
        json!({ "name": document["info"]["license"]["name"], "url": "https://spdx.org/licenses/Apache-2.0.html" });
    let items = document["paths"].as_object_mut().into_iter().flat_map(|paths| paths.values_mut());
    for operation in items.flat_map(|item| item.as_object_mut().into_iter().flat_map(|item| item.values_mut())) {
        unify_responses(&mut operation["responses"]);
    }
    rewrite(document);
}

/// Leaves an operation one type of answers that are successes, and one of failures. Some generators of typed languages
/// support no more.
fn unify_responses(responses: &mut Value) {
    let Some(responses) = responses.as_object_mut() else { return };
    if responses.contains_key("200")
        && let Some(empty) = responses.remove("204")
    {
        let description = |response: &Value| response["description"].as_str().unwrap_or_default().to_owned();
        let both = format!("{}. Or 204: {}", description(&responses["200"]), description(&empty));
        responses["200"]["description"] = both.into();
    }
    for (_, response) in responses.iter_mut().filter(|(status, _)| status.as_str() >= "400") {
        response["content"] = json!({ MEDIA_TYPE: { "schema": { "$ref": "#/components/schemas/Problem" } } });
    }
}

/// Rewrites every schema below this value.
fn rewrite(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(rewrite),
        Value::Object(members) => {
            rewrite_schema(members);
            // An example is not a schema, whatever its members are called.
            members.iter_mut().filter(|(name, _)| *name != "example").for_each(|(_, value)| rewrite(value));
        }
        _ => {}
    }
}

/// Rewrites what 3.0 says in another way: null as a type, the type of the names of an object's members, and a reference
/// with a description of its own. Leaves members alone that are not those of a schema.
fn rewrite_schema(schema: &mut Map<String, Value>) {
    schema.remove("propertyNames");
    if let Some(kinds) = schema.get("type").and_then(Value::as_array) {
        let kind = kinds.iter().find(|kind| *kind != "null").cloned().expect("a schema has a type besides null");
        schema.insert("type".into(), kind);
        schema.insert("nullable".into(), true.into());
    }
    let is_null = |choice: &Value| choice["type"] == "null";
    if let Some(choices) =
        schema.get_mut("oneOf").and_then(Value::as_array_mut).filter(|all| all.iter().any(is_null))
    {
        choices.retain(|choice| !is_null(choice));
        let mut choices = std::mem::take(choices);
        schema.remove("oneOf");
        // `nullable` needs a type beside it. All that is null or refers to a schema is an object here.
        schema.insert("type".into(), "object".into());
        schema.insert("nullable".into(), true.into());
        if let [choice] = choices.as_mut_slice()
            && let Some(description) = choice.as_object_mut().and_then(|choice| choice.remove("description"))
        {
            schema.insert("description".into(), description);
        }
        schema.insert(if choices.len() == 1 { "allOf" } else { "oneOf" }.into(), choices.into());
    }
    if schema.len() > 1
        && let Some(reference) = schema.remove("$ref")
    {
        schema.insert("allOf".into(), json!([{ "$ref": reference }]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_becomes_nullable_and_a_reference_keeps_its_description() {
        for (newer, older) in [
            (json!({"type": ["string", "null"]}), json!({"type": "string", "nullable": true})),
            (
                json!({"oneOf": [{"$ref": "#/a", "description": "An a."}, {"type": "null"}]}),
                json!({"allOf": [{"$ref": "#/a"}], "type": "object", "nullable": true, "description": "An a."}),
            ),
            (
                json!({"oneOf": [{"type": "null"}, {"$ref": "#/a"}, {"$ref": "#/b"}]}),
                json!({"oneOf": [{"$ref": "#/a"}, {"$ref": "#/b"}], "type": "object", "nullable": true}),
            ),
            (
                json!({"$ref": "#/a", "description": "An a."}),
                json!({"allOf": [{"$ref": "#/a"}], "description": "An a."}),
            ),
            (json!({"$ref": "#/a"}), json!({"$ref": "#/a"})),
            (
                json!({"additionalProperties": {"type": ["string", "null"]}, "propertyNames": {"type": "string"}}),
                json!({"additionalProperties": {"type": "string", "nullable": true}}),
            ),
            (json!({"example": {"type": ["x", "null"]}}), json!({"example": {"type": ["x", "null"]}})),
        ] {
            let mut schema = newer.clone();
            rewrite(&mut schema);
            assert_eq!(schema, older, "{newer}");
        }
    }
}
