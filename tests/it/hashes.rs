//! Shared hashes.

mod convergence;
mod expiry;
mod external;
mod json_patch;
mod linearizability;
mod names;
mod numbers;
mod preferences;
mod repeats;
mod watching;
mod writers;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Gateway, values_of};

async fn put(gateway: &Gateway, path: &str, value: &str) -> StatusCode {
    gateway.send(gateway.request(Method::PUT, path).json(&json!({"value": value}))).await.0
}

on_both_brokers! {
    async fn a_field_is_created_replaced_read_and_deleted(world) {
        let gateway = world.gateway().await;
        let path = "/v1/hashes/lamp/fields/colour";
        assert_eq!(put(&gateway, path, "green").await, 201);
        assert_eq!(put(&gateway, path, "red").await, 200);
        let (status, field) = gateway.get(path).await;
        assert_eq!((status.as_u16(), field), (200, json!({"hash": "lamp", "field": "colour", "value": "red"})));
        assert_eq!(gateway.send(gateway.request(Method::DELETE, path)).await.0, 204);
        let (status, problem) = gateway.send(gateway.request(Method::DELETE, path)).await;
        assert_eq!((status.as_u16(), &problem["code"]), (404, &json!("field_not_found")));
        assert_eq!(gateway.get(path).await.0, 404);
    }

    async fn raw_bytes_are_stored_and_returned_unchanged(world) {
        let gateway = world.gateway().await;
        let path = "/v1/hashes/raw/fields/bytes";
        let bytes = b"\xff\x00\r\n raw".to_vec();
        let request = gateway.request(Method::PUT, path).header("content-type", "application/octet-stream");
        let (status, field) = gateway.send(request.body(bytes.clone())).await;
        assert_eq!((status.as_u16(), &field["value_base64"]), (201, &json!("/wANCiByYXc=")));
        assert_eq!(field.get("value"), None);
        let request = gateway.request(Method::GET, path).header("accept", "application/octet-stream");
        let answer = gateway.answer(request).await;
        assert_eq!(answer.headers()["content-type"], "application/octet-stream");
        assert_eq!(answer.bytes().await.unwrap(), bytes);
        // The bodies that `curl -T` and `curl -d` send, and an empty one.
        for (body, expected) in [("a=b", "a=b"), ("", "")] {
            assert_eq!(gateway.send(gateway.request(Method::PUT, path).body(body)).await.0, 200);
            let request = gateway.request(Method::GET, path).header("accept", "text/plain");
            assert_eq!(gateway.answer(request).await.text().await.unwrap(), expected);
        }
    }

    async fn the_entity_tag_comes_from_the_value(world) {
        let gateway = world.gateway().await;
        let path = "/v1/hashes/tag/fields/f";
        let request = gateway.request(Method::PUT, path).body("one");
        let tag = gateway.answer(request).await.headers()["etag"].clone();
        let answer = gateway.answer(gateway.request(Method::GET, path)).await;
        assert_eq!(answer.headers()["etag"], tag);
        let request = gateway.request(Method::GET, path).header("if-none-match", &tag);
        assert_eq!(gateway.answer(request).await.status(), 304);
        put(&gateway, path, "two").await;
        let request = gateway.request(Method::GET, path).header("if-none-match", &tag);
        assert_eq!(gateway.answer(request).await.status(), 200);
        put(&gateway, path, "one").await;
        let request = gateway.request(Method::GET, path).header("if-none-match", &tag);
        assert_eq!(gateway.answer(request).await.status(), 304);
    }

    async fn p9_a_conditional_write_never_loses_an_update(world) {
        let gateway = world.gateway().await;
        let path = "/v1/hashes/cas/fields/f";
        let request = gateway.request(Method::PUT, path).header("if-none-match", "*").body("first");
        let tag = gateway.answer(request).await.headers()["etag"].clone();
        let request = gateway.request(Method::PUT, path).header("if-none-match", "*").body("second");
        let (status, problem) = gateway.send(request).await;
        assert_eq!((status.as_u16(), &problem["code"]), (412, &json!("precondition_failed")));
        assert_eq!(problem["present"], json!({"value": "first"}));
        let request = gateway.request(Method::PUT, path).header("if-match", &tag).body("second");
        assert_eq!(gateway.send(request).await.0, 200);
        let request = gateway.request(Method::PUT, path).header("if-match", &tag).body("third");
        let (status, problem) = gateway.send(request).await;
        assert_eq!((status.as_u16(), &problem["present"]), (412, &json!({"value": "second"})));
        let request = gateway.request(Method::DELETE, path).header("if-match", &tag);
        assert_eq!(gateway.send(request).await.0, 412);
        let request = gateway.request(Method::DELETE, path).header("if-match", "*");
        assert_eq!(gateway.send(request).await.0, 204);
        let request = gateway.request(Method::PUT, path).header("if-match", "*").body("none");
        let (status, problem) = gateway.send(request).await;
        assert_eq!((status.as_u16(), &problem["present"]), (412, &json!({})));
    }

    async fn all_fields_or_only_the_named_ones_are_listed(world) {
        let gateway = world.gateway().await;
        let (status, list) = gateway.get("/v1/hashes/empty").await;
        let expected = json!({"hash": "empty", "fields": {}, "expires_at": null, "refresh_seconds": null, "next": null,
            "position": "0-0!"});
        assert_eq!((status.as_u16(), list), (200, expected));
        for field in ["a", "b", "c"] {
            put(&gateway, &format!("/v1/hashes/h/fields/{field}"), field).await;
        }
        let (_, list) = gateway.get("/v1/hashes/h").await;
        assert_eq!(values_of(&list), json!({"a": {"value": "a"}, "b": {"value": "b"}, "c": {"value": "c"}}));
        let (_, list) = gateway.get("/v1/hashes/h?field=a&field=none&field=c").await;
        assert_eq!(values_of(&list), json!({"a": {"value": "a"}, "c": {"value": "c"}}));
    }

    async fn a_large_hash_is_listed_in_pages(world) {
        let gateway = world.gateway().await;
        for batch in 0..3 {
            let patch: serde_json::Map<_, _> =
                (0..1000).map(|n| (format!("f{}", batch * 1000 + n), json!("v"))).collect();
            assert_eq!(gateway.send(gateway.request(Method::PATCH, "/v1/hashes/large").json(&patch)).await.0, 200);
        }
        let (mut fields, mut after, mut pages) = (std::collections::BTreeSet::new(), String::new(), 0);
        loop {
            let (_, list) = gateway.get(&format!("/v1/hashes/large?limit=500{after}")).await;
            fields.extend(list["fields"].as_object().unwrap().keys().cloned());
            pages += 1;
            match list["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => break,
            }
        }
        assert_eq!(fields.len(), 3000);
        assert!(pages > 3, "{pages}");
    }

    async fn a_patch_sets_and_removes_at_once(world) {
        let gateway = world.gateway().await;
        put(&gateway, "/v1/hashes/p/fields/a", "1").await;
        put(&gateway, "/v1/hashes/p/fields/b", "1").await;
        let patch = gateway.request(Method::PATCH, "/v1/hashes/p").header("content-type", "application/merge-patch+json");
        let (status, done) = gateway.send(patch.body(r#"{"a":"2","b":null,"c":"3","none":null}"#)).await;
        let expected = json!({"hash": "p", "created": 1, "replaced": 1, "removed": 1});
        assert_eq!((status.as_u16(), done), (200, expected));
        let (_, list) = gateway.get("/v1/hashes/p").await;
        assert_eq!(values_of(&list), json!({"a": {"value": "2"}, "c": {"value": "3"}}));
        for wrong in [json!({}), json!({"a": 1}), json!({"a": {"b": "c"}}), json!(["a"]), json!({"a\u{0}": "x"})] {
            let request = gateway.request(Method::PATCH, "/v1/hashes/p").json(&wrong);
            assert_eq!(gateway.send(request).await.0, 400, "{wrong}");
        }
    }

    async fn a_patch_removes_the_fields_that_its_query_names(world) {
        let gateway = world.gateway().await;
        for field in ["a", "b", "c d"] {
            put(&gateway, &format!("/v1/hashes/q/fields/{field}"), "1").await;
        }
        let patch = |query: &str, body: &Value| gateway.request(Method::PATCH, &format!("/v1/hashes/q{query}")).json(body);
        let (status, done) = gateway.send(patch("?remove=b&remove=c+d&remove=none", &json!({"a": "2", "e": "3"}))).await;
        let expected = json!({"hash": "q", "created": 1, "replaced": 1, "removed": 2});
        assert_eq!((status.as_u16(), done), (200, expected));
        let (status, done) = gateway.send(patch("?remove=e", &json!({}))).await;
        assert_eq!((status.as_u16(), &done["removed"]), (200, &json!(1)));
        assert_eq!(values_of(&gateway.get("/v1/hashes/q").await.1), json!({"a": {"value": "2"}}));
        // A field twice, in the query or in both places, and names that no field has.
        for (query, body, code) in [
            ("?remove=a&remove=a", json!({}), "invalid_query"),
            ("?remove=a", json!({"a": "3"}), "invalid_query"),
            ("?remove=a", json!({"a": null}), "invalid_query"),
            ("?remove=%00", json!({}), "invalid_name"),
            ("", json!({}), "invalid_body"),
        ] {
            let (status, problem) = gateway.send(patch(query, &body)).await;
            assert_eq!((status.as_u16(), &problem["code"]), (400, &json!(code)), "{query} {body}");
        }
        let many: Vec<_> = (0..1001).map(|n| format!("remove=f{n}")).collect();
        assert_eq!(gateway.send(patch(&format!("?{}", many.join("&")), &json!({}))).await.0, 400);
        assert_eq!(values_of(&gateway.get("/v1/hashes/q").await.1), json!({"a": {"value": "2"}}));
    }

    async fn a_number_is_incremented(world) {
        let gateway = world.gateway().await;
        let path = "/v1/hashes/n/fields/count/increment";
        assert_eq!(gateway.post(path, &json!({"by": 5})).await.1["value"], "5");
        assert_eq!(gateway.post(path, &json!({"by": -7})).await.1["value"], "-2");
        put(&gateway, "/v1/hashes/n/fields/count", "9223372036854775806").await;
        assert_eq!(gateway.post(path, &json!({"by": 1})).await.1["value"], "9223372036854775807");
        let (status, problem) = gateway.post(path, &json!({"by": 1})).await;
        assert_eq!((status.as_u16(), &problem["code"]), (409, &json!("not_a_number")));
        for text in ["green", " 1", "01", "+1", ""] {
            put(&gateway, "/v1/hashes/n/fields/count", text).await;
            assert_eq!(gateway.post(path, &json!({"by": 1})).await.0, 409, "{text:?}");
        }
        for wrong in [json!({"by": "1"}), json!({"by": null}), json!({}), json!({"by": 1, "x": 1}), json!([1])] {
            assert_eq!(gateway.post(path, &wrong).await.0, 400, "{wrong}");
        }
    }

    async fn a_hash_is_deleted_whole(world) {
        let gateway = world.gateway().await;
        put(&gateway, "/v1/hashes/gone/fields/a", "1").await;
        assert_eq!(gateway.send(gateway.request(Method::DELETE, "/v1/hashes/gone")).await.0, 204);
        let (status, problem) = gateway.send(gateway.request(Method::DELETE, "/v1/hashes/gone")).await;
        assert_eq!((status.as_u16(), &problem["code"]), (404, &json!("hash_not_found")));
    }

    async fn any_field_name_can_be_addressed(world) {
        let gateway = world.gateway().await;
        for (path, field) in [("a%20b", "a b"), ("x%2Fy", "x/y"), ("%7Bz%7D", "{z}"), ("100%25", "100%"), ("ß", "ß")] {
            let path = format!("/v1/hashes/names/fields/{path}");
            assert_eq!(put(&gateway, &path, "v").await, 201);
            assert_eq!(gateway.get(&path).await.1["field"], Value::from(field));
        }
    }
}
