//! What all callers share: nobody can take all of it.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::as_user;
use crate::auth::{all, at, claims, close, token};
use crate::support::{Gateway, Link, Proxy, World, eventually};

fn admin() -> String {
    token(&claims(&json!({"admin": true})))
}

/// Publishes an event to each of a thousand rooms with long names. Returns the code of the first failure.
async fn publish_to_new_rooms(gateway: &Gateway, user: &str, number: usize) -> Option<Value> {
    let name = |n: usize| format!("{:x<128}", format!("{user}-{number}-{n}-"));
    let rooms: Vec<_> = (0..1000).map(name).collect();
    let batch = json!({"events": [{"rooms": rooms, "data": 1}]});
    let post = gateway.request(Method::POST, "/v1/events").bearer_auth(as_user(user)).json(&batch);
    let (_, answer) = gateway.send(post).await;
    answer["results"][0]["problem"]["code"].as_str().map(Into::into)
}

/// On one broker: the replica remembers rooms alike with both, and it takes a hundred thousand of them.
#[tokio::test]
async fn p7_a_caller_that_publishes_to_very_many_rooms_leaves_room_for_those_of_others() {
    let world = World::embedded();
    let gateway = world
        .gateway_with(|settings| {
            close(settings);
            settings.limits.rate_per_subject = 0;
            settings.limits.rate_per_address = 0;
            settings.limits.rate_total = 0;
        })
        .await;
    let mut batches = 0;
    let code = loop {
        batches += 1;
        if let Some(code) = publish_to_new_rooms(&gateway, "eve", batches).await {
            break code;
        }
    };
    assert_eq!(code, "too_many_written_rooms", "after {batches} batches");
    // Another caller publishes to as many new rooms as a quarter of hers.
    for number in 0..batches / 4 {
        assert_eq!(publish_to_new_rooms(&gateway, "bob", number).await, None);
    }
    let publish = |room: String| {
        let post = gateway.request(Method::POST, &format!("/v1/rooms/{room}/events"));
        gateway.answer(post.bearer_auth(as_user("eve")).body("x"))
    };
    let refused = publish("new".into()).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    let seconds: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=300).contains(&seconds), "{seconds}");
    // Rooms that are remembered are not refused.
    assert_eq!(publish(format!("{:x<128}", "eve-1-0-")).await.status(), StatusCode::CREATED);
    let metrics = gateway.answer(gateway.request(Method::GET, "/metrics").bearer_auth(admin())).await;
    let metrics = metrics.text().await.unwrap();
    let value = |name: &str| metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    assert!(value("roomcast_written_rooms_bytes") > Some(32 << 20), "{metrics}");
    let refused = value("roomcast_rejected_total{limit=\"written_rooms\",kind=\"event\"}");
    assert!(refused > Some(1), "{metrics}");
}

on_both_brokers! {
    async fn the_openapi_document_counts_for_the_limit_of_its_address(world) {
        let gateway = world.gateway_with(|settings| {
            close(settings);
            settings.limits.rate_per_address = 4;
        }).await;
        for path in ["/openapi.json", "/openapi-3.2.json"] {
            let problem = eventually("it is refused", async || {
                let (status, problem) = gateway.get(path).await;
                (status == StatusCode::TOO_MANY_REQUESTS).then_some(problem)
            }).await;
            assert_eq!(problem["code"], "too_many_requests");
        }
        assert_eq!(gateway.get("/livez").await.0, StatusCode::OK);
        // The document counts as more requests than there are left for one address.
        let answer = eventually("it is served again", async || {
            let answer = gateway.answer(gateway.request(Method::GET, "/openapi.json")).await;
            (answer.status() == StatusCode::OK).then_some(answer)
        }).await;
        let left: u64 = answer.headers()["ratelimit"].to_str().unwrap().rsplit('=').next().unwrap().parse().unwrap();
        assert!(left <= 4, "{left} of 8 requests are left");
    }

    async fn p10_removals_bans_and_revocations_are_accepted_while_the_memory_is_full(world) {
        let gateway = world.gateway_with(|settings| {
            close(settings);
            settings.limits.rate_per_subject = 0;
            settings.embedded.max_bytes = 2_000_000;
        }).await;
        let mut stream = gateway.stream(&format!("/v1/rooms/lobby/stream?access_token={}", as_user("eve"))).await;
        if let Some(redis) = &world.redis {
            redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
        }
        // First large events fill the memory, then the smallest.
        for bytes in [50_000, 1] {
            let mut rooms = 0;
            let problem = eventually("the memory is full", async || {
                rooms += 1;
                let post = gateway.request(Method::POST, &format!("/v1/rooms/r{bytes}-{rooms}/events"));
                let (status, problem) = gateway.send(post.bearer_auth(as_user("eve")).body("x".repeat(bytes))).await;
                (status == StatusCode::SERVICE_UNAVAILABLE).then_some(problem)
            }).await;
            assert_eq!(problem["code"], "out_of_memory", "{problem}");
        }
        let revoked = token(&json!({"sub": "eve", "jti": "one", "exp": at(600), "aud": "roomcast.example", "roomcast": all()}));
        let read = || gateway.send(gateway.request(Method::GET, "/v1/rooms").bearer_auth(&revoked));
        assert_eq!(read().await.0, StatusCode::OK);
        for path in [
            "/v1/users/eve/streams?deny_seconds=600".to_owned(),
            "/v1/rooms/lobby/subscribers/sam?deny_seconds=600".into(),
            "/v1/tokens/one".into(),
        ] {
            let (status, problem) = gateway.send(gateway.request(Method::DELETE, &path).bearer_auth(admin())).await;
            assert_eq!(status.as_u16(), 204, "{path}: {problem}");
        }
        let end = stream.event().await;
        assert_eq!((end.event.as_str(), end.json()["reason"].as_str()), ("stream.end", Some("removed")));
        eventually("the token is revoked", async || (read().await.0 == StatusCode::UNAUTHORIZED).then_some(())).await;
    }
}

/// On one broker: the embedded one is not far away.
#[tokio::test]
async fn p7_streams_of_one_caller_that_wait_for_each_other_all_open() {
    let world = World::redis().await;
    let proxy = Proxy::to(world.redis.as_ref().unwrap().port()).await;
    let gateway = world
        .gateway_with(|settings| {
            close(settings);
            settings.redis.url = Some(proxy.url().parse().unwrap());
        })
        .await;
    proxy.set(Link::Delay(Duration::from_millis(60)));
    // Together they take longer than one stream may take.
    let gateway = &gateway;
    let opening = (0..100).map(async |n| {
        let path = format!("/v1/rooms/r{n}/stream?recent=5&access_token={}", as_user("ann"));
        gateway.stream(&path).await
    });
    let streams = join_all(opening).await;
    let refused: Vec<_> =
        streams.iter().map(|stream| &stream.opened["reason"]).filter(|it| !it.is_null()).collect();
    assert!(refused.is_empty(), "{refused:?}");
}
