//! The promises, each by its number, on both brokers.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{Stream, spawn, within};

on_both_brokers! {
    async fn p1_all_subscribers_see_the_events_of_concurrent_publishers_in_one_order(world) {
        let gateway = world.gateway().await;
        let mut streams = Vec::new();
        for _ in 0..5 {
            streams.push(gateway.room("p1").await);
        }
        let publishers = (0..4).map(|publisher| {
            let request = gateway.request(reqwest::Method::POST, "/v1/rooms/p1/events");
            spawn(async move {
                for count in 0..50 {
                    let request = request.try_clone().unwrap().body(format!("{publisher} {count}"));
                    assert_eq!(request.send().await.unwrap().status(), 201);
                }
            })
        });
        for publisher in publishers.collect::<Vec<_>>() {
            within("a publisher ends", publisher).await.unwrap();
        }
        let mut records = Vec::new();
        for stream in &mut streams {
            records.push(stream.datas(200).await);
        }
        assert!(records.iter().all(|record| *record == records[0]));
        for publisher in 0..4 {
            let own: Vec<_> = records[0].iter().filter(|data| data.starts_with(&format!("{publisher} "))).collect();
            let expected: Vec<_> = (0..50).map(|count| format!("{publisher} {count}")).collect();
            assert_eq!(own, expected.iter().collect::<Vec<_>>());
        }
    }

    async fn p1_an_event_published_after_anothers_201_comes_after_it(world) {
        let gateway = world.gateway().await;
        let mut stream = gateway.room("p1").await;
        for count in 0..20 {
            let id = gateway.publish("p1", &count.to_string()).await;
            let event = stream.event().await;
            assert_eq!((event.id, event.data), (id, count.to_string()));
        }
    }

    async fn p2_a_subscriber_that_drops_and_resumes_gets_all_that_came_meanwhile(world) {
        let gateway = world.gateway().await;
        let mut stream = gateway.room("p2").await;
        gateway.publish("p2", "seen").await;
        assert_eq!(stream.data().await, "seen");
        let position = stream.last_event_id.clone();
        drop(stream);
        for count in 0..300 {
            gateway.publish("p2", &count.to_string()).await;
        }
        let mut stream = gateway.resume("/v1/rooms/p2/stream", Some(&position)).await;
        assert_eq!(stream.opened["rooms"]["p2"], json!({"position": position, "resume": "complete"}));
        let expected: Vec<_> = (0..300).map(|count| count.to_string()).collect();
        assert_eq!(stream.datas(300).await, expected);
    }

    async fn p3_no_id_comes_twice_at_the_seam_of_replay_and_live(world) {
        let gateway = world.gateway().await;
        let first = gateway.room("p3").await;
        let start = first.last_event_id.clone();
        drop(first);
        let request = gateway.request(reqwest::Method::POST, "/v1/rooms/p3/events");
        let publisher = spawn(async move {
            for count in 0..300 {
                let request = request.try_clone().unwrap().body(count.to_string());
                assert_eq!(request.send().await.unwrap().status(), 201);
            }
        });
        // Subscribers that resume from the start, one after the other, while events are being published.
        let mut streams = Vec::new();
        for _ in 0..20 {
            streams.push(gateway.resume("/v1/rooms/p3/stream", Some(&start)).await);
        }
        within("the publisher ends", publisher).await.unwrap();
        let expected: Vec<_> = (0..300).map(|count| count.to_string()).collect();
        for stream in &mut streams {
            assert_eq!(stream.datas(300).await, expected);
        }
    }

    async fn p4_events_that_the_log_no_longer_holds_are_reported_by_one_gap(world) {
        let gateway = world.gateway_with(|settings| {
            settings.retention.events = 10;
            settings.streams.ring_events = 10;
        }).await;
        let stream = gateway.room("p4").await;
        let start = stream.last_event_id.clone();
        drop(stream);
        let mut ids = Vec::new();
        // Redis trims by whole nodes of about a hundred entries.
        for count in 0..300 {
            ids.push(gateway.publish("p4", &count.to_string()).await);
        }
        let (_, room) = gateway.get("/v1/rooms/p4").await;
        let retained = usize::try_from(room["retained"].as_u64().unwrap()).unwrap();
        assert!(retained < 300, "{room}");
        let mut stream = gateway.resume("/v1/rooms/p4/stream", Some(&start)).await;
        assert_eq!(stream.opened["rooms"]["p4"], json!({"position": start, "resume": "gap"}));
        let gap = stream.event().await;
        assert_eq!(gap.event, "stream.gap");
        let last_missing = &ids[300 - retained - 1];
        assert_eq!(gap.id, *last_missing);
        assert_eq!(gap.json(), json!({"room": "p4", "from": start, "to": last_missing, "reason": "trimmed"}));
        let expected: Vec<_> = (300 - retained..300).map(|count| count.to_string()).collect();
        assert_eq!(stream.datas(retained).await, expected);
    }

    async fn p4_a_resume_exactly_at_the_head_is_no_gap(world) {
        let gateway = world.gateway().await;
        let id = gateway.publish("p4", "last").await;
        let mut stream = gateway.resume("/v1/rooms/p4/stream", Some(&id)).await;
        assert_eq!(stream.opened["rooms"]["p4"]["resume"], "complete");
        gateway.publish("p4", "next").await;
        assert_eq!(stream.data().await, "next");
    }

    async fn p4_a_position_that_the_log_never_gave_out_is_a_gap(world) {
        let gateway = world.gateway().await;
        let id = gateway.publish("p4", "first").await;
        let epoch: u64 = id.split_once('-').unwrap().0.parse().unwrap();
        let unknown = "1700000000000000-7".to_owned();
        let future = format!("{}-3", epoch + 1_000_000);
        let beyond = format!("{epoch}-9");
        for (position, reason, from, to) in [
            (&unknown, "unknown_position", &unknown, &format!("{epoch}-0")),
            (&future, "unknown_position", &future, &id),
            (&beyond, "diverged", &id, &id),
        ] {
            let mut stream = gateway.resume("/v1/rooms/p4/stream", Some(position)).await;
            assert_eq!(stream.opened["rooms"]["p4"]["resume"], "gap", "{position}");
            let gap = stream.event().await;
            assert_eq!(gap.event, "stream.gap");
            assert_eq!(gap.json(), json!({"room": "p4", "from": from, "to": to, "reason": reason}));
        }
    }

    async fn p5_a_client_that_drops_before_its_first_event_resumes_where_it_joined(world) {
        let gateway = world.gateway().await;
        gateway.publish("p5", "before").await;
        let stream = gateway.room("p5").await;
        let position = stream.last_event_id.clone();
        assert_eq!(stream.opened["rooms"]["p5"], json!({"position": position, "resume": "fresh"}));
        drop(stream);
        gateway.publish("p5", "meanwhile").await;
        let mut stream = gateway.resume("/v1/rooms/p5/stream", Some(&position)).await;
        assert_eq!(stream.data().await, "meanwhile");
        assert_eq!(stream.opened["rooms"]["p5"], json!({"position": position, "resume": "complete"}));
    }

    async fn p5_an_empty_room_has_a_position_too(world) {
        let gateway = world.gateway().await;
        let stream = gateway.room("empty").await;
        assert!(stream.last_event_id.ends_with("-0"), "{}", stream.last_event_id);
        let position = stream.last_event_id.clone();
        drop(stream);
        gateway.publish("empty", "first").await;
        let mut stream = gateway.resume("/v1/rooms/empty/stream", Some(&position)).await;
        assert_eq!(stream.data().await, "first");
    }

    async fn p7_a_reader_that_stalls_delays_nobody_and_goes_on_from_the_log(world) {
        let gateway = world.gateway_with(|settings| {
            (settings.streams.ring_events, settings.retention.bytes) = (20, 100_000_000);
        }).await;
        let mut slow = gateway.room("p7").await;
        let mut quick = gateway.room("p7").await;
        // More bytes than the kernel and the gateway buffer for a reader that stalls.
        let large = "x".repeat(60_000);
        for count in 0..100 {
            gateway.publish("p7", &format!("{count} {large}")).await;
            assert!(quick.data().await.starts_with(&format!("{count} ")));
        }
        for count in 0..100 {
            assert!(slow.data().await.starts_with(&format!("{count} ")), "event {count}");
        }
    }

    async fn p7_a_reader_that_takes_nothing_is_cut_off_and_resumes(world) {
        let gateway = world.gateway_with(|settings| {
            (settings.streams.stall_timeout, settings.retention.bytes) = (Duration::from_secs(1), 100_000_000);
        }).await;
        let mut stalled = gateway.room("stalled").await;
        let large = "x".repeat(60_000);
        let mut count = 0;
        crate::support::eventually("the reader is cut off", async || {
            // More than the kernel buffers, then more again, until the kernel drops the connection.
            gateway.publish("stalled", &format!("{count} {large}")).await;
            count += 1;
            (count > 100 && gateway.get("/v1/rooms/stalled").await.1["subscribers"] == 0).then_some(())
        }).await;
        let mut received = 0;
        while let Some(event) = stalled.next().await {
            assert!(event.data.starts_with(&format!("{received} ")));
            received += 1;
        }
        assert!(received < count);
        let mut resumed = gateway.resume("/v1/rooms/stalled/stream", Some(&stalled.last_event_id)).await;
        for expected in received..count {
            assert!(resumed.data().await.starts_with(&format!("{expected} ")));
        }
    }

    async fn p8_acknowledged_events_are_in_the_log(world) {
        let gateway = world.gateway().await;
        let mut ids = Vec::new();
        for count in 0..20 {
            ids.push(gateway.publish("p8", &count.to_string()).await);
        }
        let (status, log) = gateway.get("/v1/rooms/p8/events").await;
        assert_eq!(status, StatusCode::OK);
        let logged: Vec<_> = log["events"].as_array().unwrap().iter().map(|event| event["id"].clone()).collect();
        assert_eq!(logged, ids.iter().map(|id| Value::from(id.as_str())).collect::<Vec<_>>());
        assert_eq!(log["oldest"], Value::from(ids[0].as_str()));
        assert_eq!(log["head"], Value::from(ids[19].as_str()));
    }

    async fn p12_a_stopping_gateway_ends_its_streams_with_a_reason_and_a_position(world) {
        let gateway = world.gateway().await;
        let mut stream = gateway.room("p12").await;
        gateway.publish("p12", "seen").await;
        assert_eq!(stream.data().await, "seen");
        let position = stream.last_event_id.clone();
        let url = format!("{}/v1/rooms/p12/stream", gateway.url);
        gateway.stop().await.unwrap();
        let end = stream.event().await;
        assert_eq!(end.event, "stream.end");
        assert_eq!(end.json(), json!({"reason": "draining", "reconnect": "now"}));
        assert_eq!(end.id, position);
        assert!((2000..=4000).contains(&stream.retry.unwrap()), "{:?}", stream.retry);
        assert_eq!(stream.next().await, None);
        // The stream resumes on another gateway. An embedded broker ends with its process, so there the history is
        // another.
        let other = world.gateway().await;
        let mut stream = Stream::open(&url.replace(url.split("/v1").next().unwrap(), &other.url), Some(&position)).await;
        if world.redis.is_some() {
            assert_eq!(stream.opened["rooms"]["p12"]["resume"], "complete");
        } else {
            assert_eq!(stream.event().await.event, "stream.gap");
        }
        other.publish("p12", "next").await;
        assert_eq!(stream.data().await, "next");
    }
}
