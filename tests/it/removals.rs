//! Somebody is removed: the stream ends wherever it is, and its owner is kept out.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::auth::{all, at, claims, close, token};
use crate::support::{Gateway, Link, Proxy, SseEvent, Stream, World, eventually};

fn as_user(user: &str) -> String {
    let mut claims = claims(&all());
    claims["sub"] = json!(user);
    token(&claims)
}

fn admin() -> String {
    token(&json!({"sub": "mod", "exp": at(600), "aud": "roomcast.example", "roomcast": {"admin": true}}))
}

async fn closed(world: &World) -> Gateway {
    world
        .gateway_with(|settings| {
            close(settings);
            settings.presence.grace = Duration::from_mins(10);
        })
        .await
}

async fn remove(gateway: &Gateway, path: &str) {
    let (status, problem) = gateway.send(gateway.request(Method::DELETE, path).bearer_auth(admin())).await;
    assert_eq!(status.as_u16(), 204, "{path}: {problem}");
}

/// How a stream ends.
async fn end(stream: &mut Stream) -> Value {
    loop {
        let event = stream.event().await;
        if event.event == "stream.end" {
            return event.json();
        }
    }
}

/// How a stream would be answered now.
async fn answered(gateway: &Gateway, path: &str) -> u16 {
    gateway.answer(gateway.request(Method::GET, path)).await.status().as_u16()
}

