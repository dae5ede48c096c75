//! Limits of each caller: requests a second over all replicas, and open streams.

mod answers;
mod bodies;
mod budgets;
mod costs;
mod hostile;
mod logs;
mod shares;

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::{Method, RequestBuilder, StatusCode};
use roomcast::config::Settings;
use roomcast::rate_limit::RateFailure;
use serde_json::{Value, json};

use crate::auth::{all, claims, close, token};
use crate::support::{Gateway, World, eventually};

/// Closes the gateway, and allows one request a second for each subject: so few that the speed of the test does not
/// matter.
fn few(settings: &mut Settings) {
    close(settings);
    settings.limits.rate_per_subject = 1;
    settings.limits.rate_per_address = 0;
    settings.limits.rate_total = 0;
}

fn as_user(user: &str) -> String {
    let mut claims = claims(&all());
    claims["sub"] = json!(user);
    token(&claims)
}

fn publish(gateway: &Gateway, user: &str) -> RequestBuilder {
    gateway.request(Method::POST, "/v1/rooms/lobby/events").bearer_auth(as_user(user)).body("hello")
}

async fn status(gateway: &Gateway, request: RequestBuilder) -> u16 {
    gateway.send(request).await.0.as_u16()
}

on_both_brokers! {
    async fn responses_have_the_limit_of_the_caller_and_say_when_it_is_spent(world) {
        let gateway = world.gateway_with(few).await;
        let first = gateway.answer(publish(&gateway, "ann")).await;
        assert_eq!(first.status(), StatusCode::CREATED);
        assert_eq!(first.headers()["ratelimit-policy"], "\"subject\";q=2;w=2");
        assert_eq!(first.headers()["ratelimit"], "\"subject\";r=1");
        let refused = eventually("it is refused", async || {
            let answer = gateway.answer(publish(&gateway, "ann")).await;
            (answer.status() == StatusCode::TOO_MANY_REQUESTS).then_some(answer)
        }).await;
        assert_eq!(refused.headers()["retry-after"], "1");
        assert_eq!(refused.headers()["ratelimit"], "\"subject\";r=0");
        let problem: Value = refused.json().await.unwrap();
        assert_eq!(problem["code"], "too_many_requests");
        // Another caller is served.
        assert_eq!(status(&gateway, publish(&gateway, "bob")).await, 201);
        eventually("it is served again", async || (status(&gateway, publish(&gateway, "ann")).await == 201).then_some(())).await;
    }

    async fn each_event_of_a_batch_counts(world) {
        let gateway = world.gateway_with(|settings| {
            few(settings);
            settings.limits.rate_per_subject = 5;
        }).await;
        let batch = |count: usize| {
            let events: Vec<_> = (0..count).map(|n| json!({"room": "lobby", "data": n})).collect();
            gateway.request(Method::POST, "/v1/events").bearer_auth(as_user("ann")).json(&json!({"events": events}))
        };
        let (refused, problem) = gateway.send(batch(12)).await;
        assert_eq!(refused.as_u16(), 429);
        assert!(problem["detail"].as_str().unwrap().contains("10 at most"), "{problem}");
        eventually("eight are stored", async || (status(&gateway, batch(8)).await == 200).then_some(())).await;
        assert_eq!(status(&gateway, batch(8)).await, 429);
    }

    async fn a_batch_over_the_limit_does_not_delay_other_callers(world) {
        let gateway = world.gateway_with(|settings| {
            few(settings);
            settings.limits.rate_per_subject = 0;
            settings.limits.rate_per_address = 20;
        }).await;
        let events: Vec<_> = (0..35).map(|n| json!({"room": "lobby", "data": n})).collect();
        let batch = || gateway.request(Method::POST, "/v1/events").bearer_auth(as_user("ann")).json(&json!({"events": events}));
        eventually("the batch is refused", async || (status(&gateway, batch()).await == 429).then_some(())).await;
        for _ in 0..4 {
            assert_eq!(status(&gateway, publish(&gateway, "bob")).await, 201);
        }
    }

    async fn addresses_and_all_callers_have_limits_and_trusted_proxies_give_the_addresses(world) {
        let gateway = world.gateway_with(|settings| {
            few(settings);
            settings.limits.rate_per_subject = 0;
            settings.limits.rate_per_address = 1;
            settings.limits.trusted_proxy = vec!["127.0.0.0/8".parse().unwrap()];
        }).await;
        let from = |address: &str| publish(&gateway, "ann").header("x-forwarded-for", address);
        eventually("one address is refused", async || (status(&gateway, from("192.0.2.1")).await == 429).then_some(())).await;
        assert_eq!(status(&gateway, from("192.0.2.2")).await, 201);
        assert_eq!(status(&gateway, from("203.0.113.5, 192.0.2.3")).await, 201);
        // A caller with one IPv6 address of a /64 usually has all of them.
        eventually("one network is refused", async || (status(&gateway, from("2001:db8::1")).await == 429).then_some(())).await;
        assert_eq!(status(&gateway, from("2001:db8:0:0:ffff::2")).await, 429);
        assert_eq!(status(&gateway, from("2001:db8:0:1::1")).await, 201);
    }

    async fn requests_with_wrong_tokens_count_for_their_address(world) {
        let gateway = world.gateway_with(|settings| {
            few(settings);
            settings.limits.rate_per_address = 2;
        }).await;
        eventually("it is refused for asking too often", async || {
            let request = gateway.request(Method::GET, "/v1/rooms").bearer_auth("x.y.z");
            (status(&gateway, request).await == 429).then_some(())
        }).await;
    }

    async fn callers_without_a_valid_token_leave_half_of_the_total_to_the_others(world) {
        let gateway = world.gateway_with(|settings| {
            few(settings);
            settings.access.anonymous = vec!["subscribe=lobby".parse().unwrap()];
            settings.limits.rate_per_subject = 0;
            settings.limits.rate_total = 20;
        }).await;
        let read = || gateway.request(Method::GET, "/v1/rooms/lobby");
        for wrong in [None, Some("x.y.z")] {
            let request = || match wrong {
                Some(token) => read().bearer_auth(token),
                None => read(),
            };
            let answers = join_all((0..100).map(|_| gateway.send(request()))).await;
            let others = join_all((0..5).map(|_| status(&gateway, read().bearer_auth(as_user("ann"))))).await;
            assert_eq!(others, [200; 5]);
            let (_, problem) = answers.iter().find(|(status, _)| *status == 429).expect("some are refused");
            assert!(problem["detail"].as_str().unwrap().contains("without a valid token"), "{problem}");
        }
        // The limit of all callers holds for those with a token, too.
        let others = join_all((0..200).map(|_| gateway.send(read().bearer_auth(as_user("ann"))))).await;
        let (_, problem) = others.iter().find(|(status, _)| *status == 429).expect("some are refused");
        assert!(problem["detail"].as_str().unwrap().contains("(--rate-total)"), "{problem}");
    }

    async fn a_stream_over_a_limit_is_told_to_reconnect_later(world) {
        let gateway = world.gateway_with(|settings| {
            few(settings);
            settings.limits.max_streams_per_subject = 2;
            settings.limits.rate_per_subject = 0;
        }).await;
        let path = format!("/v1/rooms/lobby/stream?access_token={}", as_user("ann"));
        let (first, second) = (gateway.stream(&path).await, gateway.stream(&path).await);
        let third = gateway.stream(&path).await;
        assert_eq!(third.opened, json!({"reason": "too_many_streams", "reconnect": "later"}));
        gateway.stream(&format!("/v1/rooms/lobby/stream?access_token={}", as_user("bob"))).await;
        drop(first);
        eventually("another stream is allowed", async || {
            (gateway.stream(&path).await.opened.get("rooms").is_some()).then_some(())
        }).await;
        drop(second);

        let gateway = world.gateway_with(few).await;
        eventually("it is told to reconnect later", async || {
            let stream = gateway.stream(&path).await;
            (stream.opened["reason"] == "too_many_requests" && stream.opened["reconnect"] == "later").then_some(())
        }).await;
    }

    async fn a_gateway_on_loopback_without_keys_has_no_limits(world) {
        let gateway = world.gateway_with(|settings| {
            settings.limits.rate_per_address = 1;
            settings.limits.rate_total = 1;
            settings.limits.max_streams_per_address = 1;
        }).await;
        let mut streams = Vec::new();
        for _ in 0..5 {
            let request = gateway.request(Method::POST, "/v1/rooms/lobby/events").body("hello");
            let answer = gateway.answer(request).await;
            assert_eq!(answer.status(), StatusCode::CREATED);
            assert!(!answer.headers().contains_key("ratelimit"));
            let stream = gateway.room("lobby").await;
            assert!(stream.opened.get("rooms").is_some());
            streams.push(stream);
        }
    }
}

