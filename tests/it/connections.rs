//! Connections that are incomplete, silent, many, or too many.

use std::net::IpAddr;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::auth::{all, claims, close, token};
use crate::metrics::{text, value};
use crate::support::{Gateway, Replica, eventually, within};

async fn send(gateway: &Gateway, text: &str) -> TcpStream {
    let mut socket = TcpStream::connect(gateway.address()).await.unwrap();
    socket.write_all(text.as_bytes()).await.unwrap();
    socket
}

/// Everything that the gateway sends until it closes the connection.
async fn read_to_end(mut socket: TcpStream) -> String {
    let mut text = Vec::new();
    // A reset closes the connection too.
    let _ = within("the gateway closes", socket.read_to_end(&mut text)).await;
    String::from_utf8(text).unwrap()
}

/// A gateway with short timeouts.
async fn impatient() -> Gateway {
    Gateway::start(|settings| {
        settings.requests.header_timeout = Duration::from_millis(200);
        settings.requests.request_timeout = Duration::from_millis(400);
    })
    .await
}

#[tokio::test]
async fn a_silent_connection_and_an_incomplete_head_are_closed() {
    let gateway = impatient().await;
    assert_eq!(read_to_end(send(&gateway, "").await).await, "");
    read_to_end(send(&gateway, "GET /livez HTTP/1.1\r\nhost: localhost\r\nx-half").await).await;
    assert_eq!(gateway.get("/livez").await.0, 200);
}

const LIVEZ: &str = "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// Sends a request on a connection, and reads its answer.
async fn ask(socket: &mut TcpStream) {
    socket.write_all(LIVEZ.as_bytes()).await.unwrap();
    read_until(socket, &mut Vec::new(), "\"status\":\"ok\"").await;
}

#[tokio::test]
async fn an_idle_connection_is_kept_longer_than_an_incomplete_head() {
    let gateway = impatient().await;
    let mut idle = send(&gateway, "").await;
    ask(&mut idle).await;
    // Heads whose time begins later, and ends first: on a new connection, and after a request.
    let mut second = send(&gateway, "").await;
    ask(&mut second).await;
    second.write_all(b"GET /livez HTTP/1.1\r\nx-half").await.unwrap();
    read_to_end(second).await;
    read_to_end(send(&gateway, "GET /livez HTTP/1.1\r\nx-half").await).await;
    ask(&mut idle).await;
    let timeouts = "roomcast_rejected_total{limit=\"header_time\",kind=\"connection\"}";
    assert_eq!(value(&text(&gateway).await, timeouts), 2);
}

#[tokio::test]
async fn a_connection_that_is_idle_too_long_is_closed_and_is_no_failure() {
    let gateway = Gateway::start(|settings| {
        settings.requests.header_timeout = Duration::from_mins(1);
        settings.requests.keep_alive = Duration::from_millis(200);
    })
    .await;
    let mut half = send(&gateway, LIVEZ.strip_suffix("\r\n").unwrap()).await;
    let mut idle = send(&gateway, "").await;
    ask(&mut idle).await;
    assert_eq!(read_to_end(idle).await, "");
    half.write_all(b"\r\n").await.unwrap();
    read_until(&mut half, &mut Vec::new(), "\"status\":\"ok\"").await;
    assert!(!text(&gateway).await.contains("limit=\"header_time\""));
}

#[tokio::test]
async fn a_shutdown_closes_idle_connections_at_once() {
    let gateway = Gateway::start(|settings| settings.shutdown.drain_window = Duration::from_hours(1)).await;
    let mut idle = send(&gateway, "").await;
    ask(&mut idle).await;
    gateway.leave();
    assert_eq!(read_to_end(idle).await, "");
    gateway.stop().await.unwrap();
}

#[tokio::test]
async fn an_incomplete_body_is_answered_in_time_and_stores_nothing() {
    let gateway = impatient().await;
    let head = "POST /v1/rooms/half/events HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n";
    let answer = read_to_end(send(&gateway, &format!("{head}half")).await).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    let body: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(body["code"], "request_timeout");
    assert_eq!(gateway.get("/v1/rooms/half").await.1["retained"], 0);
}

