//! Conditions and what a client accepts: `If-Match`, `If-None-Match` and `Accept`.

use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode};
use serde_json::json;

use super::refused;
use crate::support::Gateway;

const FIELD: &str = "/v1/hashes/lamp/fields/colour";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
const BYTES: &str = "application/octet-stream";

/// Sets the field to `green`. Returns its entity tag.
async fn green(gateway: &Gateway) -> String {
    let answer = gateway.answer(gateway.request(Method::PUT, FIELD).body("green")).await;
    answer.headers()["etag"].to_str().unwrap().to_owned()
}

/// A header with these lines.
fn lines(name: &'static str, lines: &[&[u8]]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in lines {
        headers.append(name, reqwest::header::HeaderValue::from_bytes(line).unwrap());
    }
    headers
}

on_both_brokers! {
    async fn entity_tags_are_a_list_in_any_spelling(world) {
        let gateway = world.gateway().await;
        let tag = green(&gateway).await;
        let tag = tag.as_bytes();
        let weak = [b"W/", tag].concat();
        for given in [
            &[tag][..], &[b"\"other\"", tag], &[tag, b"\"other\""], &[&[b"\"a,b\", ", tag].concat()],
            &[&[b", ,", tag, b" ,,"].concat()], &[b"", tag], &[&[b"\"\xeb\",", tag].concat()], &[&weak],
            &[&[b"\t\"a\"\t,\t", tag].concat()], &[&[b"\"\",", tag].concat()], &[b"*"],
        ] {
            let put = gateway.request(Method::PUT, FIELD).headers(lines("if-match", given)).body("green");
            assert_eq!(gateway.send(put).await.0, 200, "{given:?}");
            let get = gateway.request(Method::GET, FIELD).headers(lines("if-none-match", given));
            assert_eq!(gateway.answer(get).await.status(), 304, "{given:?}");
            let get = gateway.request(Method::GET, FIELD).headers(lines("if-match", given));
            assert_eq!(gateway.answer(get).await.status(), 200, "{given:?}");
        }
        for given in [&[&b"\"other\""[..]][..], &[&[b"\"a,", &tag[1..]].concat()], &[b"\"a\"", b"\"b\""]] {
            let put = gateway.request(Method::PUT, FIELD).headers(lines("if-match", given)).body("red");
            refused(&gateway, put, 412, "precondition_failed").await;
        }
        for given in [
            &[&b""[..]][..], &[b","], &[b"other"], &[b"\"a\" \"b\""], &[b"\"a"], &[b"*, \"a\""], &[b"*", b"\"a\""],
            &[b"w/\"a\""], &[b"\"a\"x"], &[b"**"], &[&b"\"a\",".repeat(21)],
        ] {
            for name in ["if-match", "if-none-match"] {
                let get = gateway.request(Method::GET, FIELD).headers(lines(name, given));
                refused(&gateway, get, 400, "invalid_header").await;
            }
            let put = gateway.request(Method::PUT, FIELD).headers(lines("if-match", given)).body("red");
            refused(&gateway, put, 400, "invalid_header").await;
        }
        assert_eq!(gateway.get(FIELD).await.1["value"], "green");
    }

    async fn a_read_whose_condition_fails_is_answered_with_the_present_value(world) {
        let gateway = world.gateway().await;
        let tag = green(&gateway).await;
        let get = |tag: &str| gateway.request(Method::GET, FIELD).header("if-match", tag);
        let (status, problem) = gateway.send(get("\"other\"")).await;
        assert_eq!((status.as_u16(), &problem["present"]), (412, &json!({"value": "green"})));
        // If-Match comes first (RFC 9110, section 13.2.2).
        assert_eq!(gateway.send(get("\"other\"").header("if-none-match", &tag)).await.0, 412);
        assert_eq!(gateway.send(get(&tag).header("if-none-match", &tag)).await.0, 304);
        let missing = gateway.request(Method::GET, "/v1/hashes/lamp/fields/none").header("if-match", "*");
        assert_eq!(gateway.send(missing).await.0, 404);
        let head = gateway.request(Method::HEAD, FIELD).header("if-match", "\"other\"");
        assert_eq!(gateway.answer(head).await.status(), 412);
    }

    async fn writes_that_can_not_check_a_condition_refuse_it(world) {
        let gateway = world.gateway().await;
        for (method, path) in [
            (Method::POST, "/v1/rooms/lobby/events"), (Method::POST, "/v1/events"), (Method::DELETE, "/v1/rooms/lobby/events"),
            (Method::PATCH, "/v1/hashes/lamp"), (Method::DELETE, "/v1/hashes/lamp"),
            (Method::DELETE, "/v1/users/ann/streams"),
        ] {
            for name in ["if-match", "if-none-match"] {
                let write = gateway.request(method.clone(), path).header(name, "*").body("x");
                refused(&gateway, write, 400, "invalid_header").await;
            }
        }
        assert_eq!(gateway.get("/v1/rooms/lobby").await.1["retained"], 0);
    }

    async fn the_best_type_that_the_client_accepts_is_sent(world) {
        let gateway = world.gateway().await;
        green(&gateway).await;
        for (accept, expected) in [
            (&[][..], JSON),
            (&[""], JSON),
            (&["*/*"], JSON),
            (&["text/plain"], TEXT),
            (&["Text/Plain"], TEXT),
            (&["text/*"], TEXT),
            (&["application/octet-stream"], BYTES),
            (&["application/*"], JSON),
            (&["application/json;q=0.5, text/plain"], TEXT),
            (&["text/plain;q=0.5, application/json;q=0.8"], JSON),
            (&["text/plain;q=0.5", "application/json;q=0.8"], JSON),
            (&["text/plain; Q=0.2, */*; q=0.1"], TEXT),
            (&["application/json;q=0, */*"], TEXT),
            (&["*/*, application/json;q=0, text/*;q=0"], BYTES),
            (&["*/*;q=0.1, application/*;q=0"], TEXT),
            (&["text/plain;charset=utf-8"], TEXT),
            (&["text/plain, application/json"], TEXT),
            (&["text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"], JSON),
            (&["application/json;profile=\"a,b\";q=0.1, text/plain;q=0.2"], TEXT),
            // A weight that can't be read counts as 1, and further decimals do not count.
            (&["application/json;q=1.0000"], JSON),
            (&["application/json;q=abc, text/plain;q=0.9"], JSON),
            (&["text/plain;q=2, application/json"], TEXT),
            (&["text/plain;q=, application/json;q=0.9"], TEXT),
            (&["text/plain;q=-1"], TEXT),
            (&["application/json;q=0.33333, text/plain;q=0.66666"], TEXT),
            (&["*"], JSON),
            (&["text/plain;q=0.2, *;q=0.3"], JSON),
            (&["text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2"], JSON),
        ] {
            let get = gateway.request(Method::GET, FIELD).headers(lines("accept", &accept.iter().map(|line| line.as_bytes()).collect::<Vec<_>>()));
            let answer = gateway.answer(get).await;
            let kind = answer.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
            assert_eq!((answer.status(), kind.as_deref()), (StatusCode::OK, Some(expected)), "{accept:?}");
        }
        for accept in ["image/png", "application/json;q=0", "*/*;q=0", "text/html, */*;q=0.0", "*;q=0", "*/*;q=0.0000"] {
            let get = gateway.request(Method::GET, FIELD).header("accept", accept);
            assert!(refused(&gateway, get, 406, "not_acceptable").await.contains("application/octet-stream"));
        }
    }
}

#[tokio::test]
async fn a_conditional_write_above_the_limit_of_connections_is_refused_for_now() {
    let gateway = Gateway::start(|settings| settings.requests.max_connections = 2).await;
    let _streams = [gateway.room("full").await, gateway.room("full").await];
    let put = gateway.request(Method::PUT, FIELD).header("if-match", "*").body("green");
    refused(&gateway, put, 503, "too_many_connections").await;
}