#[tokio::test]
async fn all_replicas_together_have_one_limit() {
    let world = World::redis().await;
    let slow = |settings: &mut Settings| {
        few(settings);
        settings.limits.rate_per_subject = 2;
    };
    let (one, other) = (world.gateway_with(slow).await, world.gateway_with(slow).await);
    let began = std::time::Instant::now();
    let mut stored = 0u32;
    while began.elapsed() < Duration::from_secs(3) {
        for gateway in [&one, &other] {
            stored += u32::from(status(gateway, publish(gateway, "ann")).await == 201);
        }
    }
    // Four at once, and two for each second that has passed. The last requests may have begun another second.
    let most = 4 + 2 * u32::try_from(began.elapsed().as_secs() + 1).unwrap();
    assert!((5..=most).contains(&stored), "{stored} of {most}");
}

#[tokio::test]
async fn while_redis_is_unavailable_requests_pass_or_are_refused_as_configured() {
    let mut world = World::redis().await;
    let with = |failure| {
        move |settings: &mut Settings| {
            few(settings);
            settings.limits.rate_failure = failure;
        }
    };
    let open = world.gateway_with(with(RateFailure::Open)).await;
    let closed = world.gateway_with(with(RateFailure::Closed)).await;
    world.redis.as_mut().unwrap().kill();
    let ask = async |gateway: &Gateway| {
        let request = gateway.request(Method::GET, "/v1/rooms/lobby/stream").bearer_auth(as_user("ann"));
        let answer = gateway.answer(request).await;
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    // In both cases the stream is told to reconnect.
    for gateway in [&open, &closed] {
        let (status, text) = ask(gateway).await;
        assert!(status == 200 && text.contains("\"reason\":\"unavailable\""), "{status} {text}");
    }
    let publish = async |gateway: &Gateway| gateway.send(publish(gateway, "bob")).await.1["detail"].to_string();
    assert!(publish(&closed).await.contains("within its limits"));
    assert!(!publish(&open).await.contains("within its limits"));
    // The replica counts alone: of five at once, two are within the limit.
    let details = join_all((0..5).map(|_| publish(&open))).await;
    let refused = details.iter().filter(|detail| detail.contains("(--rate-per-subject) is reached")).count();
    assert!(refused >= 2, "{details:?}");
}

#[tokio::test]
async fn simultaneous_batches_do_not_pass_a_limit_together() {
    let world = World::redis().await;
    let gateway = world
        .gateway_with(|settings| {
            few(settings);
            settings.limits.rate_per_subject = 100;
        })
        .await;
    let events: Vec<_> = (0..90).map(|n| json!({"room": "lobby", "data": n})).collect();
    let batch = || {
        let request = gateway.request(Method::POST, "/v1/events").bearer_auth(as_user("ann"));
        gateway.send(request.json(&json!({"events": events})))
    };
    let began = std::time::Instant::now();
    let statuses = join_all((0..60).map(|_| batch())).await;
    let stored = 90 * statuses.iter().filter(|(status, _)| *status == StatusCode::OK).count();
    // 200 at once, and 100 for each second that has passed.
    let most = 200 + 100 * usize::try_from(began.elapsed().as_secs() + 1).unwrap();
    assert!((90..=most).contains(&stored), "{stored} of {most}");
}
