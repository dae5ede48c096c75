//! How the response of a stream ends: properly, or by a cut (`end=cut`) for clients that reconnect only after an error.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::auth::{all, claims, close, token};
use crate::support::{EventSource, Gateway, eventually, within};

const ROUTES: [&str; 2] = ["/v1/rooms/lobby/stream?", "/v1/stream?room=lobby&"];

/// A stream as bytes, so that the end of its response can be observed.
struct RawStream {
    response: reqwest::Response,
    parser: EventSource,
}

/// How a response ended.
#[derive(Debug, PartialEq)]
enum Ended {
    Properly,
    ByACut,
}

impl RawStream {
    async fn open(gateway: &Gateway, path: &str) -> Self {
        let response = gateway.answer(gateway.request(Method::GET, path)).await;
        assert_eq!(response.status(), 200, "{path}");
        Self { response, parser: EventSource::default() }
    }

    /// Reads up to an event with this name.
    async fn read_until(&mut self, name: &str) {
        loop {
            let bytes = within("an event", self.response.chunk()).await.unwrap().expect("the stream goes on");
            if self.parser.feed(&bytes).iter().any(|event| event.event == name) {
                return;
            }
        }
    }

    /// Reads to the end. Returns the data of the last event, which is `stream.end`, and how the response ended.
    async fn end(mut self) -> (Value, Ended) {
        let mut events = Vec::new();
        let reading = async {
            loop {
                match self.response.chunk().await {
                    Ok(Some(bytes)) => events.extend(self.parser.feed(&bytes)),
                    Ok(None) => return Ended::Properly,
                    Err(_) => break,
                }
            }
            // With this header, `fetch` in Node takes a cut body for a complete one.
            assert!(!self.response.headers().contains_key("connection"));
            Ended::ByACut
        };
        let ended = within("the end of the response", reading).await;
        let last = events.last().expect("a stream has an end");
        assert_eq!(last.event, "stream.end");
        (last.json(), ended)
    }
}

async fn remove(gateway: &Gateway, query: &str) {
    let path = format!("/v1/rooms/lobby/subscribers/ann{query}");
    let (status, problem) = gateway.send(gateway.request(Method::DELETE, &path)).await;
    assert_eq!(status, 204, "{problem}");
}

on_both_brokers! {
    async fn a_stream_with_end_cut_is_cut_after_its_last_block(world) {
        let gateway = world.gateway().await;
        for route in ROUTES {
            for (query, expected) in [("end=cut&", Ended::ByACut), ("", Ended::Properly)] {
                let mut stream = RawStream::open(&gateway, &format!("{route}{query}subscriber=ann")).await;
                gateway.publish("lobby", "before").await;
                stream.read_until("message").await;
                remove(&gateway, "").await;
                let end = json!({"reason": "removed", "reconnect": "later"});
                assert_eq!(stream.end().await, (end, expected), "{route}{query}");
            }
        }
    }

    async fn a_stream_with_end_cut_is_cut_at_the_end_of_its_lifetime_and_of_the_replica(world) {
        let lifetime = Duration::from_millis(100);
        let short = world.gateway_with(|settings| settings.streams.lifetime = lifetime).await;
        let gateway = world.gateway().await;
        for route in ROUTES {
            let stream = RawStream::open(&short, &format!("{route}end=cut")).await;
            let expected = json!({"reason": "lifetime", "reconnect": "now"});
            assert_eq!(stream.end().await, (expected, Ended::ByACut), "{route}");
        }
        let mut streams = Vec::new();
        for route in ROUTES {
            streams.push(RawStream::open(&gateway, &format!("{route}end=cut")).await);
        }
        gateway.leave();
        for stream in streams {
            assert_eq!(stream.end().await, (json!({"reason": "draining", "reconnect": "now"}), Ended::ByACut));
        }
    }

    async fn a_stream_with_end_cut_ends_properly_if_its_client_should_not_reconnect(world) {
        let gateway = world.gateway().await;
        let stream = RawStream::open(&gateway, "/v1/rooms/lobby/stream?end=cut&subscriber=ann").await;
        remove(&gateway, "?deny_seconds=1").await;
        let expected = json!({"reason": "removed", "reconnect": "never"});
        assert_eq!(stream.end().await, (expected, Ended::Properly));
    }

    async fn a_refused_stream_with_end_cut_is_cut_after_its_last_block(world) {
        let gateway = world.gateway_with(|settings| {
            close(settings);
            settings.limits.max_streams_per_subject = 1;
        }).await;
        let user = format!("access_token={}", token(&claims(&all())));
        let _open = gateway.stream(&format!("/v1/rooms/lobby/stream?{user}")).await;
        for route in ROUTES {
            for (query, expected) in [("end=cut&", Ended::ByACut), ("", Ended::Properly)] {
                let refused = RawStream::open(&gateway, &format!("{route}{query}{user}")).await;
                let end = json!({"reason": "too_many_streams", "reconnect": "later"});
                assert_eq!(refused.end().await, (end, expected), "{route}{query}");
            }
        }
    }

    async fn an_end_that_no_stream_has_is_refused(world) {
        let gateway = world.gateway().await;
        for route in ROUTES {
            let (status, problem) = gateway.get(&format!("{route}end=never")).await;
            assert_eq!((status.as_u16(), &problem["code"]), (400, &json!("invalid_query")), "{route}");
        }
    }
}

#[tokio::test]
async fn a_stream_with_end_cut_that_finds_too_many_connections_is_cut() {
    let gateway = Gateway::start(|settings| settings.requests.max_connections = 1).await;
    let _open = gateway.room("lobby").await;
    for route in ROUTES {
        let stream = RawStream::open(&gateway, &format!("{route}end=cut")).await;
        let expected = json!({"reason": "too_many_connections", "reconnect": "later"});
        assert_eq!(stream.end().await, (expected, Ended::ByACut), "{route}");
    }
}

#[tokio::test]
async fn a_stream_with_end_cut_that_a_replica_refuses_while_it_shuts_down_is_cut() {
    let gateway = Gateway::start(|settings| settings.shutdown.drain_delay = Duration::from_mins(10)).await;
    // A replica without connections does not wait for the delay.
    let _open = gateway.room("lobby").await;
    gateway.leave();
    eventually("it is not ready", async || (gateway.get("/readyz").await.0 == 503).then_some(())).await;
    for route in ROUTES {
        let stream = RawStream::open(&gateway, &format!("{route}end=cut")).await;
        assert_eq!(
            stream.end().await,
            (json!({"reason": "draining", "reconnect": "now"}), Ended::ByACut),
            "{route}"
        );
    }
}
