//! What only a real Redis can show: formats, keys of other clients, faults, and users with few rights.

mod hash_key;
mod rights;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use roomcast::config::Settings;
use serde_json::{Value, json};

use crate::support::{Gateway, Link, Links, Proxy, RedisServer, Way, World, eventually};

impl World {
    pub fn server(&self) -> &RedisServer {
        self.redis.as_ref().unwrap()
    }
}

#[tokio::test]
async fn redis_cli_and_the_gateway_read_each_others_values() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    let path = "/v1/hashes/lamp/fields/colour";
    gateway.send(gateway.request(Method::PUT, path).body("green")).await;
    assert_eq!(world.server().cli(&["HGET", "roomcast:hash:{lamp}", "colour"]), "green");
    world.server().cli(&["HSET", "roomcast:hash:{lamp}", "colour", "red"]);
    let answer = gateway.answer(gateway.request(Method::GET, path)).await;
    let tag = answer.headers()["etag"].clone();
    assert_eq!(answer.json::<Value>().await.unwrap()["value"], "red");
    // The entity tag is right for a value that redis-cli has set.
    let request = gateway.request(Method::PUT, path).header("if-match", tag).body("blue");
    assert_eq!(gateway.send(request).await.0, 200);
}

#[tokio::test]
async fn redis_cli_reads_the_log_in_the_documented_form() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    let id = gateway.publish_json("form", "chat", json!({"n": 1})).await;
    let entry = world.server().cli(&["XRANGE", "roomcast:{form}:log", "-", "+"]);
    let lines: Vec<_> = entry.lines().collect();
    assert_eq!((lines[0], lines[1]), (id.as_str(), "e"));
    let stored: Value = serde_json::from_str(lines[2]).unwrap();
    assert_eq!((&stored["event"], &stored["data"]), (&json!("chat"), &json!({"n": 1})));
    let info = world.server().cli(&["INFO", "replication"]);
    let replication_id = info.lines().find_map(|line| line.strip_prefix("master_replid:")).unwrap().trim();
    assert_eq!(world.server().cli(&["GET", "roomcast:{form}:head"]), format!("{id} {replication_id}"));
    for key in ["roomcast:{form}:log", "roomcast:{form}:head"] {
        assert!(world.server().cli(&["PTTL", key]).parse::<i64>().unwrap() > 0, "{key} has no lifetime");
    }
}

#[tokio::test]
async fn a_key_of_another_type_is_a_conflict_and_stays_as_it_is() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    world.server().cli(&["SET", "roomcast:hash:{h}", "text"]);
    world.server().cli(&["SET", "roomcast:{r}:log", "text"]);
    let requests = [
        (Method::GET, "/v1/hashes/h", Value::Null),
        (Method::GET, "/v1/hashes/h/fields/f", Value::Null),
        (Method::GET, "/v1/hashes/h?field=f", Value::Null),
        (Method::PUT, "/v1/hashes/h/fields/f", json!({"value": "x"})),
        (Method::PATCH, "/v1/hashes/h", json!({"f": "x"})),
        (Method::DELETE, "/v1/hashes/h", Value::Null),
        (Method::DELETE, "/v1/hashes/h/fields/f", Value::Null),
        (Method::POST, "/v1/hashes/h/fields/f/increment", json!({"by": 1})),
        (Method::POST, "/v1/rooms/r/events", json!({"data": 1})),
        (Method::GET, "/v1/rooms/r/events", Value::Null),
        (Method::GET, "/v1/rooms/r", Value::Null),
        (Method::GET, "/v1/rooms/r/stream", Value::Null),
        (Method::GET, "/v1/stream?room=r&room=fine", Value::Null),
    ];
    for (method, path, body) in requests {
        let request = gateway.request(method.clone(), path);
        let request = if body.is_null() { request } else { request.json(&body) };
        let (status, problem) = gateway.send(request).await;
        assert_eq!((status.as_u16(), &problem["code"]), (409, &json!("wrong_type")), "{method} {path}");
    }
    assert_eq!(world.server().cli(&["GET", "roomcast:hash:{h}"]), "text");
    assert_eq!(world.server().cli(&["GET", "roomcast:{r}:log"]), "text");
}

