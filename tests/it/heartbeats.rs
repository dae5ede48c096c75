//! Heartbeats: how often an idle stream gets one, and what it is.

use std::time::Duration;

use serde_json::json;

use crate::support::{Gateway, Stream};

const ROUTES: [&str; 3] = ["/v1/rooms/r/stream?", "/v1/stream?room=r&", "/v1/hashes/h/stream?"];
const HOUR: Duration = Duration::from_hours(1);
const SHORT: Duration = Duration::from_millis(50);

/// Opens a stream. One of a hash has had its snapshot.
async fn open(gateway: &Gateway, path: &str) -> Stream {
    let mut stream = gateway.stream(path).await;
    while path.starts_with("/v1/hashes") && stream.event().await.event != "hash.snapshot" {}
    stream
}

/// Checks that the next block is a heartbeat that gives the stream's last position. Returns the position.
async fn beat(stream: &mut Stream) -> String {
    let last = stream.last_event_id.clone();
    let event = stream.event().await;
    assert_eq!((event.event.as_str(), event.json()), ("stream.position", json!({"position": event.id})));
    assert_eq!(event.id, last);
    event.id
}

on_both_brokers! {
    async fn a_stream_gets_heartbeats_as_often_as_it_asks(world) {
        let gateway = world.gateway_with(|settings| settings.streams.heartbeat = HOUR).await;
        let mut streams = Vec::new();
        for route in ROUTES {
            assert_eq!(open(&gateway, route).await.opened["heartbeat_seconds"], 3600, "{route}");
            let stream = open(&gateway, &format!("{route}heartbeat=5")).await;
            assert_eq!(stream.opened["heartbeat_seconds"], 5, "{route}");
            streams.push(stream);
        }
        // One that shares the broadcaster, and joins last, has no heartbeat of its own.
        let mut other = open(&gateway, ROUTES[0]).await;
        for stream in &mut streams {
            stream.comments(2).await;
        }
        gateway.publish("r", "x").await;
        assert_eq!(other.data().await, "x");
        assert_eq!(other.comment_count(), 0);
    }

    async fn a_stream_gets_heartbeats_as_rarely_as_it_asks(world) {
        let gateway = world.gateway_with(|settings| settings.streams.heartbeat = SHORT).await;
        for route in &ROUTES[..2] {
            let mut rare = open(&gateway, &format!("{route}heartbeat=300")).await;
            let mut other = open(&gateway, route).await;
            assert_eq!(other.opened["heartbeat_seconds"], 0.05);
            other.comments(5).await;
            gateway.publish("r", "x").await;
            rare.data().await;
            assert_eq!(rare.comment_count(), 0, "{route}");
        }
    }

    async fn a_heartbeat_that_a_page_sees_is_the_streams_position(world) {
        let gateway = world.gateway_with(|settings| settings.streams.heartbeat = SHORT).await;
        for route in ROUTES {
            let path = format!("{route}heartbeat_event=true");
            let mut stream = open(&gateway, &path).await;
            let mut plain = open(&gateway, route).await;
            let before = beat(&mut stream).await;
            beat(&mut stream).await;
            plain.comments(2).await;
            if route.starts_with("/v1/hashes") {
                gateway.send(gateway.request(reqwest::Method::PUT, "/v1/hashes/h/fields/f").body("v")).await;
            } else {
                gateway.publish("r", "x").await;
            }
            while stream.event().await.event == "stream.position" {}
            let after = beat(&mut stream).await;
            assert_ne!(before, after, "{route}");
            // A client that comes back with the position of a heartbeat has all that was before.
            let mut resumed = gateway.resume(&path, Some(&before)).await;
            assert_ne!(resumed.event().await.event, "stream.gap", "{route}");
            let resumed = gateway.resume(&path, Some(&after)).await;
            let topic = if route.starts_with("/v1/hashes") { &resumed.opened["hashes"]["h"] } else { &resumed.opened["rooms"]["r"] };
            assert_eq!(topic["resume"], "complete", "{route}");
        }
    }

    async fn a_heartbeat_that_a_page_sees_moves_on_with_events_that_the_stream_skips(world) {
        let gateway = world.gateway_with(|settings| settings.streams.heartbeat = SHORT).await;
        let mut stream = gateway.stream("/v1/rooms/r/stream?heartbeat_event=true&event=wanted").await;
        beat(&mut stream).await;
        let id = gateway.publish("r", "not wanted").await;
        loop {
            let event = stream.event().await;
            assert_eq!(event.event, "stream.position");
            if event.id == id {
                break;
            }
        }
        beat(&mut stream).await;
    }
}
