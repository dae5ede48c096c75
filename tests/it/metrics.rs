//! Metrics: their values, and access to them.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use super::auth::{claims, close, token};
use crate::support::{Gateway, eventually, free_port};

pub async fn text(gateway: &Gateway) -> String {
    gateway.answer(gateway.request(Method::GET, "/metrics")).await.text().await.unwrap()
}

/// The value of a series.
pub fn value(text: &str, series: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
    value.unwrap_or_else(|| panic!("no {series} in {text}"))
}

on_both_brokers! {
    async fn events_streams_and_failures_are_counted_and_no_label_grows_with_rooms(world) {
        let gateway = world.gateway().await;
        let before = text(&gateway).await;
        assert_eq!(value(&before, "roomcast_streams"), 0);
        let mut streams = Vec::new();
        for n in 0..30 {
            let mut stream = gateway.room(&format!("room-{n}")).await;
            gateway.publish(&format!("room-{n}"), "hello").await;
            stream.event().await;
            streams.push(stream);
        }
        let mut several = gateway.stream("/v1/stream?room=room-0&room=room-1").await;
        gateway.publish("room-0", "more").await;
        several.event().await;
        // The room never gave out this position: a gap, and then the events of the log.
        let mut unknown = gateway.resume("/v1/rooms/room-2/stream", Some("1-7")).await;
        assert_eq!(unknown.event().await.event, "stream.gap");
        unknown.event().await;
        gateway.get("/nowhere").await;
        let text = text(&gateway).await;
        assert!(text.trim_end().ends_with("# EOF"), "{text}");
        assert_eq!(value(&text, "roomcast_events_published_total"), 31);
        assert_eq!(value(&text, "roomcast_publish_seconds_count"), 31);
        assert_eq!(value(&text, "roomcast_events_delivered_total"), 33);
        assert!(value(&text, "roomcast_delivery_lag_seconds_count") >= 1);
        assert_eq!(value(&text, "roomcast_streams_opened_total"), 32);
        assert_eq!(value(&text, "roomcast_gaps_total{reason=\"unknown_position\"}"), 1);
        assert_eq!(value(&text, "roomcast_problems_total{code=\"route_not_found\"}"), 1);
        assert_eq!(value(&text, "roomcast_broker_commands_up"), 1);
        assert_eq!(value(&text, "roomcast_draining"), 0);
        let publishes = "roomcast_http_requests_total{method=\"POST\",route=\"/v1/rooms/{room}/events\",status=\"201\"}";
        assert_eq!(value(&text, publishes), 31);
        assert!(!text.contains("room-") && !text.contains("nowhere"), "{text}");
        drop((streams, several, unknown));
        eventually("the ends of the streams are counted", async || {
            let text = self::text(&gateway).await;
            let ended = text.contains("roomcast_streams_ended_total{reason=\"disconnected\"} 32");
            (ended && value(&text, "roomcast_streams") == 0).then_some(())
        }).await;
    }
}

#[tokio::test]
async fn metrics_need_a_token_with_admin_or_a_separate_listener() {
    let port = free_port();
    let gateway = Gateway::start(|settings| {
        close(settings);
        settings.server.metrics_listen = Some(format!("127.0.0.1:{port}").parse().unwrap());
    })
    .await;
    let status = async |token: &str| {
        gateway.send(gateway.request(Method::GET, "/metrics").bearer_auth(token)).await.0.as_u16()
    };
    assert_eq!(gateway.get("/metrics").await.0.as_u16(), 401);
    assert_eq!(status(&token(&claims(&super::auth::all()))).await, 403);
    assert_eq!(status(&token(&claims(&json!({"admin": true})))).await, 200);
    let separate = async |path: &str| reqwest::get(format!("http://127.0.0.1:{port}{path}")).await.unwrap();
    let answer = separate("/metrics").await;
    assert_eq!(answer.status(), 200);
    assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("application/openmetrics-text"));
    assert!(answer.text().await.unwrap().contains("roomcast_build_info"));
    for path in ["/v1/rooms", "/livez", "/", "/openapi.json"] {
        assert_eq!(separate(path).await.status(), 404, "{path}");
    }
}