#[tokio::test]
async fn a_gateway_whose_redis_is_away_starts_says_so_and_recovers_by_itself() {
    let mut server = RedisServer::absent();
    let gateway = Gateway::start(|settings| settings.redis.url = Some(server.url().parse().unwrap())).await;
    let (status, health) = gateway.get("/healthz").await;
    assert_eq!((status.as_u16(), &health["status"]), (503, &json!("degraded")));
    assert_eq!(gateway.get("/readyz").await.0, StatusCode::OK);
    assert_eq!(gateway.get("/livez").await.0, StatusCode::OK);
    let refused = gateway.room("away").await;
    assert_eq!((&refused.opened["reason"], &refused.opened["reconnect"]), (&json!("unavailable"), &json!("later")));
    let begin = Instant::now();
    let answer = gateway.answer(gateway.request(Method::POST, "/v1/rooms/away/events").body("x")).await;
    assert_eq!((answer.status().as_u16(), answer.headers().contains_key("retry-after")), (503, true));
    assert_eq!(answer.json::<Value>().await.unwrap()["code"], "unavailable");
    assert!(begin.elapsed() < Duration::from_secs(5));
    server.come_back().await;
    gateway.until_well().await;
    let mut stream = gateway.room("away").await;
    gateway.publish("away", "back").await;
    assert_eq!(stream.data().await, "back");
}

#[tokio::test]
async fn p8_while_redis_hangs_publishes_are_answered_and_streams_stay_open() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    let mut stream = gateway.room("hangs").await;
    world.server().freeze();
    let begin = Instant::now();
    let (status, problem) = gateway.send(gateway.request(Method::POST, "/v1/rooms/hangs/events").body("x")).await;
    assert_eq!((status.as_u16(), &problem["code"]), (503, &json!("outcome_unknown")));
    assert!(begin.elapsed() < Duration::from_secs(5));
    eventually("the gateway is degraded", async || (gateway.get("/healthz").await.0 == 503).then_some(())).await;
    assert!(begin.elapsed() < Duration::from_secs(10));
    world.server().thaw();
    gateway.until_well().await;
    gateway.publish("hangs", "after").await;
    // The event that was refused may come first: the hung server had received it.
    while stream.data().await != "after" {}
}

/// The list takes a command for each process. Each is answered in time, and all of them together are not.
#[tokio::test]
async fn p8_a_list_of_rooms_that_takes_many_slow_commands_is_answered_in_time() {
    let world = World::redis().await;
    let proxy = Proxy::to(world.server().port()).await;
    let gateway = world.gateway_with(|settings| settings.redis.url = Some(proxy.url().parse().unwrap())).await;
    for process in (0..20).map(|n| format!("other/{n}")) {
        world.server().cli(&["SADD", "roomcast:replicas", &process]);
        world.server().cli(&["SET", &format!("roomcast:replica:{process}"), "{}"]);
    }
    proxy.set(Link::Delay(Duration::from_millis(250)));
    let begin = Instant::now();
    let (status, problem) = gateway.get("/v1/rooms").await;
    assert_eq!((status.as_u16(), &problem["code"]), (503, &json!("unavailable")), "{problem}");
    assert!(begin.elapsed() < Duration::from_secs(7), "{:?}", begin.elapsed());
}

