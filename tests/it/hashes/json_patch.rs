//! `PATCH` with a JSON patch (RFC 6902) on one level.

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use super::put;
use crate::auth::{claims, close, token};
use crate::support::Gateway;

const HASH: &str = "/v1/hashes/lamp";

fn patch_request(gateway: &Gateway, operations: &Value) -> RequestBuilder {
    let request = gateway.request(Method::PATCH, HASH).header("content-type", "application/json-patch+json");
    request.body(operations.to_string())
}

/// Sends a patch. Returns the status and the body.
async fn patch(gateway: &Gateway, operations: &Value) -> (u16, Value) {
    let (status, body) = gateway.send(patch_request(gateway, operations)).await;
    (status.as_u16(), body)
}

/// The values of the hash by field.
async fn values(gateway: &Gateway) -> Value {
    let fields = gateway.get(HASH).await.1["fields"].as_object().unwrap().clone();
    fields.into_iter().map(|(field, value)| (field, value["value"].clone())).collect()
}

/// The answer to a patch.
fn counts(created: u32, replaced: u32, removed: u32) -> (u16, Value) {
    (200, json!({"hash": "lamp", "created": created, "replaced": replaced, "removed": removed}))
}

on_both_brokers! {
    async fn p9_the_operations_of_a_json_patch_meet_the_hash_as_those_before_left_it(world) {
        let gateway = world.gateway().await;
        let first = json!([
            {"op": "add", "path": "/a", "value": "1"}, {"op": "add", "path": "/b", "value": "2"},
            {"op": "test", "path": "/a", "value": "1"}, {"op": "copy", "from": "/a", "path": "/c"},
        ]);
        assert_eq!(patch(&gateway, &first).await, counts(3, 0, 0));
        assert_eq!(values(&gateway).await, json!({"a": "1", "b": "2", "c": "1"}));
        let second = json!([
            {"op": "test", "path": "/a", "value": "1"},
            {"op": "replace", "path": "/a", "value": "x"},
            {"op": "test", "path": "/a", "value": "x"},
            {"op": "move", "from": "/a", "path": "/d"},
            {"op": "move", "from": "/b", "path": "/b"},
            {"op": "remove", "path": "/c"},
            {"op": "add", "path": "/c", "value": "again"},
            {"op": "add", "path": "/gone", "value": "y"},
            {"op": "remove", "path": "/gone"},
        ]);
        assert_eq!(patch(&gateway, &second).await, counts(1, 1, 1));
        assert_eq!(values(&gateway).await, json!({"b": "2", "c": "again", "d": "x"}));
        // A move onto a field replaces it. The order of the members makes no difference, and those not needed are ignored.
        let third = r#"[{"path": "/d", "from": "/b", "value": 5, "op": "move", "x": null}, {"from": 1, "op": "test", "value": "2", "path": "/d"}]"#;
        let (status, problem) = patch(&gateway, &serde_json::from_str(third).unwrap()).await;
        assert_eq!((status, &problem["code"]), (400, &json!("invalid_body")));
        let third = json!([{"path": "/d", "from": "/b", "value": 5, "op": "move", "x": null}]);
        assert_eq!(patch(&gateway, &third).await, counts(0, 1, 1));
        assert_eq!(values(&gateway).await, json!({"c": "again", "d": "2"}));
        // The hash goes with its last field.
        let all = json!([{"op": "remove", "path": "/c"}, {"op": "remove", "path": "/d"}]);
        assert_eq!(patch(&gateway, &all).await, counts(0, 0, 2));
        assert_eq!(gateway.send(gateway.request(Method::DELETE, HASH)).await.0, 404);
    }

    async fn p9_a_patch_with_a_test_that_fails_changes_nothing_and_shows_the_present_values(world) {
        let gateway = world.gateway().await;
        for (field, value) in [("a", "1"), ("b", "2"), ("c", "3")] {
            put(&gateway, &format!("{HASH}/fields/{field}"), value).await;
        }
        let bytes = gateway.request(Method::PUT, "/v1/hashes/lamp/fields/bytes").header("content-type", "application/octet-stream");
        gateway.send(bytes.body(b"\xff".to_vec())).await;
        let operations = json!([
            {"op": "add", "path": "/new", "value": "x"}, {"op": "remove", "path": "/c"},
            {"op": "test", "path": "/b", "value": "2"}, {"op": "test", "path": "/a", "value": "one"},
            {"op": "test", "path": "/none", "value": ""}, {"op": "test", "path": "/bytes", "value": "?"},
        ]);
        let (status, problem) = patch(&gateway, &operations).await;
        assert_eq!((status, &problem["code"]), (412, &json!("precondition_failed")));
        let present = json!({"a": {"value": "1"}, "b": {"value": "2"}, "none": {}, "bytes": {"value_base64": "/w=="}});
        assert_eq!(problem["present_fields"], present);
        // A field that is absent has no value, not even an empty one.
        let (status, problem) = patch(&gateway, &json!([{"op": "test", "path": "/none", "value": ""}])).await;
        assert_eq!((status, &problem["present_fields"]), (412, &json!({"none": {}})));
        let unchanged = json!({"a": "1", "b": "2", "c": "3", "bytes": null});
        assert_eq!(values(&gateway).await, unchanged);
        // A patch of tests alone.
        assert_eq!(patch(&gateway, &json!([{"op": "test", "path": "/a", "value": "1"}])).await, counts(0, 0, 0));
        assert_eq!(values(&gateway).await, unchanged);
    }

    async fn p9_a_patch_that_needs_a_missing_field_changes_nothing(world) {
        let gateway = world.gateway().await;
        put(&gateway, "/v1/hashes/lamp/fields/a", "1").await;
        for operation in [
            json!({"op": "replace", "path": "/none", "value": "x"}), json!({"op": "remove", "path": "/none"}),
            json!({"op": "move", "from": "/none", "path": "/b"}), json!({"op": "copy", "from": "/none", "path": "/b"}),
            json!({"op": "move", "from": "/none", "path": "/none"}),
        ] {
            let operations = json!([{"op": "add", "path": "/b", "value": "x"}, operation]);
            let (status, problem) = patch(&gateway, &operations).await;
            assert_eq!((status, &problem["code"]), (409, &json!("field_missing")), "{operation}");
            assert!(problem["detail"].as_str().unwrap().contains("none"), "{problem}");
        }
        // Removed by an operation before.
        let twice = json!([{"op": "remove", "path": "/a"}, {"op": "remove", "path": "/a"}]);
        assert_eq!(patch(&gateway, &twice).await.0, 409);
        assert_eq!(values(&gateway).await, json!({"a": "1"}));
    }

    async fn p11_operations_that_can_not_be_read_are_refused(world) {
        let gateway = world.gateway().await;
        put(&gateway, "/v1/hashes/lamp/fields/a", "1").await;
        let long = "x".repeat(257);
        for operation in [
            json!({"op": "add", "path": "a", "value": "x"}), json!({"op": "add", "path": "", "value": "x"}),
            json!({"op": "add", "path": "/", "value": "x"}), json!({"op": "add", "path": "/a/b", "value": "x"}),
            json!({"op": "add", "path": "/a~", "value": "x"}), json!({"op": "add", "path": "/a~2", "value": "x"}),
            json!({"op": "add", "path": format!("/{long}"), "value": "x"}), json!({"op": "add", "path": "/\u{0}", "value": "x"}),
            json!({"op": "add", "path": "/a"}), json!({"op": "add", "path": "/a", "value": 1}),
            json!({"op": "add", "path": "/a", "value": null}), json!({"op": "test", "path": "/a", "value": {"b": 1}}),
            json!({"op": "test", "path": "/a", "value": null}), json!({"op": "replace", "path": "/a"}),
            json!({"op": "move", "path": "/a"}), json!({"op": "copy", "from": "b", "path": "/a"}),
            json!({"op": "set", "path": "/a", "value": "x"}), json!({"op": "Add", "path": "/a", "value": "x"}),
            json!({"path": "/a", "value": "x"}), json!({"op": "add", "value": "x"}), json!(["add", "/a", "x"]), json!("x"),
        ] {
            let (status, problem) = patch(&gateway, &json!([{"op": "add", "path": "/b", "value": "x"}, operation])).await;
            assert_eq!((status, &problem["code"]), (400, &json!("invalid_body")), "{operation}");
        }
        for (body, code) in [
            (json!([]), "invalid_body"), (json!({"a": "2"}), "invalid_body"),
            (json!(vec![json!({"op": "test", "path": "/a", "value": "1"}); 1001]), "invalid_body"),
        ] {
            let (status, problem) = patch(&gateway, &body).await;
            assert_eq!((status, &problem["code"]), (400, &json!(code)));
        }
        let in_query = gateway.request(Method::PATCH, "/v1/hashes/lamp?remove=a").header("content-type", "application/json-patch+json");
        let (status, problem) = gateway.send(in_query.body(r#"[{"op": "remove", "path": "/a"}]"#)).await;
        assert_eq!((status.as_u16(), &problem["code"]), (400, &json!("invalid_query")));
        let twice = gateway.request(Method::PATCH, HASH).header("content-type", "application/json-patch+json");
        let twice = twice.body(r#"[{"op": "add", "path": "/a", "op": "test", "value": "x"}]"#);
        assert_eq!(gateway.send(twice).await.0, 400);
        assert_eq!(values(&gateway).await, json!({"a": "1"}));
    }

    async fn any_field_name_has_a_json_pointer(world) {
        let gateway = world.gateway().await;
        let names = [("/x~1y", "x/y"), ("/a~0b", "a~b"), ("/~01", "~1"), ("/ ", " "), ("/*", "*"), ("/100%", "100%"), ("/ß", "ß"), ("/-", "-")];
        let operations = names.map(|(path, field)| json!({"op": "add", "path": path, "value": field}));
        assert_eq!(patch(&gateway, &json!(operations)).await, counts(8, 0, 0));
        let expected: Value = names.into_iter().map(|(_, field)| (field.to_owned(), json!(field))).collect();
        assert_eq!(values(&gateway).await, expected);
    }

    async fn p11_a_short_patch_does_not_make_long_values_of_one(world) {
        let gateway = world.gateway().await;
        put(&gateway, "/v1/hashes/lamp/fields/a", &"x".repeat(200 * 1024)).await;
        let copies = |count: usize| -> Value {
            (0..count).map(|n| json!({"op": "copy", "from": "/a", "path": format!("/c{n}")})).collect()
        };
        let (status, problem) = patch(&gateway, &copies(6)).await;
        assert_eq!((status, &problem["code"]), (413, &json!("body_too_large")));
        assert_eq!(gateway.get("/v1/hashes/lamp/fields/c0").await.0, 404);
        assert_eq!(patch(&gateway, &copies(5)).await, counts(5, 0, 0));
        // Values of the patch itself, too.
        let mut operations = vec![json!({"op": "add", "path": "/b", "value": "y".repeat(200 * 1024)})];
        operations.extend((0..6).map(|n| json!({"op": "copy", "from": "/b", "path": format!("/d{n}")})));
        assert_eq!(patch(&gateway, &json!(operations)).await.0, 413);
        assert_eq!(gateway.get("/v1/hashes/lamp/fields/b").await.0, 404);
    }

    async fn p10_present_values_are_shown_to_readers_only(world) {
        let gateway = world.gateway_with(close).await;
        let writer = token(&claims(&json!({"write": ["*"]})));
        let add = patch_request(&gateway, &json!([{"op": "add", "path": "/a", "value": "secret"}]));
        assert_eq!(gateway.send(add.bearer_auth(&writer)).await.0, 200);
        let test = patch_request(&gateway, &json!([{"op": "test", "path": "/a", "value": "guess"}]));
        let (status, problem) = gateway.send(test.bearer_auth(&writer)).await;
        assert_eq!((status.as_u16(), &problem["present_fields"]), (412, &Value::Null), "{problem}");
        let reader = token(&claims(&json!({"write": ["*"], "read": ["*"]})));
        let test = patch_request(&gateway, &json!([{"op": "test", "path": "/a", "value": "guess"}]));
        let (_, problem) = gateway.send(test.bearer_auth(&reader)).await;
        assert_eq!(problem["present_fields"], json!({"a": {"value": "secret"}}));
    }
}
