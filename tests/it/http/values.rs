//! Values of hashes that are not text, and fields that another client of Redis wrote.

use reqwest::Method;
use serde_json::json;

use super::refused;
use crate::support::{World, values_of};

const FIELD: &str = "/v1/hashes/lamp/fields/colour";

on_both_brokers! {
    async fn a_value_of_any_type_is_stored_as_its_bytes_and_read_safely(world) {
        let gateway = world.gateway().await;
        for (kind, bytes) in [
            ("image/png", &b"\x89PNG\r\n\x1a\n\x00"[..]),
            ("application/xml", b"<x/>"),
            ("image/svg+xml", b"<svg/>"),
            ("text/html; charset=utf-8", b"<script>1</script>"),
            ("application/geo+json", br#"{"type":"Point"}"#),
            ("multipart/form-data; boundary=x", b"--x--"),
            ("application/octet-stream", b"\xff\x00"),
            ("no type at all", b"x"),
        ] {
            let put = gateway.request(Method::PUT, FIELD).header("content-type", kind).body(bytes);
            let status = gateway.send(put).await.0;
            assert!(status.is_success(), "{kind}: {status}");
            let get = gateway.request(Method::GET, FIELD).header("accept", "application/octet-stream");
            let answer = gateway.answer(get).await;
            assert_eq!(answer.headers()["content-type"], "application/octet-stream");
            assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
            assert_eq!(answer.bytes().await.unwrap(), bytes, "{kind}");
        }
        // Everywhere else, the body has a meaning.
        let event = gateway.request(Method::POST, "/v1/rooms/lobby/events").header("content-type", "image/png").body("x");
        refused(&gateway, event, 415, "unsupported_media_type").await;
    }

    async fn bytes_that_are_not_utf_8_are_not_sent_as_text(world) {
        let gateway = world.gateway().await;
        gateway.send(gateway.request(Method::PUT, FIELD).body(&b"\xff\xfe"[..])).await;
        let get = |accept: &str| gateway.request(Method::GET, FIELD).header("accept", accept);
        for accept in ["text/plain", "text/*", "text/html, text/plain;q=0.5"] {
            let why = refused(&gateway, get(accept), 406, "not_acceptable").await;
            assert!(why.contains("application/octet-stream") && !why.contains("text/plain"), "{why}");
        }
        for (accept, expected) in [
            ("text/plain, application/octet-stream;q=0.5", "application/octet-stream"),
            ("text/plain, */*;q=0.1", "application/json"),
        ] {
            assert_eq!(gateway.answer(get(accept)).await.headers()["content-type"], expected, "{accept}");
        }
    }

    async fn bytes_that_a_list_shows_can_be_put_back(world) {
        let gateway = world.gateway().await;
        let bytes = b"\xff\x00\r\n raw";
        let put = gateway.request(Method::PUT, FIELD).header("content-type", "application/octet-stream");
        gateway.send(put.body(&bytes[..])).await;
        let list = gateway.get("/v1/hashes/lamp").await.1;
        let shown = &values_of(&list)["colour"];
        assert!(shown["value_base64"].is_string(), "{list}");
        let copy = "/v1/hashes/copy/fields/colour";
        assert_eq!(gateway.send(gateway.request(Method::PUT, copy).json(shown)).await.0, 201);
        let get = gateway.request(Method::GET, copy).header("accept", "application/octet-stream");
        assert_eq!(gateway.answer(get).await.bytes().await.unwrap(), &bytes[..]);
        for wrong in [json!({}), json!({"value": "a", "value_base64": "YQ=="}), json!({"value_base64": "?"}), json!({"value_base64": 1})] {
            refused(&gateway, gateway.request(Method::PUT, copy).json(&wrong), 400, "invalid_body").await;
        }
    }
}

#[tokio::test]
async fn fields_whose_names_no_request_can_have_are_counted_and_not_listed() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    let write = "for _, name in ipairs({'good', '\\255a', '\\254a', '', 'a\\nb', string.rep('x', 257), '.', '..'}) do \
                 redis.call('HSET', KEYS[1], name, 'v') end";
    world.redis.as_ref().unwrap().eval(write, &["roomcast:hash:{lamp}"], &[]);
    let list = gateway.get("/v1/hashes/lamp").await.1;
    assert_eq!((values_of(&list), &list["skipped"]), (json!({"good": {"value": "v"}}), &json!(7)));
    let selected = gateway.get("/v1/hashes/lamp?field=good").await.1;
    assert_eq!((values_of(&selected), &selected["skipped"]), (json!({"good": {"value": "v"}}), &json!(null)));
}