/// The time is compared with that of the failed read, which a fast machine and a slow one share.
#[tokio::test]
async fn p8_the_list_of_rooms_is_back_soon_after_redis_is_however_long_it_has_failed() {
    let world = World::redis().await;
    let proxy = Proxy::to(world.server().port()).await;
    let gateway = world.gateway_with(|settings| settings.redis.url = Some(proxy.url().parse().unwrap())).await;
    proxy.set(Link::Freeze);
    let began = Instant::now();
    assert_eq!(gateway.get("/v1/rooms").await.0, 503);
    let failed_after = began.elapsed();
    proxy.set(Link::Pass);
    gateway.until_well().await;
    let began = Instant::now();
    eventually("the list is back", async || (gateway.get("/v1/rooms").await.0 == 200).then_some(())).await;
    let back_after = began.elapsed();
    assert!(back_after < 3 * failed_after, "it failed after {failed_after:?}, and was back after {back_after:?}");
}

#[tokio::test]
async fn p2_events_published_while_a_replica_was_cut_off_reach_its_subscribers() {
    let world = World::redis().await;
    let proxy = Proxy::to(world.server().port()).await;
    let cut_off = world.gateway_with(|settings| settings.redis.url = Some(proxy.url().parse().unwrap())).await;
    let other = world.gateway().await;
    let mut stream = cut_off.room("cut").await;
    other.publish("cut", "before").await;
    assert_eq!(stream.data().await, "before");
    proxy.set(Link::Cut);
    eventually("the gateway is degraded", async || (cut_off.get("/healthz").await.0 == 503).then_some(())).await;
    for count in 0..150 {
        other.publish("cut", &count.to_string()).await;
    }
    proxy.set(Link::Pass);
    let expected: Vec<_> = (0..150).map(|count| count.to_string()).collect();
    assert_eq!(stream.datas(150).await, expected);
    cut_off.until_well().await;
    other.publish("cut", "live again").await;
    assert_eq!(stream.data().await, "live again");
}

/// The gateway learns only by its next probe, a second later, that the links are back.
#[tokio::test]
async fn p8_a_stream_that_opens_during_a_short_interruption_waits_for_its_end() {
    let world = World::redis().await;
    let proxy = Proxy::to(world.server().port()).await;
    let gateway = world.gateway_with(|settings| settings.redis.url = Some(proxy.url().parse().unwrap())).await;
    let (id, open) = (gateway.publish("known", "before").await, gateway.room("known").await);
    for (links, link) in [
        (Links::PubSub, Link::Cut),
        (Links::PubSub, Link::Drop(Way::ToClient)),
        (Links::Commands, Link::Reset),
        (Links::All, Link::Cut),
    ] {
        gateway.until_well().await;
        proxy.set_only(links, link);
        eventually("the gateway is degraded", async || (gateway.get("/healthz").await.0 == 503).then_some(()))
            .await;
        proxy.set(Link::Pass);
        let paths = [
            "/v1/rooms/known/stream".to_owned(),
            format!("/v1/rooms/known/stream?after={id}"),
            "/v1/rooms/known/stream?from=earliest".to_owned(),
            "/v1/rooms/known/stream?recent=7".to_owned(),
            format!("/v1/rooms/new-{links:?}-{link:?}/stream?subscriber=ann").replace(['(', ')'], ""),
            "/v1/stream?room=known&room=other&subscriber=bob&presence=true".to_owned(),
        ];
        for stream in join_all(paths.iter().map(|path| gateway.stream(path))).await {
            assert!(stream.opened["rooms"].is_object(), "{links:?} {link:?}: {}", stream.opened);
        }
    }
    drop(open);
}

#[tokio::test]
async fn p2_events_published_while_links_were_frozen_reach_subscribers() {
    let world = World::redis().await;
    let proxy = Proxy::to(world.server().port()).await;
    let frozen = world.gateway_with(|settings| settings.redis.url = Some(proxy.url().parse().unwrap())).await;
    let other = world.gateway().await;
    let mut stream = frozen.room("frozen").await;
    proxy.set(Link::Freeze);
    other.publish("frozen", "1").await;
    eventually("the gateway is degraded", async || (frozen.get("/healthz").await.0 == 503).then_some(())).await;
    other.publish("frozen", "2").await;
    proxy.set(Link::Pass);
    assert_eq!(stream.datas(2).await, ["1", "2"]);
}