#[tokio::test]
async fn metrics_without_keys_are_scraped_by_any_address_that_reaches_their_listener() {
    // The port of a listener that other machines can reach, and of one that only this machine can.
    for (listen, host, expected) in [
        ("0.0.0.0", "10.0.0.5:9100", 200),
        ("0.0.0.0", "replica-1:9100", 200),
        ("127.0.0.1", "localhost:9100", 200),
        ("127.0.0.1", "rebound.example:9100", 403),
    ] {
        let port = free_port();
        let gateway = Gateway::start(|settings| {
            settings.server.metrics_listen = Some(format!("{listen}:{port}").parse().unwrap());
        });
        let gateway = gateway.await;
        gateway.until_well().await;
        let request = reqwest::Client::new().get(format!("http://127.0.0.1:{port}/metrics")).header("host", host);
        assert_eq!(request.send().await.unwrap().status().as_u16(), expected, "{listen} {host}");
        // The main listener, which only this machine can reach, answers to no foreign name.
        let request = gateway.request(Method::GET, "/metrics").header("host", host);
        let is_local = host.starts_with("localhost");
        assert_eq!(gateway.send(request).await.0.as_u16(), if is_local { 200 } else { 403 }, "{host}");
    }
}

#[tokio::test]
async fn routes_for_admins_can_have_a_separate_listener() {
    let port = free_port();
    let gateway = Gateway::start(|settings| {
        close(settings);
        settings.server.admin_listen = Some(format!("127.0.0.1:{port}").parse().unwrap());
    })
    .await;
    let admin = token(&claims(&json!({"admin": true})));
    let main = format!("http://{}", gateway.address());
    let separate = format!("http://127.0.0.1:{port}");
    let status = async |url: &str, method: Method, path: &str, token: &str| {
        let request = reqwest::Client::new().request(method, format!("{url}{path}")).bearer_auth(token);
        request.send().await.unwrap().status().as_u16()
    };
    for (method, path, refused, done) in [
        (Method::GET, "/v1/replicas", 404, 200),
        (Method::DELETE, "/v1/users/ann/streams", 404, 204),
        (Method::DELETE, "/v1/tokens/t1", 404, 204),
        (Method::DELETE, "/v1/rooms/lobby/subscribers/ann", 404, 204),
        // Other methods of this route are for everyone.
        (Method::DELETE, "/v1/rooms/lobby/events", 405, 204),
    ] {
        assert_eq!(status(&main, method.clone(), path, &admin).await, refused, "{path}");
        assert_eq!(status(&separate, method.clone(), path, &admin).await, done, "{path}");
        assert_eq!(status(&separate, method, path, &token(&claims(&super::auth::all()))).await, 403, "{path}");
    }
    assert_eq!(status(&main, Method::GET, "/v1/rooms/lobby/subscribers", &admin).await, 200);
    for path in ["/v1/rooms", "/livez", "/metrics"] {
        assert_eq!(status(&separate, Method::GET, path, &admin).await, 404, "{path}");
    }
    for (url, method, expected) in
        [(&main, Method::GET, 200), (&separate, Method::GET, 405), (&separate, Method::POST, 405)]
    {
        assert_eq!(status(url, method, "/v1/rooms/lobby/events", &admin).await, expected);
    }
    crate::cli::refuses(&["--admin-listen", "0.0.0.0:9"], &["--admin-listen", "--insecure-allow-anonymous"]);
}

/// The names of metrics in a text, without the suffixes of their types.
fn names(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_lowercase() || c == '_';
    let names = text.split(|c| !word(c)).filter(|name| name.starts_with("roomcast_"));
    let without_suffix = |name: &str| {
        let suffixes = ["_total", "_bucket", "_count", "_sum", "_info"];
        suffixes.iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name).to_owned()
    };
    names.map(without_suffix).collect()
}

#[tokio::test]
async fn the_dashboard_shows_every_metric_and_no_others() {
    let gateway = Gateway::start(|_| {}).await;
    let mut stream = gateway.room("lobby").await;
    gateway.publish("lobby", "hello").await;
    stream.event().await;
    gateway.resume("/v1/rooms/lobby/stream", Some("1-7")).await.event().await;
    gateway.get("/nowhere").await;
    let served = eventually("a stream's end is counted", async || {
        let text = text(&gateway).await;
        text.contains("streams_ended").then_some(text)
    })
    .await;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/grafana.json");
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut shown = String::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            shown += target["expr"].as_str().unwrap();
            shown.push('\n');
        }
    }
    let (shown, served) = (names(&shown), names(&served));
    assert_eq!(shown, served);
}
