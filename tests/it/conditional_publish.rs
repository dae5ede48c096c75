//! Publishing on the condition that nothing came since: `If-Match` with the position of the room's last event.

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::support::{Gateway, Replica, World, within};

const EVENTS: &str = "/v1/rooms/lobby/events";

/// An answer: status, entity tag without quotes, body.
type Answer = (u16, Option<String>, Value);

async fn send(request: RequestBuilder) -> Answer {
    let answer = within("an answer", request.send()).await.unwrap();
    let tag = answer.headers().get("etag").map(|tag| tag.to_str().unwrap().trim_matches('"').to_owned());
    (answer.status().as_u16(), tag, answer.json().await.unwrap())
}

/// A publish to the room on condition that nothing came after a position.
fn publish_after(gateway: &Gateway, position: &str) -> RequestBuilder {
    gateway.request(Method::POST, EVENTS).header("if-match", format!("\"{position}\"")).body("conditional")
}

/// The room's entity tag, which its description and its log have alike.
async fn tag(gateway: &Gateway) -> String {
    let (status, tag, room) = send(gateway.request(Method::GET, "/v1/rooms/lobby")).await;
    assert_eq!(status, 200, "{room}");
    let (_, log_tag, _) = send(gateway.request(Method::GET, EVENTS)).await;
    if room["retained"] != 0 {
        assert_eq!(tag, log_tag);
    }
    tag.unwrap()
}

/// Checks that a publish after this position is refused with the present position. Returns that.
async fn refused_after(gateway: &Gateway, position: &str) -> String {
    let (status, tag, problem) = send(publish_after(gateway, position)).await;
    assert_eq!((status, &problem["code"]), (412, &json!("precondition_failed")), "{problem}");
    assert_eq!(Some(problem["head"].as_str().unwrap()), tag.as_deref());
    tag.unwrap()
}

/// Checks that a publish after this position is stored. Returns its id.
async fn stored_after(gateway: &Gateway, position: &str) -> String {
    let (status, tag, published) = send(publish_after(gateway, position)).await;
    assert_eq!((status, published["id"].as_str()), (201, tag.as_deref()), "{published}");
    tag.unwrap()
}

