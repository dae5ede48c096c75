//! Bodies: compressed ones, too large ones, and those of JSON.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use reqwest::{Method, StatusCode};
use roomcast::config::PresenceInfo;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{document, refused, send_raw};
use crate::auth::close;
use crate::support::{Gateway, eventually, within};

const MIB: usize = 1024 * 1024;
const FIELD: &str = "/v1/hashes/lamp/fields/colour";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

on_both_brokers! {
    async fn a_body_in_gzip_is_the_body_that_it_decodes_to(world) {
        let gateway = world.gateway().await;
        let mut stream = gateway.room("lobby").await;
        let gzipped = |method: Method, path: &str, body: &[u8]| {
            gateway.request(method, path).header("content-encoding", "gzip").body(gzip(body))
        };
        assert_eq!(gateway.send(gzipped(Method::POST, "/v1/rooms/lobby/events", b"text")).await.0, 201);
        assert_eq!(stream.data().await, "text");
        let as_json = |request: reqwest::RequestBuilder| gateway.send(request.header("content-type", "application/json"));
        let event = gzipped(Method::POST, "/v1/rooms/lobby/events", br#"{"data":[1]}"#);
        assert_eq!(as_json(event).await.0, 201);
        assert_eq!(stream.data().await, "[1]");
        let batch = gzipped(Method::POST, "/v1/events", br#"{"events":[{"room":"lobby","data":2}]}"#);
        assert_eq!(as_json(batch).await.0, 200);
        assert_eq!(stream.data().await, "2");
        let value = "green ".repeat(10_000);
        assert_eq!(gateway.send(gzipped(Method::PUT, FIELD, value.as_bytes())).await.0, 201);
        assert_eq!(gateway.get(FIELD).await.1["value"], value);
        assert_eq!(as_json(gzipped(Method::PATCH, "/v1/hashes/lamp", br#"{"n":"1"}"#)).await.0, 200);
        let sum = as_json(gzipped(Method::POST, "/v1/hashes/lamp/fields/n/increment", br#"{"by":2}"#)).await.1;
        assert_eq!(sum["value"], "3");
        // Two members are one body (RFC 1952), and an encoding has other spellings.
        let members = [gzip(b"one "), gzip(b"two")].concat();
        for (coding, body) in [("GZIP", members.clone()), ("x-gzip", members), ("identity", b"one two".to_vec())] {
            let put = gateway.request(Method::PUT, FIELD).header("content-encoding", coding).body(body);
            assert_eq!(gateway.send(put).await.1["value"], "one two", "{coding}");
        }
    }

    async fn p11_a_body_in_gzip_is_refused_if_it_is_broken_or_decodes_to_too_much(world) {
        let gateway = world.gateway_with(|settings| settings.requests.max_body_bytes = 100_000).await;
        let put = |body: Vec<u8>| gateway.request(Method::PUT, FIELD).header("content-encoding", "gzip").body(body);
        let whole = gzip(b"green");
        let damaged = whole.iter().enumerate().map(|(at, byte)| if at == whole.len() - 6 { byte ^ 1 } else { *byte });
        for broken in [
            b"green".to_vec(), Vec::new(), whole[..whole.len() - 1].to_vec(), damaged.collect(),
            [&whole[..], b"rest"].concat(),
        ] {
            let why = refused(&gateway, put(broken.clone()), 400, "invalid_body").await;
            assert!(why.contains("gzip"), "{why}: {broken:?}");
        }
        let bomb = gzip(&vec![0; 80 * MIB]);
        assert!(bomb.len() < 100_000);
        refused(&gateway, put(bomb), 413, "body_too_large").await;
        assert_eq!(gateway.get(FIELD).await.0, StatusCode::NOT_FOUND);
    }

    async fn an_encoding_that_is_not_known_is_refused_with_those_that_are(world) {
        let gateway = world.gateway().await;
        for coding in ["br", "deflate", "zstd", "gzip, gzip", "gzip, br", "x"] {
            let put = gateway.request(Method::PUT, FIELD).header("content-encoding", coding).body("green");
            let answer = gateway.answer(put).await;
            assert_eq!((answer.status().as_u16(), &answer.headers()["accept-encoding"]), (415, &"gzip".parse().unwrap()));
            let put = gateway.request(Method::PUT, FIELD).header("content-encoding", coding).body("green");
            assert!(refused(&gateway, put, 415, "unsupported_encoding").await.contains("gzip"));
        }
        assert_eq!(gateway.get(FIELD).await.0, StatusCode::NOT_FOUND);
    }

    async fn p7_bodies_in_gzip_take_their_decoded_bytes_of_the_budget_of_bodies(world) {
        let gateway = world.gateway_with(|settings| settings.requests.max_total_body_bytes = 4 * MIB).await;
        let body = gzip(&vec![b'x'; MIB]);
        let mut unfinished = Vec::new();
        for _ in 0..10 {
            let mut socket = TcpStream::connect(gateway.address()).await.unwrap();
            let head = format!("PUT {FIELD} HTTP/1.1\r\nhost: localhost\r\ncontent-encoding: gzip\r\ncontent-length: {}\r\n\r\n", body.len());
            socket.write_all(&[head.as_bytes(), &body[..body.len() - 1]].concat()).await.unwrap();
            unfinished.push(socket);
        }
        let put = || gateway.request(Method::PUT, FIELD).body("x".repeat(200_000));
        let problem = eventually("the budget is taken", async || {
            let (status, problem) = gateway.send(put()).await;
            (status == StatusCode::SERVICE_UNAVAILABLE).then_some(problem)
        }).await;
        assert_eq!(problem["code"], "too_many_bodies");
        drop(unfinished);
        eventually("the bytes are free again", async || gateway.send(put()).await.0.is_success().then_some(())).await;
    }

    async fn json_may_begin_with_a_byte_order_mark(world) {
        let gateway = world.gateway().await;
        let mut stream = gateway.room("lobby").await;
        let send = |method, path, body: &str| {
            let request = gateway.request(method, path).header("content-type", "application/json");
            gateway.send(request.body(format!("\u{feff}{body}")))
        };
        assert_eq!(send(Method::POST, "/v1/rooms/lobby/events", r#"{"data":1}"#).await.0, 201);
        assert_eq!(send(Method::POST, "/v1/events", r#"{"events":[{"room":"lobby","data":2}]}"#).await.0, 200);
        assert_eq!((stream.data().await, stream.data().await), ("1".into(), "2".into()));
        assert_eq!(send(Method::PUT, FIELD, r#"{"value":"7"}"#).await.0, 201);
        assert_eq!(send(Method::PATCH, "/v1/hashes/lamp", r#"{"a":"b"}"#).await.0, 200);
        assert_eq!(send(Method::POST, &format!("{FIELD}/increment"), r#"{"by":1}"#).await.1["value"], "8");
        // A text has its mark.
        gateway.publish("lobby", "\u{feff}text").await;
        assert_eq!(stream.data().await, "\u{feff}text");
    }

    async fn text_that_is_no_unicode_is_refused_in_events_and_in_values(world) {
        let gateway = world.gateway_with(|settings| settings.presence.info = PresenceInfo::Query).await;
        let mut stream = gateway.room("lobby").await;
        for text in [r"\ud800", r"\udc00", r"\ud800\ud800", r"\ud800x", r"\udc00\ud800", r"\\\ud800"] {
            for (method, path, body) in [
                (Method::POST, "/v1/rooms/lobby/events", format!(r#"{{"data":"{text}"}}"#)),
                (Method::POST, "/v1/rooms/lobby/events", format!(r#"{{"data":[{{"a{text}":1}}]}}"#)),
                (Method::POST, "/v1/events", format!(r#"{{"events":[{{"room":"lobby","data":["{text}"]}}]}}"#)),
                (Method::PUT, FIELD, format!(r#"{{"value":"{text}"}}"#)),
                (Method::PATCH, "/v1/hashes/lamp", format!(r#"{{"a":"{text}"}}"#)),
                (Method::PATCH, "/v1/hashes/lamp", format!(r#"{{"a{text}":"b"}}"#)),
                (Method::POST, "/v1/rooms/lobby/events", format!(r#"{{"event":"{text}","data":1}}"#)),
                (Method::POST, "/v1/events", format!(r#"{{"events":[{{"room":"{text}","data":1}}]}}"#)),
            ] {
                let request = gateway.request(method, path).header("content-type", "application/json").body(body);
                let why = refused(&gateway, request, 400, "invalid_body").await;
                assert!(why.contains("a lone surrogate, such as \\ud800"), "{path} {text}: {why}");
            }
            let info = format!("/v1/rooms/lobby/stream?info=%22{}%22", text.replace('\\', "%5C"));
            let why = refused(&gateway, gateway.request(Method::GET, &info), 400, "invalid_query").await;
            assert!(why.contains("a lone surrogate, such as \\ud800"), "{text}: {why}");
        }
        for text in [r#""\ud83d\ude00""#, r#""\\ud800""#, r#""\uD83D\uDE00 \u00e9""#] {
            let body = format!(r#"{{"data":{text}}}"#);
            let request = gateway.request(Method::POST, "/v1/rooms/lobby/events").header("content-type", "application/json");
            assert_eq!(gateway.send(request.body(body)).await.0, 201);
            assert_eq!(stream.data().await, text);
        }
    }

    async fn a_body_in_another_charset_than_utf_8_is_refused_and_stores_nothing(world) {
        let gateway = world.gateway().await;
        let mut stream = gateway.room("lobby").await;
        let (event, json) = ("/v1/rooms/lobby/events", r#"{"data":1}"#);
        let send = |method: Method, path: &str, kind: &str, body: &str| {
            gateway.request(method, path).header("content-type", kind).body(body.to_owned())
        };
        for charset in ["utf-16", "UTF-16LE", "iso-8859-1", "\"windows-1252\"", "x"] {
            for (method, path, kind, body) in [
                (Method::POST, event, "text/plain", "h\0i\0"),
                (Method::POST, event, "application/x-www-form-urlencoded", "hi"),
                (Method::POST, event, "application/json", json),
                (Method::POST, "/v1/events", "application/json", r#"{"events":[{"room":"lobby","data":1}]}"#),
                (Method::PUT, FIELD, "application/json", r#"{"value":"green"}"#),
                (Method::PATCH, "/v1/hashes/lamp", "application/merge-patch+json", r#"{"a":"b"}"#),
                (Method::POST, "/v1/hashes/lamp/fields/n/increment", "application/json", r#"{"by":1}"#),
            ] {
                let request = send(method, path, &format!("{kind}; v=1; Charset={charset}"), body);
                let why = refused(&gateway, request, 415, "unsupported_media_type").await;
                assert!(why.contains("UTF-8"), "{path}: {why}");
            }
        }
        assert_eq!(gateway.get("/v1/hashes/lamp").await.1["fields"], json!({}));
        for charset in ["utf-8", "UTF8", "\"Utf-8\"", " us-ascii ", "", "\"\""] {
            for (kind, body, expected) in [("text/plain", "hi", "hi"), ("application/json", json, "1")] {
                let publish = send(Method::POST, event, &format!("{kind};charset={charset}"), body);
                assert_eq!(gateway.send(publish).await.0, 201, "{kind} {charset}");
                assert_eq!(stream.data().await, expected);
            }
        }
        // A value is its bytes, in any charset.
        gateway.send(send(Method::PUT, FIELD, "text/plain; charset=utf-16", "h\0i\0")).await;
        assert_eq!(gateway.get(FIELD).await.1["value"], "h\0i\0");
    }

    async fn null_counts_as_left_out_for_every_optional_member(world) {
        let gateway = world.gateway().await;
        let mut stream = gateway.room("lobby").await;
        let event = json!({"event": null, "data": 1, "except": null});
        assert_eq!(gateway.post("/v1/rooms/lobby/events", &event).await.0, 201);
        assert_eq!(stream.data().await, "1");
        let batch = json!({"events": [
            {"room": "lobby", "rooms": null, "event": null, "data": 2, "except": null, "idempotency_key": null},
            {"room": null, "rooms": ["lobby"], "data": null},
        ]});
        assert_eq!(gateway.post("/v1/events", &batch).await.0, 200);
        assert_eq!((stream.data().await, stream.data().await), ("2".into(), "null".into()));
        for value in [json!({"value": "green", "value_base64": null}), json!({"value": null, "value_base64": "Z3JlZW4="})] {
            let put = gateway.request(Method::PUT, FIELD).json(&value);
            assert_eq!(gateway.send(put).await.1["value"], "green");
        }
        // A member that is required is missing.
        refused(&gateway, gateway.request(Method::PUT, FIELD).json(&json!({"value": null})), 400, "invalid_body").await;
    }

    async fn a_patch_that_names_a_field_twice_is_refused(world) {
        let gateway = world.gateway().await;
        for body in [r#"{"a":"1","b":"2","a":"3"}"#, r#"{"a":"1","a":null}"#, r#"{"a":"1","\u0061":"1"}"#] {
            let request = gateway.request(Method::PATCH, "/v1/hashes/lamp").header("content-type", "application/json");
            let why = refused(&gateway, request.body(body), 400, "invalid_body").await;
            assert!(why.contains("\"a\" twice"), "{why}");
        }
        assert_eq!(gateway.get("/v1/hashes/lamp").await.1["fields"], json!({}));
    }
}

/// A request whose body has this length, to be followed by the body.
fn head(method: &str, path: &str, more: &str, length: usize) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n{more}content-length: {length}\r\n\r\n")
}

#[tokio::test]
async fn a_client_that_sends_a_whole_refused_body_before_it_reads_gets_the_refusal() {
    let gateway = Gateway::start(close).await;
    let user = crate::auth::token(&crate::auth::claims(&crate::auth::all()));
    let user = format!("authorization: Bearer {user}\r\n");
    let body = vec![b'x'; 10 * MIB];
    let chunked = [format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
    let with_length = |more: &str| [head("PUT", FIELD, more, body.len()).as_bytes(), &body].concat();
    let te = format!("PUT {FIELD} HTTP/1.1\r\nhost: localhost\r\n{user}transfer-encoding: chunked\r\n\r\n");
    for (request, status, code) in [
        (with_length(&user), 413, "body_too_large"),
        ([te.as_bytes(), &chunked].concat(), 413, "body_too_large"),
        (with_length(""), 401, "token_missing"),
        (with_length(&format!("{user}content-encoding: br\r\n")), 415, "unsupported_encoding"),
    ] {
        let answer = send_raw(&gateway, request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.contains("connection: close\r\n"), "{answer}");
        assert_eq!(document(&answer)["code"], code);
    }
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused_by_its_length_before_it_is_sent() {
    let gateway = Gateway::start(|_| {}).await;
    for more in ["", "expect: 100-continue\r\n"] {
        let answer = send_raw(&gateway, head("PUT", FIELD, more, MIB + 1)).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    }
    let mut socket = TcpStream::connect(gateway.address()).await.unwrap();
    socket.write_all(head("PUT", FIELD, "expect: 100-continue\r\n", 5).as_bytes()).await.unwrap();
    let mut answer = vec![0; 25];
    within("the gateway asks for the body", socket.read_exact(&mut answer)).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 100 Continue\r\n\r\n");
}

#[tokio::test]
async fn a_refused_request_with_a_small_body_keeps_its_connection() {
    let gateway = Gateway::start(close).await;
    let mut socket = TcpStream::connect(gateway.address()).await.unwrap();
    for _ in 0..3 {
        socket.write_all(&[head("PUT", FIELD, "", 5).as_bytes(), b"green"].concat()).await.unwrap();
        let mut answer = Vec::new();
        while !String::from_utf8_lossy(&answer).ends_with('}') {
            let read = within("an answer", socket.read_buf(&mut answer)).await.unwrap();
            assert!(read > 0, "the connection is open");
        }
        assert!(answer.starts_with(b"HTTP/1.1 401 "));
    }
}

/// Reads one response with a body of JSON.
async fn response(socket: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    while !answer.ends_with(b"}") {
        let read = within("an answer", socket.read_buf(&mut answer)).await.unwrap();
        assert!(read > 0, "the connection is open after {:?}", String::from_utf8_lossy(&answer));
    }
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn a_request_that_is_refused_before_its_body_arrives_keeps_its_connection_or_says_that_it_closes() {
    let gateway = Gateway::start(close).await;
    let bearer =
        |roomcast| format!("authorization: Bearer {}\r\n", crate::auth::token(&crate::auth::claims(&roomcast)));
    let (reader, admin) = (bearer(json!({"read": ["*"]})), bearer(json!({"admin": true})));
    let refusals = async |code: &str| {
        let admin = admin.trim_end().strip_prefix("authorization: ").unwrap().to_owned();
        let metrics = gateway.request(Method::GET, "/metrics").header("authorization", admin);
        let metrics = gateway.answer(metrics).await.text().await.unwrap();
        let line = format!("roomcast_problems_total{{code=\"{code}\"}} ");
        metrics.lines().find_map(|text| text.strip_prefix(&line)?.parse::<u32>().ok()).unwrap_or_default()
    };
    for (method, path, more, code) in [
        ("PUT", FIELD, "", "token_missing"),
        ("PUT", FIELD, "authorization: Basic YTpi\r\n", "token_invalid"),
        ("PUT", FIELD, &*reader, "forbidden"),
        ("PUT", "/v1/hashes/lamp/fields/.", &*reader, "invalid_name"),
        ("POST", "/nowhere", "", "route_not_found"),
        ("POST", "/livez", "", "method_not_allowed"),
    ] {
        let mut socket = TcpStream::connect(gateway.address()).await.unwrap();
        for length in [5, 16 * 1024] {
            let before = refusals(code).await;
            socket.write_all(head(method, path, more, length).as_bytes()).await.unwrap();
            eventually("it is refused", async || (refusals(code).await > before).then_some(())).await;
            socket.write_all(&vec![b'x'; length]).await.unwrap();
            let answer = response(&mut socket).await;
            assert_eq!(document(&answer)["code"], code);
            assert!(!answer.contains("connection: close"), "{answer}");
        }
        socket.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        assert!(response(&mut socket).await.starts_with("HTTP/1.1 200 "));
    }
    // The body does not come, or is too long, or waits for 100 (Continue).
    for (more, length) in [("", 5), ("", 17 * 1024), ("expect: 100-continue\r\n", 5)] {
        let answer = send_raw(&gateway, head("PUT", FIELD, more, length)).await;
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
        assert!(answer.contains("connection: close\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn a_body_in_malformed_chunks_is_told_apart_from_a_connection_that_broke() {
    let gateway = Gateway::start(|_| {}).await;
    let head = format!("PUT {FIELD} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n");
    for malformed in
        ["zz\r\nhi\r\n0\r\n\r\n", "2\nhi\n0\n\n", "2\r\nhi!\r\n0\r\n\r\n", "fffffffffffffffff\r\n", "\r\n"]
    {
        let answer = send_raw(&gateway, format!("{head}{malformed}")).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{malformed:?}: {answer}");
        let problem = document(&answer);
        assert_eq!(problem["code"], "invalid_body");
        assert!(problem["detail"].as_str().unwrap().contains("chunk"), "{malformed:?}: {problem}");
    }
    let mut socket = TcpStream::connect(gateway.address()).await.unwrap();
    socket.write_all(format!("{head}2\r\nh").as_bytes()).await.unwrap();
    socket.shutdown().await.unwrap();
    let mut answer = String::new();
    within("the gateway closes", socket.read_to_string(&mut answer)).await.unwrap();
    assert!(
        answer.is_empty() || document(&answer)["detail"].as_str().unwrap().contains("connection broke"),
        "{answer}"
    );
    assert_eq!(gateway.get(FIELD).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_body_in_chunks_that_was_read_keeps_its_connection() {
    let gateway = Gateway::start(|_| {}).await;
    let mut socket = TcpStream::connect(gateway.address()).await.unwrap();
    for _ in 0..2 {
        let head = "POST /v1/rooms/lobby/events HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n";
        socket.write_all(format!("{head}5\r\nhello\r\n0\r\n\r\n").as_bytes()).await.unwrap();
        let answer = response(&mut socket).await;
        assert!(answer.starts_with("HTTP/1.1 201 ") && !answer.contains("connection: close"), "{answer}");
    }
}
