//! Rooms that end: a final event is the last one of its room, and ends the room's streams.

use std::time::Duration;

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::support::{Gateway, Replica, SseEvent, Stream, World, eventually, within};

const JOB: &str = "/v1/rooms/job/stream";
const EVENTS: &str = "/v1/rooms/job/events";

fn final_event(gateway: &Gateway, room: &str) -> RequestBuilder {
    gateway.request(Method::POST, &format!("/v1/rooms/{room}/events?final=true")).body("last")
}

/// Publishes the final event of a room. Returns its id.
async fn finish(gateway: &Gateway, room: &str) -> String {
    let (status, published) = gateway.send(final_event(gateway, room)).await;
    assert_eq!(status, 201, "{published}");
    published["id"].as_str().unwrap().to_owned()
}

async fn reopen(gateway: &Gateway, room: &str) {
    let delete = gateway.request(Method::DELETE, &format!("/v1/rooms/{room}/events"));
    assert_eq!(gateway.answer(delete).await.status(), 204);
}

/// Checks that the room takes no event.
async fn refused(gateway: &Gateway, room: &str) {
    for query in ["", "?final=true"] {
        let path = format!("/v1/rooms/{room}/events{query}");
        let (status, problem) = gateway.send(gateway.request(Method::POST, &path).body("late")).await;
        assert_eq!((status.as_u16(), &problem["code"]), (409, &json!("room_finished")), "{problem}");
    }
}

/// The status of a stream that a client opens with its last id.
async fn comes_back(gateway: &Gateway, path: &str, last_event_id: &str) -> u16 {
    let request = gateway.request(Method::GET, path).header("last-event-id", last_event_id);
    gateway.answer(request).await.status().as_u16()
}

fn is_end(event: &SseEvent) -> bool {
    event.event == "stream.end" && event.json() == json!({"reason": "finished", "reconnect": "never"})
}

/// Reads a stream to its end, which is that of finished rooms. Returns the data of what came before.
async fn rest(stream: Stream) -> Vec<String> {
    let mut events = stream.rest().await;
    assert!(events.pop().as_ref().is_some_and(is_end), "{events:?}");
    events.into_iter().map(|event| event.data).collect()
}

