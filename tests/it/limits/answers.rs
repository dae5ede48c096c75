//! Answers: their size, and what they cost while their clients do not take them.

use std::collections::BTreeSet;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

use crate::auth::{claims, close, token};
use crate::support::{Gateway, Replica, eventually, within};

const MIB: usize = 1024 * 1024;
/// The size of a large value; the largest that is allowed by default.
const VALUE_BYTES: usize = 256 * 1024;
/// What a value of control characters takes in JSON.
const ENCODED_BYTES: usize = 6 * VALUE_BYTES;

/// Connects without room for an answer, and sends a request. Returns once the answer has begun.
async fn ask(address: &str, request: &str, body: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut socket = socket.connect(address.parse().unwrap()).await.unwrap();
    let head = format!("{request}host: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
    socket.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await.unwrap();
    within("an answer begins", socket.peek(&mut [0])).await.unwrap();
    socket
}

async fn set_field(gateway: &Gateway, name: &str, token: &str, body: String) {
    let put = gateway.request(Method::PUT, &format!("/v1/hashes/m/fields/{name}")).bearer_auth(token);
    assert_eq!(gateway.send(put.body(body)).await.0, 201);
}

/// A value that takes six times its bytes in JSON.
fn control_characters() -> String {
    "\u{1}".repeat(VALUE_BYTES)
}

fn client_of(address: &str) -> reqwest::Client {
    let address: std::net::IpAddr = address.parse().unwrap();
    reqwest::Client::builder().local_address(address).build().unwrap()
}

on_both_brokers! {
    async fn p11_a_page_of_fields_ends_by_the_size_of_its_json(world) {
        let gateway = world.gateway().await;
        for n in 0..20 {
            set_field(&gateway, &format!("f{n}"), "", control_characters()).await;
        }
        // Redis hands out the fields of one place in its table together.
        let most = MIB + ENCODED_BYTES * if world.redis.is_some() { 8 } else { 1 };
        let selection: Vec<_> = (0..20).map(|n| format!("field=f{n}")).collect();
        for path in ["limit=10000", &selection.join("&")] {
            let (mut found, mut after) = (BTreeSet::new(), String::new());
            loop {
                let answer = gateway.answer(gateway.request(Method::GET, &format!("/v1/hashes/m?{path}{after}"))).await;
                let body = answer.bytes().await.unwrap();
                assert!(body.len() < most, "{} bytes in one answer", body.len());
                let list: Value = serde_json::from_slice(&body).unwrap();
                found.extend(list["fields"].as_object().unwrap().keys().cloned());
                let Some(next) = list["next"].as_str() else { break };
                after = format!("&after={next}");
            }
            assert_eq!(found.len(), 20);
        }
    }

    async fn large_fields_between_small_ones_are_all_listed(world) {
        let gateway = world.gateway().await;
        for n in 0..12 {
            set_field(&gateway, &format!("large-{n}"), "", "x".repeat(VALUE_BYTES)).await;
        }
        for n in 0..2 {
            let small: serde_json::Map<_, _> = (0..500).map(|m| (format!("f{n}-{m}"), json!("x"))).collect();
            assert_eq!(gateway.send(gateway.request(Method::PATCH, "/v1/hashes/m").json(&small)).await.0, 200);
        }
        let (mut found, mut after) = (BTreeSet::new(), String::new());
        loop {
            let (_, list) = gateway.get(&format!("/v1/hashes/m?limit=10000{after}")).await;
            found.extend(list["fields"].as_object().unwrap().keys().cloned());
            let Some(next) = list["next"].as_str() else { break };
            after = format!("&after={next}");
        }
        assert_eq!(found.len(), 1012);
    }

    async fn p11_a_read_counts_by_the_size_of_its_json(world) {
        let gateway = world.gateway_with(|settings| {
            close(settings);
            settings.limits.rate_per_subject = 10;
        }).await;
        set_field(&gateway, "f", &token(&claims(&json!({"write": ["*"]}))), control_characters()).await;
        for (n, path) in ["/v1/hashes/m", "/v1/hashes/m?field=f", "/v1/hashes/m/fields/f"].into_iter().enumerate() {
            let mut claims = claims(&json!({"read": ["*"]}));
            claims["sub"] = json!(format!("reader-{n}"));
            let (token, mut count) = (token(&claims), 0);
            while gateway.send(gateway.request(Method::GET, path).bearer_auth(&token)).await.0 == StatusCode::OK {
                count += 1;
            }
            // The limit is 20 requests at once, and each read counts as 25.
            assert!(count <= 2, "{count} reads of {path}");
        }
    }

    async fn p11_a_read_goes_on_until_its_client_has_taken_the_answer(world) {
        let gateway = world.gateway_with(|settings| {
            close(settings);
            settings.limits.rate_per_subject = 0;
        }).await;
        let mut claims = claims(&json!({"read": ["*"], "write": ["*"], "subscribe": ["*"], "publish": ["*"]}));
        claims["sub"] = json!("mallory");
        let token = token(&claims);
        set_field(&gateway, "f", &token, control_characters()).await;
        for _ in 0..5 {
            let batch = json!({"events": vec![json!({"room": "lobby", "data": "x".repeat(4000)}); 60]});
            let post = gateway.request(Method::POST, "/v1/events").bearer_auth(&token).json(&batch);
            assert_eq!(gateway.send(post).await.0, 200);
        }
        for path in ["/v1/hashes/m", "/v1/hashes/m/fields/f", "/v1/rooms/lobby/events?limit=1000"] {
            let request = format!("GET {path} HTTP/1.1\r\nauthorization: Bearer {token}\r\n");
            let mut unread = Vec::new();
            for _ in 0..16 {
                unread.push(ask(gateway.address(), &request, "").await);
            }
            let read = || gateway.send(gateway.request(Method::GET, path).bearer_auth(&token));
            assert_eq!(read().await.0, StatusCode::TOO_MANY_REQUESTS, "{path}");
            drop(unread);
            eventually("they are over", async || (read().await.0 == StatusCode::OK).then_some(())).await;
        }
    }

    async fn p7_unread_answers_of_many_callers_keep_nobody_from_reading(world) {
        let gateway = world.gateway_with(close).await;
        let reader = |subject: &str| {
            let mut claims = claims(&json!({"read": ["*"], "write": ["*"]}));
            claims["sub"] = json!(subject);
            token(&claims)
        };
        set_field(&gateway, "f", &reader("writer"), "x".repeat(100_000)).await;
        let mut unread = Vec::new();
        // Each as often as one caller may, and together more than the replica reads at one time.
        for n in 0..5 {
            let request =
                format!("GET /v1/hashes/m/fields/f HTTP/1.1\r\nauthorization: Bearer {}\r\n", reader(&n.to_string()));
            for _ in 0..16 {
                unread.push(ask(gateway.address(), &request, "").await);
            }
        }
        let read = gateway.request(Method::GET, "/v1/hashes/m").bearer_auth(reader("other"));
        assert_eq!(gateway.send(read).await.0, StatusCode::OK);
    }

    async fn p7_unread_answers_leave_room_for_others_and_for_small_ones(world) {
        let gateway = world.gateway_with(|settings| settings.requests.max_total_body_bytes = 16 * MIB).await;
        set_field(&gateway, "f", "", control_characters()).await;
        set_field(&gateway, "small", "", "x".into()).await;
        let path = "/v1/hashes/m/fields/f";
        let mut unread = Vec::new();
        for _ in 0..16 {
            unread.push(ask(gateway.address(), &format!("GET {path} HTTP/1.1\r\n"), "").await);
        }
        let (status, problem) = gateway.get(path).await;
        assert_eq!((status.as_u16(), problem["code"].as_str()), (503, Some("too_many_bodies")), "{problem}");
        assert_eq!(gateway.get("/v1/hashes/m/fields/small").await.0, StatusCode::OK);
        let other = client_of("127.0.0.2").get(format!("{}{path}", gateway.url));
        assert_eq!(gateway.send(other).await.0, StatusCode::OK);
        drop(unread);
        eventually("they are over", async || (gateway.get(path).await.0 == StatusCode::OK).then_some(())).await;
    }

    async fn p7_a_caller_that_does_not_read_the_answers_of_its_writes_may_write_no_more(world) {
        let gateway = world.gateway_with(|settings| settings.requests.max_total_body_bytes = 16 * MIB).await;
        let mut unread = Vec::new();
        for n in 0..16 {
            let request = format!("PUT /v1/hashes/m/fields/f{n} HTTP/1.1\r\n");
            unread.push(ask(gateway.address(), &request, &control_characters()).await);
        }
        let put = gateway.request(Method::PUT, "/v1/hashes/m/fields/refused").body(control_characters());
        let (status, problem) = gateway.send(put).await;
        assert_eq!(gateway.get("/v1/hashes/m/fields/refused").await.0, StatusCode::NOT_FOUND);
        assert_eq!((status.as_u16(), problem["code"].as_str()), (503, Some("too_many_bodies")), "{problem}");
        gateway.publish("lobby", "small").await;
        // It was refused before the budget of all was full.
        let other = client_of("127.0.0.2").put(format!("{}/v1/hashes/m/fields/more", gateway.url));
        assert_eq!(gateway.send(other.body("x".repeat(100_000))).await.0, StatusCode::CREATED);
    }

    async fn p7_unread_answers_of_writes_that_were_not_done_leave_room_for_others(world) {
        let gateway = world.gateway_with(|settings| settings.requests.max_total_body_bytes = 16 * MIB).await;
        set_field(&gateway, "f", "", control_characters()).await;
        let mut unread = Vec::new();
        for _ in 0..16 {
            let request = "DELETE /v1/hashes/m/fields/f HTTP/1.1\r\nif-match: \"x\"\r\n";
            unread.push(ask(gateway.address(), request, "").await);
        }
        let other = client_of("127.0.0.2").put(format!("{}/v1/hashes/m/fields/more", gateway.url));
        assert_eq!(gateway.send(other.body("x".repeat(100_000))).await.0, StatusCode::CREATED);
    }
}

#[tokio::test]
async fn p11_unread_answers_take_a_part_of_the_memory_that_their_bytes_would() {
    const ANSWERS: usize = 100;
    let gateway = Replica::start_with(&["--max-total-body-bytes", &(16 * MIB).to_string()]);
    gateway.until(200).await;
    let put = reqwest::Client::new().put(format!("{}/v1/hashes/m/fields/f", gateway.url()));
    assert_eq!(put.body(control_characters()).send().await.unwrap().status(), 201);
    let before = gateway.resident_kib();
    let address = gateway.url().strip_prefix("http://").unwrap();
    let mut unread = Vec::new();
    for _ in 0..ANSWERS {
        unread.push(ask(address, "GET /v1/hashes/m/fields/f HTTP/1.1\r\n", "").await);
    }
    let bytes = usize::try_from(gateway.resident_kib() - before).unwrap() * 1024;
    assert!(bytes < ANSWERS * ENCODED_BYTES / 3, "{bytes} bytes for {ANSWERS} answers");
}