#[tokio::test]
async fn p2_a_killed_subscription_heals_and_loses_nothing() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    let mut stream = gateway.room("killed").await;
    for count in 0..5 {
        world.server().cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        gateway.publish("killed", &count.to_string()).await;
        assert_eq!(stream.data().await, count.to_string());
    }
}

#[tokio::test]
async fn p4_a_redis_that_comes_back_empty_is_told_by_one_gap() {
    let mut world = World::redis().await;
    let gateway = world.gateway().await;
    let mut stream = gateway.room("emptied").await;
    let id = gateway.publish("emptied", "lost later").await;
    assert_eq!(stream.data().await, "lost later");
    let server = world.redis.as_mut().unwrap();
    server.kill();
    server.come_back().await;
    gateway.until_well().await;
    let gap = stream.event().await;
    assert_eq!((gap.event.as_str(), &gap.json()["reason"]), ("stream.gap", &json!("log_lost")));
    let next = gateway.publish("emptied", "new").await;
    assert_ne!(next, id);
    assert_eq!(stream.data().await, "new");
    // A client that resumes from the old position is told, too.
    let mut stream = gateway.resume("/v1/rooms/emptied/stream", Some(&id)).await;
    assert_eq!(stream.opened["rooms"]["emptied"]["resume"], "gap");
    assert_eq!(stream.event().await.event, "stream.gap");
    assert_eq!(stream.data().await, "new");
}

#[tokio::test]
async fn p4_a_flushed_redis_is_told_by_one_gap() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    let mut stream = gateway.room("flushed").await;
    gateway.publish("flushed", "before").await;
    assert_eq!(stream.data().await, "before");
    world.server().cli(&["FLUSHALL"]);
    gateway.publish("flushed", "after").await;
    let gap = stream.event().await;
    assert_eq!((gap.event.as_str(), &gap.json()["reason"]), ("stream.gap", &json!("log_lost")));
    assert_eq!(stream.data().await, "after");
    // Further losses: a gap does not repeat what an earlier gap has told.
    let mut last_gap = gap.json();
    for _ in 0..2 {
        world.server().cli(&["FLUSHALL"]);
        gateway.publish("flushed", "after").await;
        let gap = stream.event().await;
        assert_eq!(gap.event, "stream.gap");
        let (from, to) = (gap.json()["from"].clone(), last_gap["to"].clone());
        assert!(from.as_str().unwrap() >= to.as_str().unwrap(), "{from} after {to}");
        assert_eq!(stream.data().await, "after");
        last_gap = gap.json();
    }
}

/// A Redis that refuses writes can still be read, so rooms in which nothing happens need no new read.
#[tokio::test]
async fn quiet_rooms_are_not_read_again_while_redis_refuses_writes() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    let mut streams = Vec::new();
    for n in 0..10 {
        gateway.publish(&format!("quiet.{n}"), "x").await;
        streams.push(gateway.room(&format!("quiet.{n}")).await);
    }
    world.server().cli(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    eventually("the gateway is degraded", async || (gateway.get("/healthz").await.0 == 503).then_some(())).await;
    assert_eq!(gateway.get("/v1/rooms").await.0, 200);
    let reads = || {
        let statistics = world.server().cli(&["INFO", "commandstats"]);
        let line = statistics.lines().find_map(|line| line.strip_prefix("cmdstat_xrange:calls=")).unwrap();
        line.split(',').next().unwrap().parse::<u64>().unwrap()
    };
    let before = reads();
    // All rooms are compared at least once in this time.
    tokio::time::sleep(Duration::from_secs(17)).await;
    // Only the removals are read, every 5 s.
    assert!(reads() - before <= 4, "{} reads", reads() - before);
}

