//! Heads of requests: hosts, lengths, repeated headers, and headers that a gateway must not ignore.

use reqwest::{Method, StatusCode};
use serde_json::json;

use super::{document, refused, send_in_pieces, send_raw};
use crate::support::{Gateway, values_of};

const FIELD: &str = "/v1/hashes/lamp/fields/colour";
/// Most bytes of a head.
const MAX_HEAD: usize = 32 * 1024;

#[tokio::test]
async fn a_request_has_one_host_that_can_be_read() {
    let anonymous = Gateway::start(|settings| settings.access.insecure_allow_anonymous = true).await;
    // It refuses other hosts than this machine, and a host that can't be read as such.
    let without_keys = Gateway::start(|_| {}).await;
    let get =
        |version: &str, hosts: &str| format!("GET /v1/rooms HTTP/{version}\r\n{hosts}connection: close\r\n\r\n");
    for hosts in [
        "host: a\r\nhost: b\r\n",
        "host: a\r\nhost: a\r\n",
        "",
        "host: a b\r\n",
        "host: a/b\r\n",
        "host: user@a\r\n",
        "host: a:b\r\n",
        "host: a:99999\r\n",
        "host: a, b\r\n",
        "host: [::1\r\n",
        "host: localhost/\r\n",
        "host: local%68ost\r\n",
        "host: Zo\u{eb}\r\n",
    ] {
        for gateway in [&anonymous, &without_keys] {
            let answer = send_raw(gateway, get("1.1", hosts)).await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{hosts}: {answer}");
            assert_eq!(document(&answer)["code"], "invalid_header");
        }
    }
    for (version, hosts) in [
        ("1.1", "host: a\r\n"),
        ("1.1", "Host:a:80\r\n"),
        ("1.1", "host: my_service:8080\r\n"),
        ("1.1", "host: [::1]:80\r\n"),
        ("1.1", "host: 127.0.0.1\r\n"),
        ("1.1", "host: \r\n"),
        ("1.0", ""),
    ] {
        let answer = send_raw(&anonymous, get(version, hosts)).await;
        assert_eq!(answer.split(' ').nth(1), Some("200"), "{hosts}: {answer}");
    }
    for host in ["localhost", "LocalHost.", "localhost.:8080", "[::1]", "127.0.0.2:1"] {
        let answer = send_raw(&without_keys, get("1.1", &format!("host: {host}\r\n"))).await;
        assert_eq!(answer.split(' ').nth(1), Some("200"), "{host}: {answer}");
    }
    for host in ["localhost..", "a.localhost.evil", "."] {
        let answer = send_raw(&without_keys, get("1.1", &format!("host: {host}\r\n"))).await;
        assert_eq!(document(&answer)["code"], "foreign_host", "{host}: {answer}");
    }
}

#[tokio::test]
async fn the_limit_of_a_head_does_not_depend_on_its_packets() {
    let gateway = Gateway::start(|_| {}).await;
    let head = |length: usize| {
        let start = "GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nx: ";
        format!("{start}{}\r\n\r\n", "x".repeat(length - start.len() - 4))
    };
    for size in [MAX_HEAD * 2, 16 * 1024, 1000] {
        for (length, status) in [(MAX_HEAD, "200"), (MAX_HEAD + 1, "431"), (MAX_HEAD + 5000, "431")] {
            let answer = send_in_pieces(&gateway, head(length).as_bytes(), size).await;
            assert_eq!(answer.split(' ').nth(1), Some(status), "{length} bytes in pieces of {size}");
        }
    }
}