on_both_brokers! {
    async fn an_event_is_published_only_if_nothing_came_after_the_position(world) {
        let gateway = world.gateway().await;
        let first = gateway.publish("lobby", "first").await;
        assert_eq!(tag(&gateway).await, first);
        let second = stored_after(&gateway, &first).await;
        assert_eq!(refused_after(&gateway, &first).await, second);
        assert_eq!(tag(&gateway).await, second);
        // What the publisher got, and what it is told, are positions to go on from.
        let third = stored_after(&gateway, &second).await;
        let told = refused_after(&gateway, "1-1").await;
        assert_eq!(told, third);
        stored_after(&gateway, &told).await;
        assert_eq!(gateway.get("/v1/rooms/lobby").await.1["retained"], 4);
    }

    async fn an_unused_room_takes_an_event_after_the_position_that_it_told(world) {
        let gateway = world.gateway().await;
        let told = tag(&gateway).await;
        // A refusal stores nothing, neither in the room nor about it.
        assert!(refused_after(&gateway, "1-0").await.ends_with("-0"));
        assert!(refused_after(&gateway, &told.replace("-0", "-1")).await.ends_with("-0"));
        if let Some(server) = &world.redis {
            assert_eq!(server.cli(&["EXISTS", "roomcast:{lobby}:head", "roomcast:{lobby}:log"]), "0");
        }
        stored_after(&gateway, &told).await;
        refused_after(&gateway, &told).await;
        // A room whose readers have made its head, too.
        let stream = gateway.room("news").await;
        let news = |position: &str| {
            gateway.request(Method::POST, "/v1/rooms/news/events").header("if-match", format!("\"{position}\"")).body("x")
        };
        assert_eq!(send(news(&stream.last_event_id)).await.0, 201);
        assert_eq!(send(news(&stream.last_event_id)).await.0, 412);
    }

    async fn presence_events_do_not_count_as_events_that_came_since(world) {
        let gateway = world.gateway().await;
        let first = gateway.publish("lobby", "first").await;
        let mut watcher = gateway.stream("/v1/rooms/lobby/stream?presence=true").await;
        drop(gateway.stream("/v1/rooms/lobby/stream?subscriber=ann").await);
        let joined = watcher.event().await;
        assert_eq!(joined.event, "presence.join");
        assert_eq!(tag(&gateway).await, first);
        // Neither do they as positions: the head that a description tells is one of them.
        let head = gateway.get("/v1/rooms/lobby").await.1["head"].as_str().unwrap().to_owned();
        assert_ne!(head, first);
        let second = stored_after(&gateway, &head).await;
        refused_after(&gateway, &head).await;
        refused_after(&gateway, &first).await;
        let _bob = gateway.stream("/v1/rooms/lobby/stream?subscriber=bob").await;
        while watcher.event().await.event != "presence.join" {}
        stored_after(&gateway, &second).await;
    }

    async fn publishers_that_race_for_a_position_store_one_event(world) {
        const PUBLISHERS: usize = 8;
        let gateway = world.gateway().await;
        let mut position = tag(&gateway).await;
        for round in 1..=25 {
            let race = (0..PUBLISHERS).map(|_| send(publish_after(&gateway, &position)));
            let answers = futures_util::future::join_all(race).await;
            let (won, lost): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.0 == 201);
            assert_eq!((won.len(), lost.len()), (1, PUBLISHERS - 1));
            position = won[0].1.clone().unwrap();
            assert!(lost.iter().all(|answer| answer.0 == 412 && answer.1.as_ref() == Some(&position)), "{lost:?}");
            assert_eq!(gateway.get("/v1/rooms/lobby").await.1["retained"], round);
        }
    }

    async fn a_repeated_publish_has_the_first_answer_whatever_came_since(world) {
        let gateway = world.gateway().await;
        let first = gateway.publish("lobby", "first").await;
        let keyed = |position: &str| publish_after(&gateway, position).header("idempotency-key", "key");
        // A refused publish does not use up its key.
        assert_eq!(send(keyed("1-1")).await.0, 412);
        let (status, tag, body) = send(keyed(&first)).await;
        assert_eq!(status, 201);
        gateway.publish("lobby", "later").await;
        let again = gateway.answer(keyed(&first)).await;
        assert_eq!((again.status().as_u16(), &again.headers()["idempotency-replayed"]), (201, &"true".parse().unwrap()));
        assert_eq!(again.headers()["etag"], format!("\"{}\"", tag.unwrap()));
        assert_eq!(again.json::<Value>().await.unwrap(), body);
        // Another condition, or none, is another request.
        let other = publish_after(&gateway, "1-1").header("idempotency-key", "key");
        assert_eq!(send(other).await.0, 422);
        let plain = gateway.request(Method::POST, EVENTS).header("idempotency-key", "key").body("conditional");
        assert_eq!(send(plain).await.0, 422);
        assert_eq!(gateway.get("/v1/rooms/lobby").await.1["retained"], 3);
    }

    async fn conditions_of_a_publish_are_entity_tags(world) {
        let gateway = world.gateway().await;
        let mut last = gateway.publish("lobby", "first").await;
        let with = |name: &str, value: &str| gateway.request(Method::POST, EVENTS).header(name, value).body("x");
        for spelled in ["W/\"{}\"", "\"other\", \"{}\"", "\"1-1\",\"{}\"", ", \"{}\" ,"] {
            let (status, tag, body) = send(with("if-match", &spelled.replace("{}", &last))).await;
            assert_eq!(status, 201, "{spelled}: {body}");
            last = tag.unwrap();
        }
        for missed in ["\"other\"", "\"\"", "\"1-1\", \"1-2\"", &format!("\" {last}\""), &format!("\"{last}0\"")] {
            assert_eq!(send(with("if-match", missed)).await.0, 412, "{missed}");
        }
        for (name, value) in
            [("if-match", "*"), ("if-match", &*last), ("if-match", ""), ("if-none-match", "*"), ("if-none-match", "\"a\"")]
        {
            let (status, _, problem) = send(with(name, value)).await;
            assert_eq!((status, &problem["code"]), (400, &json!("invalid_header")), "{name}: {value}");
        }
        let batch = gateway.request(Method::POST, "/v1/events").header("if-match", format!("\"{last}\""));
        let (status, _, problem) = send(batch.json(&json!({"events": [{"room": "lobby", "data": 1}]}))).await;
        assert_eq!(status, 400);
        assert!(problem["detail"].as_str().unwrap().contains("a publish to one room takes If-Match"), "{problem}");
        assert_eq!(gateway.get("/v1/rooms/lobby").await.1["retained"], 5);
    }

    async fn an_emptied_log_keeps_its_position(world) {
        let gateway = world.gateway().await;
        let last = gateway.publish("lobby", "first").await;
        assert_eq!(gateway.answer(gateway.request(Method::DELETE, EVENTS)).await.status(), 204);
        assert_eq!(tag(&gateway).await, last);
        stored_after(&gateway, &last).await;
    }
}