#[tokio::test]
async fn p4_a_restart_that_loses_nothing_costs_no_gap() {
    let mut world = World {
        redis: Some(RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await),
        ..World::embedded()
    };
    let gateway = world.gateway().await;
    let mut stream = gateway.room("kept").await;
    let first = gateway.publish("kept", "before").await;
    assert_eq!(stream.data().await, "before");
    let server = world.redis.as_mut().unwrap();
    server.kill();
    server.come_back().await;
    gateway.until_well().await;
    let second = gateway.publish("kept", "after").await;
    assert_eq!(stream.data().await, "after");
    let epoch = |id: &str| id.split_once('-').unwrap().0.to_owned();
    assert_ne!(epoch(&first), epoch(&second), "another server begins another epoch");
    let mut stream = gateway.resume("/v1/rooms/kept/stream", Some(&first)).await;
    assert_eq!(stream.opened["rooms"]["kept"]["resume"], "complete");
    assert_eq!(stream.data().await, "after");
}

#[tokio::test]
async fn p4_an_emptied_log_whose_head_lives_costs_a_quiet_subscriber_no_gap() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    let mut stream = gateway.room("quiet").await;
    let id = gateway.publish("quiet", "last").await;
    assert_eq!(stream.data().await, "last");
    world.server().cli(&["DEL", "roomcast:{quiet}:log"]);
    let mut resumed = gateway.resume("/v1/rooms/quiet/stream", Some(&id)).await;
    assert_eq!(resumed.opened["rooms"]["quiet"]["resume"], "complete");
    gateway.publish("quiet", "next").await;
    assert_eq!(stream.data().await, "next");
    assert_eq!(resumed.data().await, "next");
}