#[tokio::test]
async fn a_client_that_sends_a_whole_head_before_it_reads_gets_the_refusal() {
    let gateway = Gateway::start(|_| {}).await;
    let head = format!("GET /livez HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "x".repeat(8 * 1024 * 1024));
    assert!(send_raw(&gateway, head).await.starts_with("HTTP/1.1 431 "));
}

#[tokio::test]
async fn a_transfer_coding_besides_chunked_is_not_implemented() {
    let gateway = Gateway::start(|_| {}).await;
    let put =
        |codings: &str| format!("PUT {FIELD} HTTP/1.1\r\nhost: localhost\r\n{codings}\r\n5\r\ngreen\r\n0\r\n\r\n");
    for codings in [
        "transfer-encoding: gzip, chunked\r\n",
        "transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked, chunked\r\n",
        // Whatever else is wrong: the connection has to be closed.
        "host: other.example\r\ntransfer-encoding: gzip, chunked\r\n",
    ] {
        let answer = send_raw(&gateway, put(codings)).await;
        assert!(answer.starts_with("HTTP/1.1 501 "), "{codings}: {answer}");
        assert!(document(&answer)["detail"].as_str().unwrap().contains("chunked"));
    }
    // The length of such a body is not known (RFC 9112, section 6.3).
    assert!(send_raw(&gateway, put("transfer-encoding: gzip\r\n")).await.starts_with("HTTP/1.1 400 "));
    assert_eq!(gateway.get(FIELD).await.0, StatusCode::NOT_FOUND);
    let answer = send_raw(&gateway, put("Transfer-Encoding: Chunked\r\nconnection: close\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
}

on_both_brokers! {
    async fn a_write_of_a_part_is_refused_and_changes_nothing(world) {
        let gateway = world.gateway().await;
        gateway.send(gateway.request(Method::PUT, FIELD).body("green")).await;
        for (method, path) in [
            (Method::PUT, FIELD), (Method::PATCH, "/v1/hashes/lamp"), (Method::POST, "/v1/rooms/lobby/events"),
            (Method::POST, "/v1/events"), (Method::DELETE, FIELD),
        ] {
            let part = gateway.request(method, path).header("content-range", "bytes 0-1/5").body("xy");
            refused(&gateway, part, 400, "invalid_header").await;
        }
        assert_eq!(gateway.get(FIELD).await.1["value"], "green");
        assert_eq!(gateway.get("/v1/rooms/lobby").await.1["retained"], 0);
    }

    async fn a_header_that_may_be_there_once_is_refused_with_two_values(world) {
        let gateway = world.gateway().await;
        let publish = || gateway.request(Method::POST, "/v1/rooms/lobby/events").body("x");
        let batch = || gateway.request(Method::POST, "/v1/events").json(&json!({"events": [{"room": "lobby", "data": 1}]}));
        for request in [publish(), batch()] {
            let two = request.header("idempotency-key", "a").header("idempotency-key", "b");
            assert!(refused(&gateway, two, 400, "invalid_header").await.contains("idempotency-key"));
        }
        let two = publish().header("content-type", "text/plain").header("content-type", "application/json");
        refused(&gateway, two, 400, "invalid_header").await;
        assert_eq!(gateway.get("/v1/rooms/lobby").await.1["retained"], 0);
        // A proxy that repeats a header changes nothing.
        let same = publish().header("idempotency-key", "a").header("idempotency-key", "a");
        assert_eq!(gateway.send(same).await.0, 201);
    }

    async fn a_broken_percent_encoding_is_refused_in_paths_and_queries(world) {
        let gateway = world.gateway().await;
        let raw = async |method: &str, target: &str| {
            send_raw(&gateway, format!("{method} {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx")).await
        };
        for bad in ["a%zz", "a%", "a%4", "a%FF", "%C3"] {
            for (method, target, code) in [
                ("PUT", format!("/v1/hashes/lamp/fields/{bad}"), "invalid_name"),
                ("GET", format!("/v1/hashes/{bad}"), "invalid_name"),
                ("GET", format!("/v1/rooms/{bad}/stream"), "invalid_name"),
                ("DELETE", format!("/v1/rooms/lobby/subscribers/{bad}"), "invalid_name"),
                ("DELETE", format!("/v1/users/{bad}/streams"), "invalid_name"),
                ("DELETE", format!("/v1/tokens/{bad}"), "invalid_name"),
                ("GET", format!("/v1/hashes/lamp?field={bad}"), "invalid_query"),
                ("GET", format!("/v1/rooms?after={bad}"), "invalid_query"),
                ("GET", format!("/v1/stream?room={bad}"), "invalid_query"),
            ] {
                let answer = raw(method, &target).await;
                assert!(answer.starts_with("HTTP/1.1 400 "), "{target}: {answer}");
                let problem = document(&answer);
                assert_eq!(problem["code"], code, "{target}: {problem}");
                assert!(problem["detail"].as_str().unwrap().contains("percent-encod"), "{problem}");
            }
        }
        assert_eq!(gateway.get("/v1/hashes/lamp").await.1["fields"], json!({}));
    }

    async fn a_parameter_with_an_empty_value_counts_as_left_out(world) {
        let gateway = world.gateway().await;
        gateway.publish("lobby", "x").await;
        gateway.send(gateway.request(Method::PUT, FIELD).body("green")).await;
        for path in [
            "/v1/rooms?after=&limit=", "/v1/rooms/lobby/events?after=&before=&limit=", "/v1/hashes/lamp?after=&limit=&field=",
            "/v1/rooms/lobby/subscribers?after=&limit=",
        ] {
            let (status, list) = gateway.get(path).await;
            assert_eq!((status.as_u16(), &list), (200, &gateway.get(path.split('?').next().unwrap()).await.1), "{path}");
        }
        let publish = gateway.request(Method::POST, "/v1/rooms/lobby/events?event=").body("y");
        assert_eq!(gateway.send(publish).await.0, 201);
        let options = "after=&from=&recent=&event=&subscriber=&presence=&info=&lastEventId=&access_token=";
        for path in ["/v1/rooms/lobby/stream?", "/v1/stream?room=lobby&"] {
            let stream = gateway.stream(&format!("{path}{options}")).await;
            assert_eq!(stream.opened["rooms"]["lobby"]["resume"], "fresh");
        }
        let remove = |query: &str| gateway.request(Method::DELETE, &format!("/v1/users/ann/streams?{query}"));
        assert_eq!(gateway.send(remove("deny_seconds=")).await.0, gateway.send(remove("")).await.0);
    }

    async fn a_parameter_without_an_equals_sign_is_refused_everywhere(world) {
        let gateway = world.gateway().await;
        for (method, target) in [
            (Method::GET, "/v1/rooms?limit"), (Method::GET, "/v1/rooms/lobby/events?after"), (Method::GET, "/v1/rooms/lobby?a"),
            (Method::GET, "/v1/rooms/lobby/stream?presence"), (Method::GET, "/v1/rooms/lobby/stream?recent"),
            (Method::GET, "/v1/rooms/lobby/stream?after&recent=1"), (Method::GET, "/v1/rooms/lobby/stream?Last-Event-ID"),
            (Method::GET, "/v1/stream?room=lobby&from"), (Method::GET, "/v1/stream?room=lobby&access_token"),
            (Method::GET, "/v1/rooms/lobby/subscribers?limit"), (Method::GET, "/v1/hashes/lamp?field"),
            (Method::PATCH, "/v1/hashes/lamp?remove"), (Method::POST, "/v1/rooms/lobby/events?event"),
            (Method::DELETE, "/v1/users/ann/streams?deny_seconds"), (Method::DELETE, "/v1/hashes/lamp?field"),
        ] {
            let why = refused(&gateway, gateway.request(method, target).body("x"), 400, "invalid_query").await;
            assert!(why.contains("without ="), "{target}: {why}");
        }
        assert_eq!(gateway.get("/v1/rooms?&limit=1&&").await.0, 200);
    }

    async fn a_parameter_that_is_a_list_may_have_brackets(world) {
        let gateway = world.gateway().await;
        for (a, b) in [("[]", "[]"), ("%5B%5D", "%5b%5d"), ("[0]", "[1]"), ("[]", "")] {
            let patch = gateway.request(Method::PATCH, "/v1/hashes/lamp").json(&json!({"a": "1", "b": "2", "c": "3"}));
            gateway.send(patch).await;
            let list = gateway.get(&format!("/v1/hashes/lamp?field{a}=a&field{b}=b")).await.1;
            assert_eq!(values_of(&list), json!({"a": {"value": "1"}, "b": {"value": "2"}}), "{a}");
            let remove = format!("/v1/hashes/lamp?remove{a}=a&remove{b}=b");
            let removed = gateway.send(gateway.request(Method::PATCH, &remove).json(&json!({}))).await.1;
            assert_eq!(removed["removed"], 2, "{a}: {removed}");
            let query = format!("room{a}=lobby&room{b}=news&event{a}=chat&event{b}=alert");
            let mut stream = gateway.stream(&format!("/v1/stream?{query}")).await;
            assert_eq!(stream.opened["rooms"].as_object().unwrap().len(), 2, "{a}");
            for name in ["other", "alert"] {
                gateway.publish_json("news", name, json!(1)).await;
            }
            assert_eq!(stream.event().await.event, "alert");
        }
        for query in ["x[]=1", "room[=a", "room[a]=b", "[]=a"] {
            let stream = gateway.request(Method::GET, &format!("/v1/stream?room=lobby&{query}"));
            refused(&gateway, stream, 400, "invalid_query").await;
        }
    }

    async fn a_parameter_that_another_method_of_the_path_has_changes_nothing(world) {
        let gateway = world.gateway().await;
        gateway.send(gateway.request(Method::PATCH, "/v1/hashes/lamp").json(&json!({"a": "1", "b": "2"}))).await;
        let id = gateway.publish("lobby", "x").await;
        for (method, target) in [
            (Method::DELETE, "/v1/hashes/lamp?field=a".to_owned()), (Method::DELETE, format!("/v1/rooms/lobby/events?before={id}")),
            (Method::PUT, "/v1/hashes/lamp/fields/a?event=x".into()), (Method::DELETE, "/v1/hashes/lamp/fields/a?field=b".into()),
            (Method::POST, "/v1/events?event=x".into()), (Method::POST, "/v1/hashes/lamp/fields/a/increment?by=1".into()),
            (Method::GET, "/v1/hashes/lamp/fields/a?field=b".into()), (Method::HEAD, "/v1/rooms/lobby?after=1-1".into()),
        ] {
            let request = gateway.request(method.clone(), &target).body("x");
            if method == Method::HEAD {
                assert_eq!(gateway.answer(request).await.status(), 400);
                continue;
            }
            let why = refused(&gateway, request, 400, "invalid_query").await;
            assert!(why.starts_with("there is no parameter ") && why.ends_with("this route has none"), "{why}");
        }
        assert_eq!(gateway.get("/v1/hashes/lamp").await.1["fields"].as_object().unwrap().len(), 2);
        assert_eq!(gateway.get("/v1/rooms/lobby").await.1["retained"], 1);
        // Neither a token nor an empty parameter is one of the route.
        let delete = gateway.request(Method::DELETE, "/v1/hashes/lamp?access_token=x&field=");
        assert_eq!(gateway.send(delete).await.0, 204);
    }
}