on_both_brokers! {
    async fn who_is_removed_for_a_time_is_kept_out_whatever_name_it_takes(world) {
        let gateway = closed(&world).await;
        let (ann, bob) = (as_user("ann"), as_user("bob"));
        let path = |room: &str, name: &str, token: &str| format!("/v1/rooms/{room}/stream?subscriber={name}&access_token={token}");
        let mut removed = gateway.stream(&path("lobby", "one", &ann)).await;
        let mut same_owner = gateway.stream(&path("lobby", "two", &ann)).await;
        let mut elsewhere = gateway.stream(&path("news", "one", &ann)).await;
        let mut several = gateway.stream(&format!("/v1/stream?room=news&room=lobby&subscriber=three&access_token={ann}")).await;
        let mut other = gateway.stream(&path("lobby", "b", &bob)).await;
        remove(&gateway, "/v1/rooms/lobby/subscribers/one?deny_seconds=600").await;
        for stream in [&mut removed, &mut same_owner, &mut several] {
            assert_eq!(end(stream).await, json!({"reason": "removed", "reconnect": "never"}));
            assert!(stream.next().await.is_none());
        }
        for name in ["one", "two", "another"] {
            assert_eq!(answered(&gateway, &path("lobby", name, &ann)).await, 204, "what an EventSource gives up at");
        }
        assert_eq!(answered(&gateway, &format!("/v1/stream?room=news&room=lobby&access_token={ann}")).await, 204);
        // It has left at once, is not kept from other rooms, and nobody else is kept from this one.
        eventually("only the other is there", async || {
            let list = gateway.send(gateway.request(Method::GET, "/v1/rooms/lobby/subscribers").bearer_auth(&bob)).await.1;
            let list = list["subscribers"].as_array().unwrap();
            (list.len() == 1 && list[0]["user"] == "bob").then_some(())
        }).await;
        let publish = |room: &str| gateway.request(Method::POST, &format!("/v1/rooms/{room}/events")).bearer_auth(&bob).body("hello");
        gateway.send(publish("lobby")).await;
        gateway.send(publish("news")).await;
        assert_eq!(other.data().await, "hello");
        assert_eq!(elsewhere.data().await, "hello");
    }

    async fn who_is_removed_without_a_time_may_come_back(world) {
        let gateway = closed(&world).await;
        let path = format!("/v1/rooms/lobby/stream?subscriber=one&access_token={}", as_user("ann"));
        let mut stream = gateway.stream(&path).await;
        remove(&gateway, "/v1/rooms/lobby/subscribers/one").await;
        assert_eq!(end(&mut stream).await, json!({"reason": "removed", "reconnect": "later"}));
        gateway.stream(&path).await;
    }

    async fn who_is_removed_is_told_so_before_its_own_leave(world) {
        let gateway = world.gateway().await;
        let mentions_leave = |event: &SseEvent| event.event == "presence.leave" || event.data.contains("presence.leave");
        let mut streams = Vec::new();
        for n in 0..40 {
            // A stream of many rooms is written by a task of its own, one of a single room by its room's.
            let path = if n % 2 == 0 { format!("rooms/r{n}/stream?") } else { format!("stream?room=r{n}&room=lobby&") };
            streams.push(gateway.stream(&format!("/v1/{path}presence=true&subscriber=sam-{n}")).await);
        }
        // By now the coming of the first is long told, so that its going is told at once.
        for (n, stream) in streams.iter_mut().enumerate() {
            let path = format!("/v1/rooms/r{n}/subscribers/sam-{n}");
            assert_eq!(gateway.send(gateway.request(Method::DELETE, &path)).await.0.as_u16(), 204);
            loop {
                let event = stream.event().await;
                if event.event == "stream.end" {
                    break;
                }
                let is_own = mentions_leave(&event) && event.data.contains(&format!("\"sam-{n}\""));
                assert!(!is_own, "{event:?}");
            }
        }
    }

    async fn without_a_token_the_address_is_kept_out_and_open_streams_from_it_go_on(world) {
        let gateway = world.gateway().await;
        let mut removed = gateway.stream("/v1/rooms/lobby/stream?subscriber=one").await;
        let mut neighbour = gateway.stream("/v1/rooms/lobby/stream?subscriber=two").await;
        let path = "/v1/rooms/lobby/subscribers/one?deny_seconds=1";
        assert_eq!(gateway.send(gateway.request(Method::DELETE, path)).await.0.as_u16(), 204);
        assert_eq!(end(&mut removed).await["reason"], "removed");
        eventually("no other name slips past", async || {
            (answered(&gateway, "/v1/rooms/lobby/stream?subscriber=three").await == 204).then_some(())
        }).await;
        gateway.publish("lobby", "hello").await;
        assert_eq!(neighbour.data().await, "hello");
        eventually("the time is over", async || {
            (answered(&gateway, "/v1/rooms/lobby/stream?subscriber=one").await == 200).then_some(())
        }).await;
    }

    async fn who_is_away_when_it_is_removed_is_kept_out_by_what_it_is(world) {
        let gateway = world.gateway_with(|settings| settings.presence.grace = Duration::from_mins(10)).await;
        drop(gateway.stream("/v1/rooms/lobby/stream?subscriber=sam").await);
        let path = "/v1/rooms/lobby/subscribers/sam?deny_seconds=600";
        assert_eq!(gateway.send(gateway.request(Method::DELETE, path)).await.0.as_u16(), 204);
        for name in ["sam", "other"] {
            eventually("it is kept out", async || {
                (answered(&gateway, &format!("/v1/rooms/lobby/stream?subscriber={name}")).await == 204).then_some(())
            }).await;
        }
        let gateway = closed(&world).await;
        drop(gateway.stream(&format!("/v1/rooms/team/stream?subscriber=sam&access_token={}", as_user("ann"))).await);
        remove(&gateway, "/v1/rooms/team/subscribers/sam?deny_seconds=600").await;
        let path = |user: &str| format!("/v1/rooms/team/stream?subscriber=sam&access_token={}", as_user(user));
        eventually("its owner is kept out", async || (answered(&gateway, &path("ann")).await == 204).then_some(())).await;
        // And whoever takes the name then is not.
        eventually("the name is free", async || (answered(&gateway, &path("bob")).await == 200).then_some(())).await;
    }

    async fn all_streams_of_a_user_end(world) {
        let gateway = closed(&world).await;
        let (ann, bob) = (as_user("ann"), as_user("bob"));
        let mut streams = Vec::new();
        for path in ["/v1/rooms/a/stream?", "/v1/rooms/b/stream?subscriber=x&", "/v1/stream?room=a&room=c&"] {
            streams.push(gateway.stream(&format!("{path}access_token={ann}")).await);
        }
        let mut other = gateway.stream(&format!("/v1/rooms/a/stream?access_token={bob}")).await;
        remove(&gateway, "/v1/users/ann/streams?deny_seconds=600").await;
        for stream in &mut streams {
            assert_eq!(end(stream).await, json!({"reason": "removed", "reconnect": "never"}));
        }
        assert_eq!(answered(&gateway, &format!("/v1/rooms/z/stream?access_token={ann}")).await, 204);
        gateway.send(gateway.request(Method::POST, "/v1/rooms/a/events").bearer_auth(&ann).body("hello")).await;
        assert_eq!(other.data().await, "hello", "what else its token grants is not about streams");
    }

    async fn p10_a_revoked_token_is_not_taken_and_its_streams_end(world) {
        let gateway = closed(&world).await;
        let with_id = |id: &str| {
            let mut claims = claims(&all());
            claims["jti"] = json!(id);
            token(&claims)
        };
        let (revoked, other) = (with_id("t/1"), with_id("t/2"));
        let path = |token: &str| format!("/v1/rooms/lobby/stream?access_token={token}");
        let mut stream = gateway.stream(&path(&revoked)).await;
        let mut goes_on = gateway.stream(&path(&other)).await;
        remove(&gateway, "/v1/tokens/t%2F1").await;
        assert_eq!(end(&mut stream).await, json!({"reason": "token_revoked", "reconnect": "never"}));
        let (status, code) = crate::auth::ask(&gateway, Method::GET, "/v1/rooms/lobby/events", None, &revoked).await;
        assert_eq!((status, code.as_str()), (401, "token_invalid"));
        gateway.send(gateway.request(Method::POST, "/v1/rooms/lobby/events").bearer_auth(&other).body("hello")).await;
        assert_eq!(goes_on.data().await, "hello");
    }
}

