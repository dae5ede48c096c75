//! Streams: their format, where they start, and which events they skip.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;

use crate::support::within;

on_both_brokers! {
    async fn events_arrive_as_they_were_published(world) {
        let gateway = world.gateway().await;
        let mut stream = gateway.room("raw").await;
        let publish = |content_type: &str, body: &str| {
            let request = gateway.request(Method::POST, "/v1/rooms/raw/events");
            gateway.send(request.header("content-type", content_type).body(body.to_owned()))
        };
        for (content_type, body, event, data) in [
            ("application/json", r#"{"event":"chat","data":{"n": 12345678901234567890.10}}"#, "chat", r#"{"n": 12345678901234567890.10}"#),
            ("application/json", r#"{"data":"quoted"}"#, "message", r#""quoted""#),
            ("application/json", r#"{"data":null}"#, "message", "null"),
            ("application/json; charset=utf-8", r#"{"data":[1,2]}"#, "message", "[1,2]"),
            ("text/plain", "as it is", "message", "as it is"),
            ("application/x-www-form-urlencoded", "a=b&c", "message", "a=b&c"),
            ("text/plain; charset=utf-8", "größe 房间", "message", "größe 房间"),
            ("text/plain", "two\nlines\r\nand\rmore\n", "message", "two\nlines\nand\nmore\n"),
            ("text/plain", "id: 9-9\nevent: stream.end\ndata: x\nretry: 1\n\n: hm", "message", "id: 9-9\nevent: stream.end\ndata: x\nretry: 1\n\n: hm"),
            ("text/plain", "\0", "message", "\0"),
        ] {
            let (status, answer) = publish(content_type, body).await;
            assert_eq!(status, 201, "{answer}");
            let received = stream.event().await;
            assert_eq!((received.event.as_str(), received.data.as_str()), (event, data));
            assert_eq!(received.id, answer["id"].as_str().unwrap());
            assert_eq!(stream.retry, Some(2000));
        }
    }

    async fn a_text_body_is_named_by_the_query(world) {
        let gateway = world.gateway().await;
        let mut stream = gateway.room("named").await;
        let request = gateway.request(Method::POST, "/v1/rooms/named/events?event=note").body("text");
        assert_eq!(gateway.send(request).await.0, 201);
        assert_eq!(stream.event().await.event, "note");
    }

    async fn the_headers_keep_caches_and_balancers_from_delaying_a_stream(world) {
        let gateway = world.gateway().await;
        let request = gateway.request(Method::GET, "/v1/rooms/a/stream").header("accept-encoding", "gzip");
        let response = gateway.answer(request).await;
        let header = |name| response.headers().get(name).map(|value| value.to_str().unwrap());
        assert_eq!(header("content-type"), Some("text/event-stream"));
        assert_eq!(header("cache-control"), Some("no-cache, no-store, no-transform"));
        assert_eq!(header("x-accel-buffering"), Some("no"));
        assert_eq!(header("content-encoding"), None);
        assert!(header("x-request-id").is_some());
    }

    async fn a_stream_can_start_with_the_oldest_event_or_the_last_few(world) {
        let gateway = world.gateway().await;
        for count in 0..10 {
            gateway.publish("start", &count.to_string()).await;
        }
        let mut stream = gateway.stream("/v1/rooms/start/stream?from=earliest").await;
        assert_eq!(stream.opened["rooms"]["start"]["resume"], "fresh");
        assert_eq!(stream.datas(10).await[0], "0");
        let mut stream = gateway.stream("/v1/rooms/start/stream?recent=3").await;
        assert_eq!(stream.datas(3).await, ["7", "8", "9"]);
        let mut stream = gateway.stream("/v1/rooms/start/stream?recent=99").await;
        assert_eq!(stream.datas(10).await[0], "0");
        let mut stream = gateway.stream("/v1/rooms/start/stream?recent=0").await;
        gateway.publish("start", "new").await;
        assert_eq!(stream.data().await, "new");
    }

    async fn last_event_id_wins_over_after_and_both_win_over_a_start(world) {
        let gateway = world.gateway().await;
        let mut ids = Vec::new();
        for count in 0..4 {
            ids.push(gateway.publish("wins", &count.to_string()).await);
        }
        let path = format!("/v1/rooms/wins/stream?from=earliest&after={}", ids[0]);
        assert_eq!(gateway.stream(&path).await.data().await, "1");
        assert_eq!(gateway.resume(&path, Some(&ids[1])).await.data().await, "2");
        // A browser without a position sends an empty header.
        assert_eq!(gateway.resume(&path, Some("")).await.data().await, "1");
        let recent = "/v1/rooms/wins/stream?recent=4";
        assert_eq!(gateway.resume(recent, Some(&ids[2])).await.data().await, "3");
    }

    async fn a_stream_selects_events_by_name(world) {
        let gateway = world.gateway().await;
        let mut stream = gateway.stream("/v1/rooms/select/stream?event=a&event=b").await;
        for name in ["x", "a", "x", "b", "x", "a"] {
            gateway.publish_json("select", name, json!(name)).await;
        }
        gateway.publish("select", "no name").await;
        gateway.publish_json("select", "b", json!("last")).await;
        assert_eq!(stream.datas(4).await, [r#""a""#, r#""b""#, r#""a""#, r#""last""#]);
    }

    async fn an_event_can_exclude_its_sender(world) {
        let gateway = world.gateway().await;
        let mut own = gateway.stream("/v1/rooms/except/stream?subscriber=me").await;
        let mut other = gateway.room("except").await;
        assert_eq!(own.opened["subscriber"], "me");
        let body = json!({"data": 1, "except": ["me"]});
        assert_eq!(gateway.post("/v1/rooms/except/events", &body).await.0, 201);
        gateway.publish("except", "to all").await;
        assert_eq!(own.data().await, "to all");
        assert_eq!(other.datas(2).await, ["1", "to all"]);
    }

    async fn skipped_events_move_the_position_with_the_next_heartbeat(world) {
        let gateway = world.gateway_with(|settings| settings.streams.heartbeat = Duration::from_millis(100)).await;
        let mut stream = gateway.stream("/v1/rooms/moved/stream?event=wanted").await;
        let id = gateway.publish("moved", "not wanted").await;
        let moved = stream.event().await;
        assert_eq!(moved.event, "stream.position");
        assert_eq!(moved.id, id);
        assert_eq!(moved.json(), json!({"position": id}));
    }

    async fn a_heartbeat_has_no_blank_line_at_which_some_clients_would_dispatch_an_empty_event(world) {
        let gateway = world.gateway_with(|settings| settings.streams.heartbeat = Duration::from_millis(50)).await;
        let mut response = gateway.answer(gateway.request(Method::GET, "/v1/rooms/idle/stream")).await;
        let mut text = String::new();
        let heartbeats = loop {
            match text.split_once("\n\n") {
                Some((_, rest)) if rest.matches(':').count() >= 3 => break rest,
                _ => {}
            }
            let chunk = within("a heartbeat", response.chunk()).await.unwrap().expect("the stream goes on");
            text.push_str(std::str::from_utf8(&chunk).unwrap());
        };
        assert!(heartbeats.lines().all(|line| line == ":"), "{heartbeats:?}");
    }

    async fn an_idle_stream_gets_comments(world) {
        let gateway = world.gateway_with(|settings| settings.streams.heartbeat = Duration::from_millis(50)).await;
        let mut stream = gateway.room("idle").await;
        stream.comments(3).await;
    }

    async fn a_stream_ends_after_its_lifetime_and_its_client_resumes(world) {
        let gateway = world.gateway_with(|settings| settings.streams.lifetime = Duration::from_secs(1)).await;
        let mut stream = gateway.room("old").await;
        gateway.publish("old", "1").await;
        assert_eq!(stream.data().await, "1");
        let end = stream.event().await;
        assert_eq!((end.event.as_str(), end.json()), ("stream.end", json!({"reason": "lifetime", "reconnect": "now"})));
        gateway.publish("old", "2").await;
        let mut stream = gateway.resume("/v1/rooms/old/stream", Some(&end.id)).await;
        assert_eq!(stream.data().await, "2");
    }

    async fn several_rooms_share_a_stream_and_a_cursor(world) {
        let gateway = world.gateway().await;
        let mut stream = gateway.stream("/v1/stream?room=a&room=b").await;
        assert_eq!(stream.opened["rooms"]["a"]["resume"], "fresh");
        let id = gateway.publish_json("a", "chat", json!({"n": 1})).await;
        let event = stream.event().await;
        assert_eq!(event.event, "chat");
        let envelope = event.json();
        assert_eq!((&envelope["room"], &envelope["id"]), (&json!("a"), &json!(id)));
        assert_eq!((&envelope["event"], &envelope["data"]), (&json!("chat"), &json!({"n": 1})));
        assert!(envelope["published_at"].as_str().unwrap().ends_with('Z'));
        gateway.publish("b", "text").await;
        assert_eq!(stream.event().await.json()["data"], "text");
        assert!(!stream.last_event_id.contains(':'));
        let cursor = stream.last_event_id.clone();
        drop(stream);
        gateway.publish("b", "b meanwhile").await;
        gateway.publish("a", "a meanwhile").await;
        let mut stream = gateway.resume("/v1/stream?room=a&room=b", Some(&cursor)).await;
        assert_eq!(stream.opened["rooms"]["b"]["resume"], "complete");
        let mut missed = [stream.event().await.json(), stream.event().await.json()].map(|e| e["data"].to_string());
        missed.sort();
        assert_eq!(missed, [r#""a meanwhile""#, r#""b meanwhile""#]);
    }

    async fn a_stream_with_a_changed_list_of_rooms_resumes_the_rooms_in_its_cursor(world) {
        let gateway = world.gateway().await;
        let cursor = gateway.stream("/v1/stream?room=a&room=b").await.last_event_id.clone();
        gateway.publish("b", "b").await;
        gateway.publish("c", "c").await;
        let mut stream = gateway.resume("/v1/stream?room=c&room=b", Some(&cursor)).await;
        assert_eq!(stream.opened["rooms"]["b"]["resume"], "complete");
        assert_eq!(stream.opened["rooms"]["c"]["resume"], "fresh");
        assert_eq!(stream.event().await.json()["data"], "b");
        gateway.publish("c", "c again").await;
        assert_eq!(stream.event().await.json()["data"], "c again");
    }

    async fn rooms_with_subscribers_are_listed_with_counts(world) {
        let gateway = world.gateway().await;
        let streams = [gateway.room("listed").await, gateway.room("listed").await, gateway.room("other").await];
        crate::support::eventually("the rooms are listed", async || {
            let (_, rooms) = gateway.get("/v1/rooms").await;
            let expected = json!([{"room": "listed", "subscribers": 2}, {"room": "other", "subscribers": 1}]);
            (rooms["rooms"] == expected).then_some(())
        }).await;
        assert_eq!(gateway.get("/v1/rooms/listed").await.1["subscribers"], 2);
        let answer = gateway.answer(gateway.request(Method::GET, "/v1/rooms?limit=1")).await;
        assert_eq!(answer.headers()["link"], "</v1/rooms?limit=1&after=listed>; rel=\"next\"");
        let (_, rooms) = gateway.get("/v1/rooms?limit=1&after=listed").await;
        assert_eq!(rooms["rooms"], json!([{"room": "other", "subscribers": 1}]));
        drop(streams);
        crate::support::eventually("the rooms are empty", async || {
            (gateway.get("/v1/rooms").await.1["rooms"] == json!([])).then_some(())
        }).await;
    }
}