on_both_brokers! {
    async fn p2_every_stream_of_a_room_ends_after_the_final_event(world) {
        let gateway = world.gateway().await;
        gateway.publish("job", "before").await;
        let mut streams = Vec::new();
        // The first ones share a broadcaster.
        for query in ["", "", "", "?subscriber=ann", "?presence=true", "?event=other", "?subscriber=out"] {
            streams.push((query, gateway.stream(&format!("{JOB}{query}")).await));
        }
        let enveloped = gateway.stream("/v1/stream?room=job").await;
        gateway.publish("job", "live").await;
        let event = json!({"data": "last", "final": true, "except": ["out"]});
        let (status, published) = gateway.post(EVENTS, &event).await;
        assert_eq!(status, 201, "{published}");
        for (query, stream) in streams {
            let mut told = rest(stream).await;
            // Who joins and leaves is told, too.
            told.retain(|data| !data.contains("members"));
            let expected: &[&str] = match query {
                "?event=other" => &[],
                "?subscriber=out" => &["live"],
                _ => &["live", "\"last\""],
            };
            assert_eq!(told, expected, "{query}");
        }
        let told: Vec<Value> =
            rest(enveloped).await.iter().map(|data| serde_json::from_str(data).unwrap()).collect();
        assert_eq!((&told[0]["data"], &told[0]["final"]), (&json!("live"), &Value::Null));
        assert_eq!((&told[1]["data"], &told[1]["final"]), (&json!("last"), &json!(true)));
        assert_eq!(told[1]["id"], published["id"]);
        // The list of events and the description of the room tell it, too.
        let (_, list) = gateway.get(EVENTS).await;
        let events = list["events"].as_array().unwrap().iter().filter(|event| event["event"] == Value::Null);
        let marks: Vec<_> = events.map(|event| &event["final"]).collect();
        assert_eq!(marks, [&Value::Null, &Value::Null, &json!(true)]);
        assert_eq!(gateway.get("/v1/rooms/job").await.1["finished"], published["id"]);
    }

    async fn who_comes_late_gets_the_rest_and_then_the_end(world) {
        let gateway = world.gateway().await;
        let first = gateway.publish("job", "first").await;
        gateway.publish("job", "second").await;
        let last = finish(&gateway, "job").await;
        assert_eq!(rest(gateway.resume(JOB, Some(&first)).await).await, ["second", "last"]);
        assert_eq!(rest(gateway.stream(&format!("{JOB}?from=earliest")).await).await, ["first", "second", "last"]);
        assert_eq!(rest(gateway.stream(&format!("{JOB}?recent=1")).await).await, ["last"]);
        // A stream without a position has nothing to tell, and opens all the same.
        let stream = gateway.stream(JOB).await;
        assert_eq!(stream.opened["rooms"]["job"], json!({"position": last, "resume": "fresh"}));
        assert_eq!(rest(stream).await, [""; 0]);
        let enveloped = gateway.stream("/v1/stream?room=job").await;
        let cursor = enveloped.last_event_id.clone();
        assert_eq!(rest(enveloped).await, [""; 0]);
        // An EventSource that comes back stops for good.
        for (path, id) in [(JOB, &last), ("/v1/stream?room=job", &cursor)] {
            assert_eq!(comes_back(&gateway, path, id).await, 204, "{path}");
        }
        assert_eq!(gateway.answer(gateway.request(Method::GET, &format!("{JOB}?after={last}"))).await.status(), 204);
        let metrics = gateway.answer(gateway.request(Method::GET, "/metrics")).await.text().await.unwrap();
        assert!(metrics.lines().any(|line| line.contains("reason=\"finished\"")), "{metrics}");
    }

    async fn a_finished_room_takes_no_event_until_its_events_are_deleted(world) {
        let gateway = world.gateway().await;
        finish(&gateway, "job").await;
        let last = gateway.get(EVENTS).await.1["head"].as_str().unwrap().to_owned();
        refused(&gateway, "job").await;
        // Whether a condition holds or not makes no difference.
        for tag in [&*last, "1-1"] {
            let publish = gateway.request(Method::POST, EVENTS).header("if-match", format!("\"{tag}\"")).body("x");
            assert_eq!(gateway.send(publish).await.1["code"], "room_finished", "{tag}");
        }
        assert_eq!(gateway.get("/v1/rooms/job").await.1["retained"], 1);
        for round in 0..3 {
            reopen(&gateway, "job").await;
            let mut stream = gateway.resume(JOB, Some(&last)).await;
            let text = format!("again {round}");
            gateway.publish("job", &text).await;
            while stream.event().await.data != text {}
            assert_eq!(gateway.get("/v1/rooms/job").await.1["finished"], Value::Null);
            finish(&gateway, "job").await;
            assert_eq!(rest(stream).await, ["last"]);
            refused(&gateway, "job").await;
        }
    }

    async fn a_stream_of_several_rooms_ends_with_the_last_of_them(world) {
        let gateway = world.gateway().await;
        let path = "/v1/stream?room=job&room=other";
        let mut stream = gateway.stream(path).await;
        let mut with_hash = gateway.stream("/v1/stream?room=job&hash=lamp").await;
        assert_eq!(with_hash.event().await.event, "hash.snapshot");
        finish(&gateway, "job").await;
        let told = stream.event().await.json();
        assert_eq!((&told["room"], &told["final"]), (&json!("job"), &json!(true)));
        // It goes on with the other room, also after the client has come back.
        gateway.publish("other", "still open").await;
        assert_eq!(stream.event().await.json()["data"], "still open");
        let mut again = gateway.resume(path, Some(&stream.last_event_id)).await;
        finish(&gateway, "other").await;
        let cursor = again.event().await.id;
        assert_eq!(rest(again).await, [""; 0]);
        assert_eq!(rest(stream).await.len(), 1);
        assert_eq!(comes_back(&gateway, path, &cursor).await, 204);
        // A hash is never finished.
        assert_eq!(with_hash.event().await.json()["final"], true);
        let put = gateway.request(Method::PUT, "/v1/hashes/lamp/fields/colour").body("red");
        assert_eq!(gateway.answer(put).await.status(), 201);
        assert_eq!(with_hash.event().await.event, "hash.set");
    }

    async fn a_room_that_is_opened_again_goes_on_in_a_stream_of_several_rooms(world) {
        let gateway = world.gateway().await;
        let mut stream = gateway.stream("/v1/stream?room=job&room=other").await;
        finish(&gateway, "job").await;
        assert_eq!(stream.event().await.json()["data"], "last");
        reopen(&gateway, "job").await;
        gateway.publish("job", "again").await;
        assert_eq!(stream.event().await.json()["data"], "again");
        finish(&gateway, "other").await;
        assert_eq!(stream.event().await.json()["room"], "other");
        gateway.publish("job", "and again").await;
        assert_eq!(stream.event().await.json()["data"], "and again");
    }

    async fn a_batch_can_finish_its_rooms(world) {
        let gateway = world.gateway().await;
        let batch = json!({"events": [
            {"room": "job", "data": 1},
            {"rooms": ["job", "other"], "data": 2, "final": true},
            {"rooms": ["job", "third"], "data": 3},
            {"room": "job", "data": 4},
            {"room": "third", "data": 5, "final": false},
        ]});
        let (status, answer) = gateway.post("/v1/events", &batch).await;
        assert_eq!(status, 207, "{answer}");
        let statuses: Vec<_> = answer["results"].as_array().unwrap().iter().map(|result| &result["status"]).collect();
        assert_eq!(statuses, [201, 201, 409, 409, 201]);
        let problem = &answer["results"][2]["problem"];
        assert_eq!((&problem["code"], &problem["rooms"]), (&json!("room_finished"), &json!(["job"])));
        assert_eq!(answer["results"][2]["published"][0]["room"], "third");
        for (room, retained) in [("job", 2), ("other", 1), ("third", 2)] {
            assert_eq!(gateway.get(&format!("/v1/rooms/{room}")).await.1["retained"], retained, "{room}");
        }
        refused(&gateway, "job").await;
        refused(&gateway, "other").await;
        gateway.publish("third", "open").await;
    }

    async fn p6_a_repeated_publish_has_the_first_answer_of_a_finished_room(world) {
        let gateway = world.gateway().await;
        let keyed = |request: RequestBuilder, key: &str| request.header("idempotency-key", key);
        let earlier = || keyed(gateway.request(Method::POST, EVENTS).body("earlier"), "first");
        let (_, before) = gateway.send(earlier()).await;
        let (status, last) = gateway.send(keyed(final_event(&gateway, "job"), "second")).await;
        assert_eq!(status, 201);
        assert_eq!(gateway.send(earlier()).await, (StatusCode::CREATED, before));
        assert_eq!(gateway.send(keyed(final_event(&gateway, "job"), "second")).await, (StatusCode::CREATED, last));
        // The same event without the mark is other content.
        let unmarked = keyed(gateway.request(Method::POST, EVENTS).body("last"), "second");
        assert_eq!(gateway.send(unmarked).await.0, 422);
        // A refusal does not use up its key.
        let late = || keyed(gateway.request(Method::POST, EVENTS).body("late"), "third");
        assert_eq!(gateway.send(late()).await.0, 409);
        reopen(&gateway, "job").await;
        assert_eq!(gateway.send(late()).await.0, 201);
    }

    async fn a_final_event_may_have_a_condition(world) {
        let gateway = world.gateway().await;
        let first = gateway.publish("job", "first").await;
        let second = gateway.publish("job", "second").await;
        let after = |tag: &str| final_event(&gateway, "job").header("if-match", format!("\"{tag}\""));
        assert_eq!(gateway.send(after(&first)).await.0, 412);
        assert_eq!(gateway.get("/v1/rooms/job").await.1["finished"], Value::Null);
        assert_eq!(gateway.send(after(&second)).await.0, 201);
        refused(&gateway, "job").await;
    }

    async fn a_mark_of_another_type_is_refused(world) {
        let gateway = world.gateway().await;
        for wrong in [json!(1), json!("true"), json!({})] {
            let (status, problem) = gateway.post(EVENTS, &json!({"data": 1, "final": wrong})).await;
            assert_eq!((status.as_u16(), &problem["code"]), (400, &json!("invalid_body")), "{wrong}");
            let (status, _) = gateway.post("/v1/events", &json!({"events": [{"room": "job", "data": 1, "final": wrong}]})).await;
            assert_eq!(status, 400, "{wrong}");
        }
        for query in ["final=yes", "final=1", "final=true&final=true"] {
            let publish = gateway.request(Method::POST, &format!("{EVENTS}?{query}")).body("x");
            let (status, problem) = gateway.send(publish).await;
            assert_eq!((status.as_u16(), &problem["code"]), (400, &json!("invalid_query")), "{query}");
        }
        let (status, problem) = gateway.post(&format!("{EVENTS}?final=true"), &json!({"data": 1})).await;
        assert_eq!((status.as_u16(), &problem["code"]), (400, &json!("invalid_query")));
        for path in ["/v1/hashes/lamp/fields/colour?final=true", "/v1/hashes/lamp?final=true"] {
            let method = if path.contains("fields") { Method::PUT } else { Method::PATCH };
            assert_eq!(gateway.send(gateway.request(method, path).json(&json!({"final": null}))).await.0, 400, "{path}");
        }
        // Neither these nor data that looks like the mark finish a room.
        for open in [
            json!({"data": 1, "final": false}),
            json!({"data": 1, "final": null}),
            json!({"data": {"x": 1, "final": true}}),
            json!({"data": ",\"final\":true}"}),
        ] {
            assert_eq!(gateway.post(EVENTS, &open).await.0, 201, "{open}");
        }
        let text = gateway.request(Method::POST, &format!("{EVENTS}?final=false")).body(",\"final\":true}");
        assert_eq!(gateway.send(text).await.0, 201);
        assert_eq!(gateway.get("/v1/rooms/job").await.1["finished"], Value::Null);
    }

    async fn members_that_leave_a_finished_room_keep_no_stream_open(world) {
        let gateway = world.gateway_with(|settings| settings.presence.grace = Duration::from_millis(100)).await;
        let mut watcher = gateway.stream("/v1/stream?room=job&room=other&presence=true").await;
        let ann = gateway.stream(&format!("{JOB}?subscriber=ann")).await;
        while watcher.event().await.event != "presence.join" {}
        let last = finish(&gateway, "job").await;
        assert_eq!(rest(ann).await, ["last"]);
        assert_eq!(watcher.event().await.json()["final"], true);
        assert_eq!(watcher.event().await.event, "presence.leave");
        refused(&gateway, "job").await;
        // The log goes on after the final event, and the room has ended all the same.
        assert_ne!(gateway.get(EVENTS).await.1["head"], json!(last));
        for query in ["", "?presence=true"] {
            assert_eq!(comes_back(&gateway, &format!("{JOB}{query}"), &last).await, 204, "{query}");
            assert_eq!(rest(gateway.stream(&format!("{JOB}{query}")).await).await, [""; 0]);
        }
        finish(&gateway, "other").await;
        let told = rest(watcher).await;
        assert!(told.iter().any(|data| data.contains("\"room\":\"other\"") && data.contains("\"final\":true")), "{told:?}");
    }

    async fn a_room_without_retention_ends_too(world) {
        let gateway = world.gateway_with(|settings| settings.retention.events = 0).await;
        let streams = [gateway.room("job").await, gateway.stream("/v1/stream?room=job").await];
        let first = gateway.publish("job", "first").await;
        let last = finish(&gateway, "job").await;
        for stream in streams {
            assert_eq!(rest(stream).await.len(), 2);
        }
        refused(&gateway, "job").await;
        // What is missing is told before the end.
        let mut late = gateway.resume(JOB, Some(&first)).await;
        let event = late.event().await;
        assert!(event.event == "stream.gap" || event.data == "last", "{event:?}");
        assert_eq!(rest(late).await, [""; 0]);
        assert_eq!(comes_back(&gateway, JOB, &last).await, 204);
    }

    async fn p4_a_gap_comes_before_the_end_if_the_final_event_was_trimmed_or_its_position_is_unknown(world) {
        let gateway = world.gateway_with(|settings| settings.retention.age = Duration::from_secs(1)).await;
        let first = gateway.publish("job", "first").await;
        let last = finish(&gateway, "job").await;
        eventually("the log is empty", async || {
            (gateway.get(EVENTS).await.1["events"] == json!([])).then_some(())
        })
        .await;
        refused(&gateway, "job").await;
        for (id, reason) in [(&*first, "expired"), ("1-1", "unknown_position")] {
            let mut stream = gateway.resume(JOB, Some(id)).await;
            let gap = stream.event().await;
            assert_eq!((&*gap.event, &gap.json()["reason"]), ("stream.gap", &json!(reason)));
            let more = rest(stream).await;
            let reached = more.last().map_or(gap.json()["to"].clone(), |gap| serde_json::from_str::<Value>(gap).unwrap()["to"].clone());
            assert_eq!(reached, last);
        }
        assert_eq!(comes_back(&gateway, JOB, &last).await, 204);
    }

    async fn p7_a_slow_reader_gets_all_and_the_final_event_before_the_end(world) {
        const EVENTS: usize = 300;
        let gateway = world.gateway_with(|settings| settings.retention.bytes = 100_000_000).await;
        let mut slow = [gateway.room("job").await, gateway.stream("/v1/stream?room=job").await];
        let quick = gateway.room("job").await;
        let text = "x".repeat(60_000);
        for _ in 0..EVENTS {
            gateway.publish("job", &text).await;
        }
        finish(&gateway, "job").await;
        assert_eq!(rest(quick).await.len(), EVENTS + 1);
        for slow in &mut slow {
            for _ in 0..EVENTS {
                assert!(slow.event().await.data.len() >= 60_000);
            }
            assert!(slow.event().await.data.contains("last"));
        }
        for slow in slow {
            assert_eq!(rest(slow).await, [""; 0]);
        }
    }

    async fn many_streams_of_a_room_end_together(world) {
        let gateway = world.gateway().await;
        let opening = (0..200).map(|_| gateway.room("job"));
        let streams = futures_util::future::join_all(opening).await;
        gateway.publish("job", "live").await;
        finish(&gateway, "job").await;
        for told in futures_util::future::join_all(streams.into_iter().map(rest)).await {
            assert_eq!(told, ["live", "last"]);
        }
        eventually("the room has no subscribers", async || {
            (gateway.get("/v1/rooms/job").await.1["subscribers"] == 0).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_room_stays_finished_over_a_restart_with_a_data_folder() {
    let folder = tempfile::tempdir().unwrap();
    let client = reqwest::Client::new();
    let publish =
        |replica: &Replica, query: &str| client.post(format!("{}{EVENTS}{query}", replica.url())).body("x");
    let mut replica = Replica::start_on(folder.path(), &[]);
    replica.until(200).await;
    let first: Value = publish(&replica, "").send().await.unwrap().json().await.unwrap();
    assert_eq!(publish(&replica, "?final=true").send().await.unwrap().status(), 201);
    for _ in 0..2 {
        replica.kill();
        replica = Replica::start_on(folder.path(), &[]);
        replica.until(200).await;
        assert_eq!(publish(&replica, "").send().await.unwrap().status(), 409);
        let stream = Stream::open(&format!("{}{JOB}", replica.url()), first["id"].as_str()).await;
        assert_eq!(stream.opened["rooms"]["job"]["resume"], "complete");
        assert_eq!(rest(stream).await, ["x"]);
    }
    let cleared = client.delete(format!("{}{EVENTS}", replica.url())).send().await.unwrap();
    assert_eq!(cleared.status(), 204);
    replica.kill();
    replica = Replica::start_on(folder.path(), &[]);
    replica.until(200).await;
    assert_eq!(publish(&replica, "").send().await.unwrap().status(), 201);
}

#[tokio::test]
async fn p4_a_room_is_open_again_if_redis_has_lost_its_final_event() {
    let mut world = World::redis().await;
    let gateway = world.gateway().await;
    let mut other = gateway.stream("/v1/stream?room=job&room=other").await;
    gateway.publish("job", "kept").await;
    other.event().await;
    world.server().cli(&["SAVE"]);
    let last = finish(&gateway, "job").await;
    assert_eq!(other.event().await.json()["final"], true);
    let server = world.redis.as_mut().unwrap();
    server.kill();
    server.come_back().await;
    gateway.until_well().await;
    // Who has had the final event is told that it is lost, and goes on.
    let mut stream = gateway.resume(JOB, Some(&last)).await;
    let gap = stream.event().await;
    assert_eq!((&*gap.event, &gap.json()["reason"]), ("stream.gap", &json!("diverged")));
    assert_eq!(other.event().await.event, "stream.gap");
    gateway.publish("job", "goes on").await;
    assert_eq!(stream.event().await.data, "goes on");
    assert_eq!(other.event().await.json()["data"], "goes on");
    finish(&gateway, "job").await;
    assert_eq!(rest(stream).await, ["last"]);
}

#[tokio::test]
async fn a_room_stays_finished_over_restarts_of_redis() {
    let mut world = World::redis().await;
    let gateway = world.gateway().await;
    let first = gateway.publish("job", "first").await;
    let last = finish(&gateway, "job").await;
    world.server().cli(&["SAVE"]);
    for _ in 0..2 {
        let server = world.redis.as_mut().unwrap();
        server.kill();
        server.come_back().await;
        gateway.until_well().await;
        refused(&gateway, "job").await;
        assert_eq!(rest(gateway.resume(JOB, Some(&first)).await).await, ["last"]);
        assert_eq!(comes_back(&gateway, JOB, &last).await, 204);
    }
}

#[tokio::test]
async fn p2_who_resumes_after_a_replica_was_killed_gets_the_rest_and_the_end() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    let mut killed = Replica::start(&world.server().url(), &[]);
    killed.until(200).await;
    let mut stream = Stream::open(&format!("{}{JOB}", killed.url()), None).await;
    gateway.publish("job", "first").await;
    assert_eq!(stream.data().await, "first");
    killed.kill();
    gateway.publish("job", "second").await;
    finish(&gateway, "job").await;
    assert_eq!(rest(gateway.resume(JOB, Some(&stream.last_event_id)).await).await, ["second", "last"]);
    let other = Replica::start(&world.server().url(), &[]);
    other.until(200).await;
    let late = Stream::open(&format!("{}{JOB}", other.url()), Some(&stream.last_event_id)).await;
    assert_eq!(rest(late).await, ["second", "last"]);
}

#[tokio::test]
async fn streams_on_all_replicas_end_and_a_room_that_one_opens_again_is_open_on_all() {
    let world = World::redis().await;
    let (one, other) = (world.gateway().await, world.gateway().await);
    // Keeps the room live on the other replica.
    let mut both = other.stream("/v1/stream?room=job&room=other").await;
    for round in 0..20 {
        let streams = [one.room("job").await, other.room("job").await];
        one.publish("job", &format!("{round}")).await;
        finish(&one, "job").await;
        for stream in streams {
            // A replica that has not heard of the event before opens its stream before that.
            assert!(rest(stream).await.ends_with(&[format!("{round}"), "last".into()]));
        }
        for _ in 0..2 {
            assert_ne!(both.event().await.event, "stream.end");
        }
        reopen(&one, "job").await;
        // At once, though the other replica may not have heard of it yet.
        let mut stream = other.room("job").await;
        one.publish("job", "open").await;
        assert_eq!(stream.data().await, "open");
        assert_eq!(both.event().await.json()["data"], "open");
    }
}

#[tokio::test]
async fn p11_a_forged_announcement_of_a_final_event_ends_no_stream() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    let first = gateway.publish("job", "first").await;
    let mut stream = gateway.room("job").await;
    let (epoch, _) = first.split_once('-').unwrap();
    let event = r#"{"published_at":"2026-01-02T03:04:05.678Z","text":"forged","final":true}"#;
    world.server().cli(&["PUBLISH", "roomcast:{job}:live", &format!("{epoch}-2 {}\n{event}", event.len())]);
    assert_eq!(stream.data().await, "forged");
    gateway.publish("job", "real").await;
    let told = within("the real event or a gap", stream.event()).await;
    assert_ne!(told.event, "stream.end");
    gateway.publish("job", "more").await;
    while stream.event().await.data != "more" {}
}

#[tokio::test]
async fn a_script_that_publishes_from_elsewhere_can_finish_a_room() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    let stream = gateway.room("job").await;
    let script = [
        include_str!("../../src/broker/redis/scripts/log.lua"),
        include_str!("../../src/broker/redis/scripts/append.lua"),
    ]
    .concat();
    let keys = ["roomcast:{job}:head", "roomcast:{job}:log", "roomcast:{job}:presence-log"];
    let publish = |event: &str| {
        let arguments =
            [event, "roomcast:{job}:live", "1000", "3600000", "90000000", "7", "300000", "", "1048576", "0"];
        world.server().eval(&script, &keys, &arguments)
    };
    let event = r#"{"published_at":"2026-01-02T03:04:05.678Z","text":"done","final":true}"#;
    assert!(publish(event).contains("-1"));
    assert_eq!(rest(stream).await, ["done"]);
    assert_eq!(publish(event).split_whitespace().collect::<Vec<_>>(), ["2", "7"]);
    refused(&gateway, "job").await;
}