#[tokio::test]
async fn p10_a_removal_reaches_every_replica_also_one_that_was_cut_off() {
    let world = World::redis().await;
    let redis = world.redis.as_ref().unwrap();
    let proxy = Proxy::to(redis.port()).await;
    let near = closed(&world).await;
    let far = Gateway::start(|settings| {
        close(settings);
        settings.redis.url = Some(proxy.url().parse().unwrap());
    });
    let far = far.await;
    far.until_well().await;
    let ann = as_user("ann");
    let path = |room: &str| format!("/v1/rooms/{room}/stream?subscriber=one&access_token={ann}");
    let mut stream = far.stream(&path("lobby")).await;
    let mut cut_off = far.stream(&path("news")).await;
    remove(&near, "/v1/rooms/lobby/subscribers/one?deny_seconds=600").await;
    assert_eq!(end(&mut stream).await["reason"], "removed");
    for gateway in [&near, &far] {
        eventually("it is kept out everywhere", async || {
            (answered(gateway, &path("lobby")).await == 204).then_some(())
        })
        .await;
    }
    proxy.set(Link::Cut);
    remove(&near, "/v1/rooms/news/subscribers/one?deny_seconds=600").await;
    proxy.set(Link::Pass);
    assert_eq!(end(&mut cut_off).await["reason"], "removed");
    // A replica that starts later knows of it too.
    let late = closed(&world).await;
    assert_eq!(answered(&late, &path("news")).await, 204);
}

#[tokio::test]
async fn a_removal_that_redis_refuses_is_said_to_be_none() {
    let world = World::redis().await;
    let gateway = closed(&world).await;
    let redis = world.redis.as_ref().unwrap();
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let request = gateway.request(Method::DELETE, "/v1/users/ann/streams?deny_seconds=600").bearer_auth(admin());
    let (status, problem) = gateway.send(request).await;
    assert_eq!((status.as_u16(), &problem["code"]), (503, &json!("out_of_memory")));
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    // Those whose time has passed are dropped, and those that hold are not.
    for until in ["1", "99999999999999"] {
        redis.cli(&[
            "XADD",
            "roomcast:removals",
            &format!("{until}-1"),
            "r",
            &format!("{{\"user\":\"u{until}\",\"until\":{until}}}"),
        ]);
    }
    assert_eq!(redis.cli(&["XLEN", "roomcast:removals"]).trim(), "2");
    let path = format!("/v1/rooms/lobby/stream?access_token={}", as_user("u99999999999999"));
    eventually("the one that holds is known", async || (answered(&gateway, &path).await == 204).then_some(()))
        .await;
}

#[tokio::test]
async fn a_removal_is_answered_once_it_is_stored() {
    let mut world = World::redis().await;
    let gateway = closed(&world).await;
    let path = "/v1/users/ann/streams?deny_seconds=600";
    world.redis.as_mut().unwrap().kill();
    let (status, problem) = gateway.send(gateway.request(Method::DELETE, path).bearer_auth(admin())).await;
    assert_eq!(status.as_u16(), 503, "{problem}");
    drop(gateway);

    let folder = tempfile::tempdir().unwrap();
    let start = async || {
        let gateway = Gateway::start(|settings| {
            close(settings);
            settings.embedded.data_dir = Some(folder.path().into());
        });
        gateway.await
    };
    let gateway = start().await;
    remove(&gateway, path).await;
    gateway.stop().await.unwrap();
    let gateway = start().await;
    assert_eq!(answered(&gateway, &format!("/v1/rooms/a/stream?access_token={}", as_user("ann"))).await, 204);
}
