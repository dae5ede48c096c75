//! Publishing in batches, and reading a room's log.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Gateway, Link, Proxy, World, eventually};

/// The data of a page's events.
fn data_texts(log: &Value) -> Vec<&str> {
    let events = log["events"].as_array().unwrap_or_else(|| panic!("{log}"));
    events.iter().map(|event| event["data"].as_str().unwrap()).collect()
}

/// Reads all pages from a path on. Returns the data of the events, and the reasons of the gaps.
async fn all_pages(gateway: &Gateway, first: &str) -> (Vec<String>, Vec<String>) {
    let (mut data, mut gaps, mut path) = (Vec::new(), Vec::new(), Some(first.to_owned()));
    while let Some(next) = path {
        let answer = gateway.answer(gateway.request(Method::GET, &next)).await;
        let link = answer.headers().get("link").map(|link| link.to_str().unwrap().to_owned());
        path = link.map(|link| link[1..link.find('>').unwrap()].to_owned());
        let log: Value = answer.json().await.unwrap();
        data.extend(data_texts(&log).iter().map(|data| (*data).to_owned()));
        gaps.extend(log["gap"]["reason"].as_str().map(str::to_owned));
    }
    (data, gaps)
}

#[tokio::test]
async fn p4_a_page_ends_before_a_gap_and_the_next_one_tells_it() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    let redis = world.redis.as_ref().unwrap();
    gateway.publish("lobby", "kept").await;
    let head = redis.cli(&["GET", "roomcast:{lobby}:head"]);
    let lost = gateway.publish("lobby", "lost").await;
    // Redis has forgotten the last event, as after a crash.
    redis.cli(&["XDEL", "roomcast:{lobby}:log", &lost]);
    redis.cli(&["SET", "roomcast:{lobby}:head", &head, "KEEPTTL"]);
    gateway.publish("lobby", "new").await;
    let (data, gaps) = all_pages(&gateway, "/v1/rooms/lobby/events").await;
    assert_eq!((data, gaps), (vec!["kept".into(), "new".into()], vec!["lost_tail".to_owned()]));
}

#[tokio::test]
async fn p4_what_is_deleted_between_the_reads_of_a_page_is_told() {
    let world = World::redis().await;
    let redis = world.redis.as_ref().unwrap();
    let proxy = Proxy::to(redis.port()).await;
    let slow = world.gateway_with(|settings| settings.redis.url = Some(proxy.url().parse().unwrap())).await;
    let fast = world.gateway_with(|settings| settings.retention.bytes = 100_000_000).await;
    let events: Vec<_> = (0..10).map(|n| format!("{n}{}", "x".repeat(60_000))).collect();
    for event in &events {
        fast.publish("lobby", event).await;
    }
    let reads = || {
        let statistics = redis.cli(&["INFO", "commandstats"]);
        statistics.lines().find(|line| line.starts_with("cmdstat_xrange")).map(str::to_owned)
    };
    let before = reads();
    proxy.set(Link::Delay(Duration::from_millis(30)));
    let pages = all_pages(&slow, "/v1/rooms/lobby/events");
    let delete = async {
        eventually("the first part is read", async || (reads() != before).then_some(())).await;
        let emptied = fast.request(Method::DELETE, "/v1/rooms/lobby/events");
        assert_eq!(fast.send(emptied).await.0, 204);
        fast.publish("lobby", "end").await;
    };
    let ((data, gaps), ()) = tokio::join!(pages, delete);
    // A slow machine may have deleted the events after they had all been read.
    if !data.starts_with(&events) {
        assert_eq!((data.last().map(String::as_str), gaps.len()), (Some("end"), 1), "{gaps:?}");
    }
}

#[tokio::test]
async fn p4_a_lost_log_is_told_to_readers_from_before_its_first_event() {
    let world = World::redis().await;
    let (reader, publisher) = (world.gateway().await, world.gateway().await);
    let (_, page) = reader.get("/v1/rooms/lobby/events").await;
    let position = page["head"].as_str().unwrap().to_owned();
    publisher.publish("lobby", "lost").await;
    world.redis.as_ref().unwrap().cli(&["DEL", "roomcast:{lobby}:head", "roomcast:{lobby}:log"]);
    // The publisher's replica remembers the event, and looks for it from time to time.
    let mut stream = reader.resume("/v1/rooms/lobby/stream", Some(&position)).await;
    assert_eq!(stream.event().await.event, "stream.gap");
    let (_, page) = reader.get(&format!("/v1/rooms/lobby/events?after={position}")).await;
    assert!(page["gap"].is_object(), "{page}");
}

