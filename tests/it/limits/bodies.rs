//! Bodies of requests: the caller's permission comes first, and all bodies together take a bounded number of bytes.

use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::auth::{claims, close, token};
use crate::support::{Replica, eventually, within};

/// Every route that changes something.
const WRITES: [(&str, &str); 11] = [
    ("POST", "/v1/rooms/lobby/events"),
    ("DELETE", "/v1/rooms/lobby/events"),
    ("POST", "/v1/events"),
    ("PATCH", "/v1/hashes/lamp"),
    ("DELETE", "/v1/hashes/lamp"),
    ("PUT", "/v1/hashes/lamp/fields/colour"),
    ("DELETE", "/v1/hashes/lamp/fields/colour"),
    ("POST", "/v1/hashes/lamp/fields/count/increment"),
    ("DELETE", "/v1/rooms/lobby/subscribers/sam"),
    ("DELETE", "/v1/users/sam/streams"),
    ("DELETE", "/v1/tokens/one"),
];
const MIB: usize = 1024 * 1024;

/// Begins a request and sends a part of its body.
async fn begin(address: &str, request: &str, body: &[u8]) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let head = format!("{request}host: localhost\r\ncontent-length: {MIB}\r\n\r\n");
    // A refusal may come before all of it is sent.
    let _ = socket.write_all(&[head.as_bytes(), body].concat()).await;
    socket
}

/// The status of the response, and all of it.
async fn answer(socket: &mut TcpStream) -> (u16, String) {
    let mut bytes = [0; 4096];
    let count = within("an answer", socket.read(&mut bytes)).await.unwrap();
    let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
    (text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default(), text)
}

on_both_brokers! {
    async fn p10_a_caller_without_a_permission_is_refused_before_its_body_arrives(world) {
        let gateway = world.gateway_with(close).await;
        let other = token(&claims(&json!({"subscribe": ["*"]})));
        for (authorization, expected) in [("", 401), (&format!("authorization: Bearer {other}\r\n"), 403)] {
            for (method, path) in WRITES {
                for kind in ["", "content-type: application/json\r\n", "content-type: image/png\r\n"] {
                    let request = format!("{method} {path} HTTP/1.1\r\n{authorization}{kind}");
                    let (status, text) = answer(&mut begin(gateway.address(), &request, b"").await).await;
                    assert_eq!(status, expected, "{method} {path} {kind}: {text}");
                }
            }
        }
    }

    async fn p11_a_body_that_is_sent_in_pieces_is_whole(world) {
        let gateway = world.gateway().await;
        let text = (0..6000).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        let pieces: Vec<_> = text.as_bytes().chunks(700).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
        let body = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
        let request = gateway.request(Method::PUT, "/v1/hashes/lamp/fields/text").body(body);
        assert_eq!(gateway.send(request).await.0, StatusCode::CREATED);
        assert_eq!(gateway.get("/v1/hashes/lamp/fields/text").await.1["value"], text.as_str());
    }

    async fn p7_a_caller_that_does_not_end_its_bodies_leaves_room_for_others_and_for_small_ones(world) {
        let gateway = world.gateway_with(|settings| settings.requests.max_total_body_bytes = 4 * MIB).await;
        let (mut unfinished, body) = (Vec::new(), vec![b'x'; 100_000]);
        for _ in 0..30 {
            let request = "POST /v1/rooms/lobby/events HTTP/1.1\r\n";
            unfinished.push(begin(gateway.address(), request, &body).await);
        }
        let url = format!("{}/v1/hashes/lamp", gateway.url);
        let patch_from = |address: &str| {
            let address: std::net::IpAddr = address.parse().unwrap();
            let client = reqwest::Client::builder().local_address(address).build().unwrap();
            client.patch(&url).json(&json!({"a": "x".repeat(200_000)}))
        };
        let refused = eventually("it holds all that it may", async || {
            let (status, problem) = gateway.send(patch_from("127.0.0.1")).await;
            (status == StatusCode::SERVICE_UNAVAILABLE).then_some(problem)
        }).await;
        assert_eq!(refused["code"], "too_many_bodies");
        gateway.publish("lobby", &"x".repeat(10_000)).await;
        assert_eq!(gateway.send(patch_from("127.0.0.2")).await.0, StatusCode::OK);
        drop(unfinished);
        eventually("the bytes are free again", async || {
            (gateway.send(patch_from("127.0.0.1")).await.0 == StatusCode::OK).then_some(())
        }).await;
    }
}

#[tokio::test]
async fn p11_unfinished_bodies_take_a_part_of_the_memory_that_their_bytes_would() {
    const BODIES: usize = 100;
    let gateway = Replica::start_with(&["--max-total-body-bytes", &(16 * MIB).to_string()]);
    gateway.until(200).await;
    let before = gateway.resident_kib();
    let address = gateway.url().strip_prefix("http://").unwrap();
    let body = vec![b'x'; MIB - 1];
    let mut unfinished = Vec::new();
    for _ in 0..BODIES {
        unfinished.push(begin(address, "POST /v1/rooms/lobby/events HTTP/1.1\r\n", &body).await);
    }
    // One caller may hold half of 16 MiB.
    eventually("the other bodies are refused", async || {
        let metrics = reqwest::get(format!("{}/metrics", gateway.url())).await.unwrap().text().await.unwrap();
        let line = "roomcast_rejected_total{limit=\"body_bytes\",kind=\"request\"} ";
        let refused = metrics.lines().find_map(|text| text.strip_prefix(line)?.parse::<usize>().ok());
        (refused? >= BODIES - 9).then_some(())
    })
    .await;
    let bytes = usize::try_from(gateway.resident_kib() - before).unwrap() * 1024;
    assert!(bytes < BODIES * MIB / 3, "{bytes} bytes for {BODIES} bodies");
}