#[tokio::test]
async fn the_head_of_a_room_with_subscribers_is_renewed() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    let _written = gateway.room("written").await;
    let _unwritten = gateway.room("unwritten").await;
    gateway.publish("written", "1").await;
    // A room that was never written to is kept only as long as it has subscribers.
    for (room, renewed) in [("written", 100_000), ("unwritten", 30_000)] {
        let head = format!("roomcast:{{{room}}}:head");
        world.server().cli(&["PEXPIRE", &head, "30000"]);
        eventually("the head is renewed", async || {
            let left: i64 = world.server().cli(&["PTTL", &head]).parse().unwrap();
            (left > renewed).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn p11_malformed_messages_on_a_rooms_channel_are_counted_and_skipped() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    let mut stream = gateway.room("malformed").await;
    let first = gateway.publish("malformed", "1").await;
    let channel = "roomcast:{malformed}:live";
    let next = first.replace("-1", "-2");
    for malformed in [
        "",
        "hello",
        "9007199254740991-5 2\nzz",
        "1-1 5\n{}",
        &format!("{next} 2\n{{}}"),
        &format!("{next} 99\n{{}}"),
        &format!("{next} 3\n{{{{}}"),
    ] {
        world.server().cli(&["PUBLISH", channel, malformed]);
    }
    // A well-formed announcement whose epoch is far in the future.
    let stored = r#"{"text":"x","published_at":"2026-01-01T00:00:00Z"}"#;
    let far = format!("9007199254740991-5 {}\n{stored}", stored.len());
    world.server().cli(&["PUBLISH", channel, &far]);
    gateway.publish("malformed", "2").await;
    assert_eq!(stream.datas(2).await, ["1", "2"]);
    assert!(gateway.get("/healthz").await.1["malformed_announcements"].as_u64().unwrap() >= 8);
}

#[tokio::test]
async fn p11_a_flood_of_forged_announcements_begins_few_epochs() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    let _stream = gateway.room("flood").await;
    let first = gateway.publish("flood", "1").await;
    let epoch: u64 = first.split_once('-').unwrap().0.parse().unwrap();
    let stored = r#"{"text":"forged","published_at":"2026-01-01T00:00:00Z"}"#;
    for n in 1..100 {
        let announcement = format!("{}-1 {}\n{stored}", epoch + n, stored.len());
        world.server().cli(&["PUBLISH", "roomcast:{flood}:live", &announcement]);
    }
    let epochs = || {
        let head = world.server().cli(&["GET", "roomcast:{flood}:head"]);
        head.split(' ').skip(2).filter(|token| token.starts_with(|c: char| c.is_ascii_digit())).count()
    };
    eventually("an epoch begins", async || (epochs() > 0).then_some(())).await;
    // Announcements that still waited may begin one more epoch.
    for count in 0..20 {
        gateway.publish("flood", &count.to_string()).await;
    }
    assert!(epochs() < 5, "{} epochs", epochs());
}

#[tokio::test]
async fn p11_an_announcement_that_conflicts_with_the_log_is_counted_and_the_log_decides() {
    let mut attempts = 0..10;
    // A comparison with the log may find the forgery before the log's own announcement does. Then the test is repeated.
    let (_world, gateway, mut stream, first) = loop {
        attempts.next().expect("in one of ten attempts no comparison comes first");
        let world = World::redis().await;
        let (gateway, other) = (world.gateway().await, world.gateway().await);
        let mut stream = gateway.room("forged").await;
        let first = gateway.publish("forged", "1").await;
        assert_eq!(stream.data().await, "1");
        // The next id, with other content than the log's.
        let next = first.replace("-1", "-2");
        let stored = r#"{"text":"forged","published_at":"2026-01-01T00:00:00Z"}"#;
        let announcement = format!("{next} {}\n{stored}", stored.len());
        world.server().cli(&["PUBLISH", "roomcast:{forged}:live", &announcement]);
        assert_eq!(stream.data().await, "forged");
        if other.publish("forged", "real").await != next {
            continue;
        }
        // A stream that got the forged event is told; a stream that resumes gets the log's event.
        let gap = json!({"room": "forged", "from": first, "to": next, "reason": "diverged"});
        let event = stream.event().await;
        assert_eq!((event.event.as_str(), event.json()), ("stream.gap", gap));
        if gateway.get("/healthz").await.1["malformed_announcements"] == 1 {
            break (world, gateway, stream, first);
        }
    };
    assert_eq!(gateway.publish("forged", "3").await, first.replace("-1", "-3"));
    assert_eq!(stream.data().await, "3");
    eventually("the ring has the log's event", async || {
        let mut resumed = gateway.resume("/v1/rooms/forged/stream", Some(&first)).await;
        (resumed.data().await == "real").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_malformed_head_counts_as_none() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    world.server().cli(&["SET", "roomcast:{head}:head", "malformed"]);
    let id = gateway.publish("head", "1").await;
    assert!(id.ends_with("-1"));
    let mut stream = gateway.stream("/v1/rooms/head/stream?from=earliest").await;
    assert_eq!(stream.data().await, "1");
    // Malformed heads that begin like a valid one.
    let head = world.server().cli(&["GET", "roomcast:{head}:head"]);
    let malformed =
        [format!("{head} malformed"), format!("0{head}"), format!("{head} {head}"), head.replacen('-', "-0", 1)];
    for malformed in malformed {
        world.server().cli(&["SET", "roomcast:{head}:head", &malformed]);
        let (status, room) = gateway.get("/v1/rooms/head").await;
        assert_eq!(status, 200, "{malformed}: {room}");
        gateway.publish("head", "after").await;
        let mut stream = gateway.stream("/v1/rooms/head/stream?from=earliest").await;
        assert_eq!(stream.data().await, "after", "{malformed}");
    }
}

#[tokio::test]
async fn entries_of_other_clients_in_a_log_hide_nothing_and_stop_nothing() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    let first = gateway.publish("others", "1").await;
    let epoch = first.split_once('-').unwrap().0;
    // An id that is not in the history, with a field whose name is not UTF-8.
    let script = "return redis.call('XADD', KEYS[1], ARGV[1], '\\255', 'v')";
    world.server().cli(&["EVAL", script, "1", "roomcast:{others}:log", &format!("{epoch}-2")]);
    let (_, log) = gateway.get("/v1/rooms/others/events").await;
    assert_eq!(log["events"].as_array().unwrap().len(), 1);
    // The next id is taken: entries above the history count as lost, and streams are told.
    let second = gateway.publish("others", "2").await;
    let mut stream = gateway.resume("/v1/rooms/others/stream", Some(&first)).await;
    assert_eq!(stream.event().await.json()["reason"], "lost_tail");
    assert_eq!(stream.data().await, "2");
    // After an id in the far future there would be no room for further ids.
    for far in ["9999999999999999-1", "18446744073709551615-1"] {
        world.server().cli(&["XADD", "roomcast:{others}:log", far, "e", "x"]);
        let id = gateway.publish("others", "3").await;
        let mut stream = gateway.resume("/v1/rooms/others/stream", Some(&second)).await;
        assert_eq!(stream.event().await.event, "stream.gap");
        // Each such entry costs the log its earlier events, which a replica may still have in its ring; each loss is
        // told.
        loop {
            let event = stream.event().await;
            assert!(event.event == "stream.gap" || event.data == "3", "{far}: {event:?}");
            if event.id == id {
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_head_of_another_type_keeps_no_other_room_from_being_compared() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    let mut streams = Vec::new();
    for n in 0..8 {
        streams.push(gateway.room(&format!("compared{n}")).await);
    }
    for n in [0, 3, 5] {
        let head = format!("roomcast:{{compared{n}}}:head");
        world.server().cli(&["DEL", &head]);
        world.server().cli(&["RPUSH", &head, "x"]);
    }
    // Appended, but announced on a channel without subscribers.
    let parts = [
        include_str!("../../src/broker/redis/scripts/log.lua"),
        include_str!("../../src/broker/redis/scripts/append.lua"),
    ];
    let script = parts.concat();
    for n in [1, 2, 4, 6, 7] {
        let keys = ["head", "log", "presence-log"].map(|part| format!("roomcast:{{compared{n}}}:{part}"));
        let stored = r#"{"text":"unannounced","published_at":"2026-01-01T00:00:00Z"}"#;
        let rest = ["nowhere", "1000", "3600000", "90000000", "1", "300000", "-", "1048576", "0"];
        let arguments = [&["EVAL", &script, "3", &keys[0], &keys[1], &keys[2], stored][..], &rest].concat();
        world.server().cli(&arguments);
        assert_eq!(streams[n].data().await, "unannounced");
    }
}

/// Members that join and leave together: an event that names so many is large enough for the log to be trimmed with it.
const MEMBERS: usize = 50;

/// Has new members join a room and leave it.
async fn join_and_leave(gateway: &Gateway, room: &str, round: usize) {
    let path = |n| format!("/v1/rooms/{room}/stream?subscriber=member-{round}-{n}");
    let paths: Vec<_> = (0..MEMBERS).map(path).collect();
    drop(join_all(paths.iter().map(|path| gateway.stream(path))).await);
}

#[tokio::test]
async fn p4_presence_events_that_were_trimmed_for_bytes_or_age_are_told_by_one_gap() {
    let limits: [fn(&mut Settings); 2] = [
        |settings| settings.retention.bytes = 64 * 1024,
        |settings| {
            settings.retention.bytes = 256 * 1024;
            settings.retention.age = Duration::from_secs(3);
        },
    ];
    for limit in limits {
        let world = World::redis().await;
        let settings = |settings: &mut Settings| {
            limit(settings);
            settings.presence.grace = Duration::from_millis(10);
        };
        let gateway = world.gateway_with(settings).await;
        let mut watcher = gateway.stream("/v1/rooms/trimmed/stream?subscriber=watcher&presence=true").await;
        let first = watcher.event().await;
        assert_eq!(first.event, "presence.join");
        let mut rounds = 0..;
        eventually("the events after the first are trimmed", async || {
            join_and_leave(&gateway, "trimmed", rounds.next()?).await;
            let log = world.server().cli(&["XRANGE", "roomcast:{trimmed}:presence-log", "-", "+", "COUNT", "1"]);
            let offset: u64 = log.lines().next()?.split_once('-')?.1.parse().ok()?;
            (offset > 2).then_some(())
        })
        .await;
        // Another replica, which has none of the events in its ring.
        let other = world.gateway_with(settings).await;
        let mut resumed = other.resume("/v1/rooms/trimmed/stream?presence=true", Some(&first.id)).await;
        assert_eq!(resumed.opened["rooms"]["trimmed"]["resume"], "gap");
        let gap = resumed.event().await;
        assert_eq!((gap.event.as_str(), &gap.json()["from"]), ("stream.gap", &json!(first.id)));
        gateway.publish("trimmed", "next").await;
        loop {
            let event = resumed.event().await;
            if event.data == "next" {
                break;
            }
            assert!(event.event.starts_with("presence."), "{event:?}");
        }
    }
}

#[tokio::test]
async fn p4_a_presence_event_after_another_clients_entry_is_appended_and_the_loss_is_told() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    let mut watcher = gateway.stream("/v1/rooms/others/stream?subscriber=watcher&presence=true").await;
    let first = watcher.event().await.id;
    let taken = first.replace("-1", "-9");
    world.server().cli(&["XADD", "roomcast:{others}:presence-log", &taken, "e", "x"]);
    let _member = gateway.stream("/v1/rooms/others/stream?subscriber=member").await;
    let gap = watcher.event().await;
    assert_eq!((gap.event.as_str(), &gap.json()["reason"]), ("stream.gap", &json!("lost_tail")));
    let joined = watcher.event().await;
    assert_eq!((joined.event.as_str(), &joined.json()["present"]), ("presence.join", &json!(2)));
}

#[tokio::test]
async fn an_event_too_large_for_one_message_comes_whole() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    let mut stream = gateway.room("large").await;
    for size in [4000, 4096, 5000, 60_000] {
        let text = "x".repeat(size);
        gateway.publish("large", &text).await;
        assert_eq!(stream.data().await.len(), size);
    }
}

#[tokio::test]
async fn a_redis_that_refuses_writes_is_named() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    let publish = async || gateway.send(gateway.request(Method::POST, "/v1/rooms/refused/events").body("x")).await;
    for (setting, bad, good, code) in
        [("maxmemory", "1", "0", "out_of_memory"), ("min-replicas-to-write", "1", "0", "no_replicas")]
    {
        world.server().cli(&["CONFIG", "SET", setting, bad]);
        let (status, problem) = publish().await;
        assert_eq!((status.as_u16(), &problem["code"]), (503, &json!(code)));
        eventually("the gateway is degraded", async || {
            (gateway.get("/healthz").await.1["commands"] == code).then_some(())
        })
        .await;
        world.server().cli(&["CONFIG", "SET", setting, good]);
        gateway.until_well().await;
        assert_eq!(publish().await.0, 201);
    }
    world.server().cli(&["REPLICAOF", "127.0.0.1", "1"]);
    let (status, problem) = publish().await;
    assert_eq!((status.as_u16(), &problem["code"]), (503, &json!("read_only")));
    world.server().cli(&["REPLICAOF", "NO", "ONE"]);
    gateway.until_well().await;
    assert_eq!(publish().await.0, 201);
}

#[tokio::test]
async fn scripts_that_redis_has_forgotten_are_loaded_again() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    gateway.publish("scripts", "1").await;
    world.server().cli(&["SCRIPT", "FLUSH"]);
    gateway.publish("scripts", "2").await;
    assert_eq!(gateway.get("/v1/rooms/scripts").await.1["retained"], 2);
}