on_both_brokers! {
    async fn the_log_is_read_in_pages_both_ways(world) {
        let gateway = world.gateway().await;
        let mut ids = Vec::new();
        for count in 0..5 {
            ids.push(gateway.publish("log", &count.to_string()).await);
        }
        let answer = gateway.answer(gateway.request(Method::GET, "/v1/rooms/log/events?limit=2")).await;
        let next = format!("</v1/rooms/log/events?limit=2&after={}>; rel=\"next\"", ids[1]);
        assert_eq!(answer.headers()["link"], next.as_str());
        let (_, log) = gateway.get("/v1/rooms/log/events?limit=2").await;
        assert_eq!(data_texts(&log), ["0", "1"]);
        let (_, log) = gateway.get(&format!("/v1/rooms/log/events?limit=3&after={}", ids[1])).await;
        assert_eq!(data_texts(&log), ["2", "3", "4"]);
        assert_eq!(log["gap"], Value::Null);
        let (_, log) = gateway.get(&format!("/v1/rooms/log/events?limit=2&before={}", ids[4])).await;
        assert_eq!(data_texts(&log), ["2", "3"]);
        let (_, log) = gateway.get(&format!("/v1/rooms/log/events?after={}&before={}", ids[0], ids[3])).await;
        assert_eq!(data_texts(&log), ["1", "2"]);
        let answer = gateway.answer(gateway.request(Method::GET, "/v1/rooms/log/events?limit=5")).await;
        assert_eq!(answer.headers().get("link"), None);
    }

    async fn a_page_of_large_events_has_fewer_events_and_links_to_the_next(world) {
        let gateway = world.gateway_with(|settings| settings.retention.bytes = 100_000_000).await;
        for count in 0..150 {
            gateway.publish("large", &format!("{count:03} {}", "x".repeat(60_000))).await;
        }
        for first in ["/v1/rooms/large/events?limit=1000", "/v1/rooms/large/events?limit=1000&before=9000000000000000-1"] {
            let (mut got, mut pages, mut path) = (Vec::new(), 0, Some(first.to_owned()));
            while let Some(next) = path {
                let answer = gateway.answer(gateway.request(Method::GET, &next)).await;
                let link = answer.headers().get("link").map(|link| link.to_str().unwrap().to_owned());
                path = link.map(|link| link[1..link.find('>').unwrap()].to_owned());
                let log: Value = answer.json().await.unwrap();
                got.extend(data_texts(&log).iter().map(|data| data[..3].to_owned()));
                pages += 1;
            }
            got.sort();
            assert_eq!(got, (0..150).map(|count| format!("{count:03}")).collect::<Vec<_>>());
            assert!((2..10).contains(&pages), "{pages}");
        }
    }

    async fn retention_differs_by_the_pattern_of_a_rooms_name(world) {
        let gateway = world.gateway_with(|settings| {
            settings.retention.rules = ["cursor.*=none", "short.*=age:1s", "*.kept=events:500"].map(|r| r.parse().unwrap()).into();
            settings.retention.events = 1;
        }).await;
        let mut stream = gateway.room("cursor.7").await;
        let start = stream.last_event_id.clone();
        for count in 0..3 {
            gateway.publish("cursor.7", &count.to_string()).await;
        }
        // The log keeps nothing, and open streams get every event.
        assert_eq!(stream.datas(3).await, ["0", "1", "2"]);
        assert_eq!(gateway.get("/v1/rooms/cursor.7").await.1["retained"], 0);
        let other = world.gateway_with(|settings| settings.retention.rules = vec!["*=none".parse().unwrap()]).await;
        if world.redis.is_some() {
            let mut late = other.resume("/v1/rooms/cursor.7/stream", Some(&start)).await;
            assert_eq!(late.event().await.json()["reason"], "expired");
        }
        for count in 0..200 {
            gateway.publish("all.kept", &count.to_string()).await;
        }
        assert_eq!(gateway.get("/v1/rooms/all.kept").await.1["retained"], 200);
        gateway.publish("short.1", "x").await;
        // Reads do not extend its life.
        crate::support::eventually("the event has aged out", async || {
            (gateway.get("/v1/rooms/short.1").await.1["retained"] == 0).then_some(())
        }).await;
    }

    async fn a_log_keeps_no_more_bytes_than_it_may(world) {
        let gateway = world.gateway_with(|settings| {
            settings.retention.rules = vec!["small.*=bytes:100000".parse().unwrap()];
        }).await;
        let start = gateway.room("small.1").await.last_event_id;
        let mut last = String::new();
        for count in 0..60 {
            last = gateway.publish("small.1", &format!("{count:02} {}", "x".repeat(9_000))).await;
        }
        let retained = gateway.get("/v1/rooms/small.1").await.1["retained"].as_u64().unwrap();
        assert!((5..=16).contains(&retained), "{retained}");
        // The newest event is kept, even if it leaves no room for others.
        gateway.publish("small.1", &"y".repeat(60_000)).await;
        let large = gateway.publish("small.1", &"z".repeat(60_000)).await;
        assert!(gateway.get("/v1/rooms/small.1").await.1["retained"].as_u64().unwrap() <= 5);
        // One gap covers the dropped events, and the others follow.
        let mut stream = gateway.resume("/v1/rooms/small.1/stream", Some(&start)).await;
        let gap = stream.event().await.json();
        assert_eq!((&gap["reason"], &gap["from"]), (&json!("trimmed"), &json!(start)));
        assert!(gap["to"].as_str().unwrap() >= last.as_str());
        while stream.event().await.id != large {}
    }

    async fn events_age_out_one_by_one_while_others_come(world) {
        let gateway = world.gateway_with(|settings| settings.retention.age = std::time::Duration::from_secs(1)).await;
        let first = gateway.publish("ageing", "first").await;
        crate::support::eventually("the oldest events are gone, and the newest are not", async || {
            gateway.publish("ageing", "later").await;
            let (_, room) = gateway.get("/v1/rooms/ageing").await;
            (room["oldest"] != first.as_str() && room["retained"] != 0).then_some(())
        }).await;
        let start = format!("{}-0", first.split_once('-').unwrap().0);
        let mut stream = gateway.resume("/v1/rooms/ageing/stream", Some(&start)).await;
        assert_eq!(stream.event().await.event, "stream.gap");
        // On a slow machine more events age out meanwhile, which is a gap too.
        gateway.publish("ageing", "last").await;
        loop {
            let event = stream.event().await;
            match event.data.as_str() {
                "last" => break,
                "later" => {}
                _ => assert_eq!(event.event, "stream.gap"),
            }
        }
    }

    async fn p4_clearing_a_log_causes_a_gap_only_for_streams_that_lack_events(world) {
        let gateway = world.gateway().await;
        let (mut quick, mut slow) = (gateway.room("emptied").await, gateway.room("emptied").await);
        let start = quick.last_event_id.clone();
        for count in 0..3 {
            gateway.publish("emptied", &count.to_string()).await;
        }
        assert_eq!(quick.datas(3).await, ["0", "1", "2"]);
        let head = quick.last_event_id.clone();
        let other = world.gateway().await;
        let clearing = if world.redis.is_some() { &other } else { &gateway };
        let answer = clearing.answer(clearing.request(Method::DELETE, "/v1/rooms/emptied/events")).await;
        assert_eq!(answer.status(), 204);
        let (_, log) = gateway.get("/v1/rooms/emptied/events").await;
        assert_eq!((&log["head"], &log["oldest"], data_texts(&log).len()), (&json!(head), &Value::Null, 0));
        // As soon as this replica has heard of the clear, it delivers no cached event any more.
        crate::support::eventually("a resumed stream gets a gap", async || {
            let mut late = gateway.resume("/v1/rooms/emptied/stream", Some(&start)).await;
            let event = late.event().await;
            (event.event == "stream.gap").then(|| {
                let gap = json!({"room": "emptied", "from": start, "to": head, "reason": "expired"});
                assert_eq!(event.json(), gap);
            })
        }).await;
        let resumed = gateway.resume("/v1/rooms/emptied/stream", Some(&head)).await;
        assert_eq!(resumed.opened["rooms"]["emptied"]["resume"], "complete");
        // The open streams had got every event.
        let next = gateway.publish("emptied", "3").await;
        assert_eq!(next.split('-').next(), head.split('-').next());
        for mut stream in [quick, resumed] {
            assert_eq!(stream.data().await, "3");
        }
        assert_eq!(slow.datas(4).await, ["0", "1", "2", "3"]);
    }

    async fn p4_a_log_is_cleared_for_all_streams_even_if_the_client_that_asked_has_disconnected(world) {
        use tokio::io::AsyncWriteExt;
        let gateway = world.gateway().await;
        let mut cleared = 0;
        for n in 0..40 {
            let room = format!("emptied.{n}");
            // While the room has a subscriber, the replica caches its events.
            let mut present = gateway.room(&room).await;
            let start = present.last_event_id.clone();
            gateway.publish(&room, "secret").await;
            assert_eq!(present.data().await, "secret");
            let mut socket = tokio::net::TcpStream::connect(gateway.address()).await.unwrap();
            let request = format!("DELETE /v1/rooms/{room}/events HTTP/1.1\r\nhost: localhost\r\n\r\n");
            socket.write_all(request.as_bytes()).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_micros(50 * n)).await;
            drop(socket);
            // A clear that has reached the broker is done after this publish.
            gateway.publish(&format!("other.{n}"), "x").await;
            if gateway.get(&format!("/v1/rooms/{room}")).await.1["retained"] != 0 {
                continue;
            }
            cleared += 1;
            crate::support::eventually("a resumed stream gets a gap", async || {
                let path = format!("/v1/rooms/{room}/stream");
                (gateway.resume(&path, Some(&start)).await.event().await.event == "stream.gap").then_some(())
            }).await;
        }
        assert!(cleared > 5, "{cleared}");
    }

    async fn p4_once_a_log_is_cleared_this_replica_delivers_none_of_its_events(world) {
        let gateway = world.gateway().await;
        for n in 0..30 {
            let room = format!("secret.{n}");
            let present = gateway.room(&room).await;
            for _ in 0..3 {
                gateway.publish(&room, "secret").await;
            }
            let answer = gateway.answer(gateway.request(Method::DELETE, &format!("/v1/rooms/{room}/events"))).await;
            assert_eq!(answer.status(), 204);
            let mut late = gateway.resume(&format!("/v1/rooms/{room}/stream"), Some(&present.last_event_id)).await;
            assert_eq!(late.event().await.event, "stream.gap", "{n}");
        }
    }

    async fn p2_a_stream_that_joins_a_busy_room_without_retention_misses_nothing(world) {
        let gateway = world.gateway_with(|settings| settings.retention.events = 0).await;
        let elsewhere = world.gateway_with(|settings| settings.retention.events = 0).await;
        let publishing = if world.redis.is_some() { &elsewhere } else { &gateway };
        for n in 0..20 {
            let stop = tokio_util::sync::CancellationToken::new();
            let request = publishing.request(Method::POST, &format!("/v1/rooms/busy.{n}/events")).body("x");
            let stopped = stop.clone();
            let publisher = crate::support::spawn(async move {
                while !stopped.is_cancelled() {
                    assert_eq!(request.try_clone().unwrap().send().await.unwrap().status(), 201);
                }
            });
            for _ in 0..3 {
                let mut stream = gateway.room(&format!("busy.{n}")).await;
                for _ in 0..40 {
                    let before: u64 = stream.last_event_id.split_once('-').unwrap().1.parse().unwrap();
                    let event = stream.event().await;
                    assert_eq!(event.event, "message", "{}", event.data);
                    assert_eq!(event.id.split_once('-').unwrap().1.parse(), Ok(before + 1));
                }
            }
            stop.cancel();
            publisher.await.unwrap();
        }
    }

    async fn a_room_without_retention_delivers_every_event_to_open_streams(world) {
        let gateway = world.gateway_with(|settings| settings.retention.events = 0).await;
        let mut streams = [gateway.room("live").await, gateway.room("live").await];
        let publishers = (0..3).map(|_| {
            let request = gateway.request(Method::POST, "/v1/rooms/live/events").body("x");
            crate::support::spawn(async move {
                for _ in 0..300 {
                    assert_eq!(request.try_clone().unwrap().send().await.unwrap().status(), 201);
                }
            })
        });
        let publishers: Vec<_> = publishers.collect();
        for stream in &mut streams {
            let mut position: Option<u64> = None;
            for _ in 0..900 {
                let event = stream.event().await;
                assert_eq!(event.event, "message", "{}", event.data);
                let offset = event.id.split_once('-').unwrap().1.parse().unwrap();
                assert!(position.is_none_or(|position| offset == position + 1), "{offset} after {position:?}");
                position = Some(offset);
            }
        }
        for publisher in publishers {
            crate::support::within("a publisher ends", publisher).await.unwrap();
        }
    }

    async fn the_log_returns_the_name_the_data_and_the_time_of_each_event(world) {
        let gateway = world.gateway().await;
        gateway.publish_json("log", "chat", json!({"a": [1]})).await;
        gateway.publish("log", "a \"text\"").await;
        let (_, log) = gateway.get("/v1/rooms/log/events").await;
        assert_eq!(log["events"][0]["event"], "chat");
        assert_eq!(log["events"][0]["data"], json!({"a": [1]}));
        assert_eq!(log["events"][1]["event"], Value::Null);
        assert_eq!(log["events"][1]["data"], "a \"text\"");
        assert!(log["events"][1]["published_at"].as_str().unwrap().ends_with('Z'));
    }

    async fn a_page_after_an_unknown_position_reports_a_gap(world) {
        let gateway = world.gateway().await;
        let id = gateway.publish("log", "first").await;
        let (_, log) = gateway.get("/v1/rooms/log/events?after=1700000000000000-5").await;
        assert_eq!(log["gap"]["reason"], "unknown_position");
        assert_eq!(data_texts(&log), ["first"]);
        let (_, log) = gateway.get(&format!("/v1/rooms/log/events?after={id}")).await;
        assert_eq!((&log["gap"], log["events"].as_array().unwrap().len()), (&Value::Null, 0));
    }

    async fn a_stream_can_resume_from_the_head_of_the_log(world) {
        let gateway = world.gateway().await;
        let (_, log) = gateway.get("/v1/rooms/unused/events").await;
        assert_eq!((&log["oldest"], log["events"].as_array().unwrap().len()), (&Value::Null, 0));
        let head = log["head"].as_str().unwrap();
        gateway.publish("unused", "first").await;
        let mut stream = gateway.resume("/v1/rooms/unused/stream", Some(head)).await;
        assert_eq!(stream.data().await, "first");
    }

    async fn a_room_is_described(world) {
        let gateway = world.gateway().await;
        let first = gateway.publish("described", "1").await;
        let last = gateway.publish("described", "2").await;
        let (_, room) = gateway.get("/v1/rooms/described").await;
        let expected = json!({
            "room": "described", "subscribers": 0, "head": last, "oldest": first, "retained": 2, "finished": null
        });
        assert_eq!(room, expected);
    }

    async fn a_batch_keeps_the_order_in_each_room_and_copies_share_an_id(world) {
        let gateway = world.gateway().await;
        let mut streams = [gateway.room("a").await, gateway.room("b").await];
        let mut events: Vec<_> = (0..50).map(|n| json!({"room": "a", "event": "n", "data": n})).collect();
        events.push(json!({"rooms": ["a", "b"], "data": "both"}));
        let (status, answer) = gateway.post("/v1/events", &json!({"events": events})).await;
        assert_eq!(status, 200, "{answer}");
        let results = answer["results"].as_array().unwrap();
        assert_eq!(results.len(), 51);
        assert!(results.iter().all(|result| result["status"] == 201));
        assert_eq!(results[50]["published"].as_array().unwrap().len(), 2);
        let expected: Vec<_> = (0..50).map(|n| n.to_string()).collect();
        assert_eq!(streams[0].datas(50).await, expected);
        assert_eq!(streams[0].data().await, r#""both""#);
        assert_eq!(streams[1].data().await, r#""both""#);
        let (_, log) = gateway.get("/v1/rooms/b/events").await;
        assert_eq!(log["events"][0]["publish_id"], results[50]["publish_id"]);
    }

    async fn a_batch_with_anything_wrong_in_it_stores_nothing(world) {
        let gateway = world.gateway().await;
        for wrong in [
            json!({"events": []}),
            json!([[["a", null, null, 1, [], null]]]),
            json!({"events": [["a", null, null, 1, [], null]]}),
            json!({"events": [{"room": "a", "data": 1}, {"data": 1}]}),
            json!({"events": [{"room": "a", "data": 1}, {"room": "a", "rooms": ["b"], "data": 1}]}),
            json!({"events": [{"room": "a", "data": 1}, {"rooms": [], "data": 1}]}),
            json!({"events": [{"rooms": ["a", "b", "a"], "data": 1}]}),
            json!({"events": [{"room": "a", "data": 1}, {"room": "a/b", "data": 1}]}),
            json!({"events": [{"room": "a", "data": 1}, {"room": "a"}]}),
            json!({"events": [{"room": "a", "data": 1}, {"room": "a", "data": 1, "event": "stream.x"}]}),
            json!({"events": vec![json!({"room": "a", "data": 1}); 1001]}),
        ] {
            let (status, problem) = gateway.post("/v1/events", &wrong).await;
            assert_eq!((status.as_u16(), &problem["code"]), (400, &json!("invalid_body")), "{wrong}");
        }
        assert_eq!(gateway.get("/v1/rooms/a").await.1["retained"], 0);
    }
}