#[tokio::test]
async fn a_position_holds_across_a_restart_of_the_embedded_broker_that_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let events = |replica: &Replica| reqwest::Client::new().post(format!("{}{EVENTS}", replica.url())).body("x");
    let after = |replica: &Replica, tag: &Option<String>| {
        events(replica).header("if-match", format!("\"{}\"", tag.as_deref().unwrap()))
    };
    let mut replica = Replica::start_on(folder.path(), &[]);
    replica.until(200).await;
    let (_, first, _) = send(events(&replica)).await;
    replica.kill();
    replica = Replica::start_on(folder.path(), &[]);
    replica.until(200).await;
    let (status, second, _) = send(after(&replica, &first)).await;
    assert_eq!(status, 201);
    replica.kill();
    replica = Replica::start_on(folder.path(), &[]);
    replica.until(200).await;
    let (status, head, _) = send(after(&replica, &first)).await;
    assert_eq!((status, &head), (412, &second));
    assert_eq!(send(after(&replica, &head)).await.0, 201);
}

#[tokio::test]
async fn a_position_that_redis_has_lost_or_after_which_it_may_have_lost_events_is_refused() {
    let mut world = World::redis().await;
    let gateway = world.gateway().await;
    let kept = gateway.publish("lobby", "kept").await;
    world.server().cli(&["SAVE"]);
    let lost = gateway.publish("lobby", "lost").await;
    let server = world.redis.as_mut().unwrap();
    server.kill();
    server.come_back().await;
    gateway.until_well().await;
    assert_eq!(gateway.get(EVENTS).await.1["events"].as_array().unwrap().len(), 1);
    let head = refused_after(&gateway, &lost).await;
    assert_eq!(refused_after(&gateway, &kept).await, head);
    let next = stored_after(&gateway, &head).await;
    assert_eq!(refused_after(&gateway, &head).await, next);
}

#[tokio::test]
async fn a_position_holds_across_a_restart_of_redis_that_loses_nothing() {
    let mut world = World::redis().await;
    let gateway = world.gateway().await;
    let last = gateway.publish("lobby", "kept").await;
    let server = world.redis.as_mut().unwrap();
    server.cli(&["SAVE"]);
    server.kill();
    server.come_back().await;
    gateway.until_well().await;
    stored_after(&gateway, &last).await;
}

#[tokio::test]
async fn a_position_of_an_unused_room_is_refused_once_all_data_is_lost() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    let told = tag(&gateway).await;
    world.server().cli(&["FLUSHALL"]);
    gateway.until_well().await;
    let head = refused_after(&gateway, &told).await;
    stored_after(&gateway, &head).await;
}

#[tokio::test]
async fn entries_of_another_program_above_the_head_are_a_loss_that_refuses_one_publish() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    let last = gateway.publish("lobby", "first").await;
    let (epoch, _) = last.split_once('-').unwrap();
    world.server().cli(&["XADD", "roomcast:{lobby}:log", &format!("{epoch}-9"), "e", "{}"]);
    let head = refused_after(&gateway, &last).await;
    assert_ne!(head, last);
    stored_after(&gateway, &head).await;
}

#[tokio::test]
async fn a_publish_through_another_replica_counts_as_well() {
    let world = World::redis().await;
    let (one, other) = (world.gateway().await, world.gateway().await);
    let first = one.publish("lobby", "first").await;
    let second = stored_after(&other, &first).await;
    assert_eq!(refused_after(&one, &first).await, second);
    stored_after(&one, &second).await;
}