#[tokio::test]
async fn a_connection_that_does_not_speak_http_is_closed() {
    let gateway = impatient().await;
    for malformed in ["\0\0\0\0\r\n\r\n", "GET\r\n\r\n", "GET /livez HTTP/9.9\r\n\r\n", "\u{16}\u{3}\u{1}\u{2}"] {
        let answer = read_to_end(send(&gateway, malformed).await).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    let head = format!("GET /livez HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "x".repeat(100_000));
    let socket = TcpStream::connect(gateway.address()).await.unwrap();
    let (reader, mut writer) = socket.into_split();
    let _ = writer.write_all(head.as_bytes()).await;
    let answer = read_to_end(reader.reunite(writer).unwrap()).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert_eq!(gateway.get("/livez").await.0, 200);
}

#[tokio::test]
async fn requests_on_connections_above_the_limit_are_refused_for_now() {
    let gateway = Gateway::start(|settings| settings.requests.max_connections = 2).await;
    let streams = [gateway.room("full").await, gateway.room("full").await];
    let refused = gateway.stream("/v1/rooms/full/stream?after=7-7").await;
    assert_eq!(refused.last_event_id, "7-7");
    assert_eq!(refused.opened["reason"], "too_many_connections");
    assert_eq!(refused.opened["reconnect"], "later");
    let (status, problem) = gateway.get("/v1/rooms").await;
    assert_eq!((status.as_u16(), problem["code"].as_str()), (503, Some("too_many_connections")));
    let answer = gateway.answer(gateway.request(Method::GET, "/v1/rooms")).await;
    assert_eq!(answer.headers()["retry-after"], "2");
    drop(streams);
    eventually("a connection is free again", async || (gateway.get("/livez").await.0 == 200).then_some(())).await;
}

/// A client whose connections come from this address.
fn client_at(address: [u8; 4]) -> reqwest::Client {
    reqwest::Client::builder().local_address(IpAddr::from(address)).build().unwrap()
}

async fn status_for(client: &reqwest::Client, gateway: &Gateway) -> u16 {
    within("an answer", client.get(format!("{}/livez", gateway.url)).send()).await.unwrap().status().as_u16()
}

#[tokio::test]
async fn one_address_can_not_hold_all_connections() {
    let gateway = Gateway::start(|settings| {
        close(settings);
        settings.limits.max_connections_per_address = 3;
    })
    .await;
    let user = token(&claims(&all()));
    let stream = gateway.stream(&format!("/v1/rooms/lobby/stream?access_token={user}")).await;
    let silent = send(&gateway, "").await;
    let mut idle = send(&gateway, "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    read_until(&mut idle, &mut Vec::new(), "HTTP/1.1 200").await;
    let answer = read_to_end(send(&gateway, "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("too_many_connections"), "{answer}");
    let refused = gateway.stream("/v1/rooms/lobby/stream").await;
    assert_eq!(refused.opened, json!({"reason": "too_many_connections", "reconnect": "later"}));
    // Others are served.
    let other = client_at([127, 0, 0, 2]);
    assert_eq!(status_for(&other, &gateway).await, 200);
    let admin = token(&claims(&json!({"admin": true})));
    let metrics = other.get(format!("{}/metrics", gateway.url)).bearer_auth(admin).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    assert_eq!(value(&metrics, "roomcast_rejected_total{limit=\"address\",kind=\"connection\"}"), 2);
    drop((stream, silent, idle));
    eventually("the address is served again", async || {
        (status_for(&reqwest::Client::new(), &gateway).await == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn by_default_one_address_can_hold_half_of_the_connections() {
    let gateway = Gateway::start(|settings| {
        close(settings);
        settings.requests.max_connections = 4;
    })
    .await;
    let clients = [[127, 0, 0, 1], [127, 0, 0, 1], [127, 0, 0, 1], [127, 0, 0, 2]].map(client_at);
    let mut statuses = Vec::new();
    for client in &clients {
        statuses.push(status_for(client, &gateway).await);
    }
    assert_eq!(statuses, [200, 200, 503, 200]);
}

#[tokio::test]
async fn connections_of_a_trusted_proxy_are_those_of_many_clients() {
    let gateway = Gateway::start(|settings| {
        close(settings);
        settings.limits.max_connections_per_address = 1;
        settings.limits.trusted_proxy = vec!["127.0.0.2".parse::<IpAddr>().unwrap().into()];
    })
    .await;
    for (address, expected) in [([127, 0, 0, 1], [200, 503, 503]), ([127, 0, 0, 2], [200; 3])] {
        let clients = [address; 3].map(client_at);
        let mut statuses = Vec::new();
        for client in &clients {
            statuses.push(status_for(client, &gateway).await);
        }
        assert_eq!(statuses, expected);
    }
}

#[tokio::test]
async fn each_connection_is_counted_once() {
    let gateway = Gateway::start(|_| {}).await;
    let count = async || value(&text(&gateway).await, "roomcast_connections");
    let before = count().await;
    // Connections are accepted in order, so both are counted once the stream is open.
    let silent = send(&gateway, "").await;
    let half = send(&gateway, "GET /livez HTTP/1.1\r\n").await;
    let stream = gateway.room("counted").await;
    assert_eq!(count().await, before + 3);
    drop((silent, half, stream));
}

#[tokio::test]
async fn a_disconnected_subscriber_is_no_longer_counted() {
    let gateway = Gateway::start(|_| {}).await;
    let stream = gateway.room("left").await;
    eventually("it is counted", async || (gateway.get("/v1/rooms/left").await.1["subscribers"] == 1).then_some(()))
        .await;
    drop(stream);
    eventually("it is no longer counted", async || {
        (gateway.get("/v1/rooms/left").await.1["subscribers"] == 0).then_some(())
    })
    .await;
}

/// Reads from a socket until the received bytes contain `end`.
async fn read_until(socket: &mut TcpStream, received: &mut Vec<u8>, end: &str) {
    let reading = async {
        while !String::from_utf8_lossy(received).contains(end) {
            assert!(socket.read_buf(received).await.unwrap() > 0, "closed before {end}");
        }
    };
    within(end, reading).await;
}

#[tokio::test]
async fn p11_thousands_of_streams_of_a_room_cost_little_memory_each_and_get_every_event() {
    // More than one broadcaster serves, if so many files may be open. The limit applies to this process and to the
    // gateway, which is a process of its own.
    let count = if rlimit::Resource::NOFILE.get_soft().unwrap() > 8_000 { 4_500 } else { 500 };
    for (path, max_bytes) in [("/v1/rooms/lobby/stream", 3 * 1024), ("/v1/stream?room=lobby&room=hall", 9 * 1024)] {
        let gateway = Replica::start_with(&[]);
        let address = gateway.url().strip_prefix("http://").unwrap();
        let open = async || {
            let (mut socket, mut received) = (TcpStream::connect(address).await.unwrap(), Vec::new());
            let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n");
            socket.write_all(request.as_bytes()).await.unwrap();
            read_until(&mut socket, &mut received, "stream.open").await;
            (socket, received)
        };
        let publish = async |text: &'static str| {
            let events = format!("{}/v1/rooms/lobby/events", gateway.url());
            let answer = reqwest::Client::new().post(events).body(text).send().await.unwrap();
            assert_eq!(answer.status(), 201);
        };
        // The first stream and the first event allocate memory that all streams share.
        let mut first = open().await;
        publish("before").await;
        read_until(&mut first.0, &mut first.1, "before").await;
        let resident = gateway.resident_kib();
        let mut streams = Vec::with_capacity(count);
        for _ in 0..count {
            streams.push(open().await);
        }
        let each = (gateway.resident_kib() - resident) * 1024 / count as u64;
        assert!(each < max_bytes, "{path}: {each} bytes each");
        for text in ["the first", "the second", "the last"] {
            publish(text).await;
        }
        for (socket, received) in &mut streams {
            read_until(socket, received, "the last").await;
            let received = String::from_utf8_lossy(received);
            let events: Vec<_> = ["before", "stream.gap", "the first", "the second", "the last"]
                .iter()
                .map(|text| received.matches(text).count())
                .collect();
            assert_eq!(events, [0, 0, 1, 1, 1], "{received}");
        }
        let exit = gateway.terminate();
        let (code, ()) = tokio::join!(exit, async {
            for (socket, received) in &mut streams {
                read_until(socket, received, "stream.end").await;
            }
        });
        assert_eq!(code, Some(0));
    }
}
