//! The orderly shutdown (P12), and readiness.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Gateway, eventually, within};

/// A gateway in its drain delay.
async fn draining_gateway() -> Gateway {
    let gateway = Gateway::start(|settings| settings.shutdown.drain_delay = Duration::from_mins(1)).await;
    assert_eq!(gateway.get("/readyz").await.0, StatusCode::OK);
    gateway.leave();
    eventually("it is not ready", async || (gateway.get("/readyz").await.0 == 503).then_some(())).await;
    gateway
}

#[tokio::test]
async fn p12_during_the_drain_delay_it_is_unready_and_still_answers() {
    let gateway = draining_gateway().await;
    assert_eq!(gateway.get("/livez").await.0, StatusCode::OK);
    gateway.publish("leaving", "still stored").await;
    let answer = gateway.answer(gateway.request(Method::GET, "/v1/rooms/leaving")).await;
    assert_eq!(answer.headers()["connection"], "close");
    let refused = gateway.resume("/v1/rooms/leaving/stream", Some("1790000000000000-1")).await;
    assert_eq!((&refused.opened["reason"], &refused.opened["reconnect"]), (&"draining".into(), &"now".into()));
    assert_eq!(refused.last_event_id, "1790000000000000-1");
}

#[tokio::test]
async fn p12_streams_that_were_open_go_on_during_the_drain_delay() {
    let gateway = Gateway::start(|settings| settings.shutdown.drain_delay = Duration::from_mins(1)).await;
    let mut stream = gateway.room("open").await;
    gateway.leave();
    eventually("it is not ready", async || (gateway.get("/readyz").await.0 == 503).then_some(())).await;
    gateway.publish("open", "on").await;
    assert_eq!(stream.data().await, "on");
}

#[tokio::test]
async fn p12_a_request_in_flight_is_finished() {
    let gateway = Gateway::start(|settings| settings.shutdown.drain_window = Duration::from_secs(5)).await;
    let mut socket = tokio::net::TcpStream::connect(gateway.address()).await.unwrap();
    let head = "POST /v1/rooms/flight/events HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4\r\n\r\nha";
    socket.write_all(head.as_bytes()).await.unwrap();
    // When a stream that is opened later has opened, the gateway has received the request.
    let mut stream = gateway.room("flight").await;
    gateway.leave();
    eventually("it accepts no connections", async || {
        tokio::net::TcpStream::connect(gateway.address()).await.is_err().then_some(())
    })
    .await;
    socket.write_all(b"lf").await.unwrap();
    let mut answer = String::new();
    within("the answer", socket.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    // The stream has the event, unless its time to end has come before.
    let next = stream.event().await;
    assert!(next.data == "half" || next.event == "stream.end", "{next:?}");
    gateway.stop().await.unwrap();
}

#[tokio::test]
async fn p12_the_ends_of_streams_are_spread_over_the_window() {
    let gateway = Gateway::start(|settings| settings.shutdown.drain_window = Duration::from_secs(2)).await;
    let mut streams = Vec::new();
    for _ in 0..20 {
        streams.push(gateway.room("spread").await);
    }
    gateway.leave();
    let mut ends: Vec<std::time::Instant> = Vec::new();
    let reading = streams.into_iter().map(|stream| async {
        let events = stream.rest().await;
        assert_eq!(events.last().unwrap().event, "stream.end");
        std::time::Instant::now()
    });
    for end in futures_util::future::join_all(reading).await {
        ends.push(end);
    }
    ends.sort();
    assert!(*ends.last().unwrap() - ends[0] > Duration::from_millis(500));
    gateway.stop().await.unwrap();
}
