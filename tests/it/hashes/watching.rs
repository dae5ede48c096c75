//! Streams of hashes: the snapshot, the changes, and what a client gets that comes back.

use std::time::Duration;

use reqwest::Method;
use roomcast::names::{Bookmark, WatchBase};
use serde_json::{Value, json};

use super::put;
use crate::auth::{claims, close, token};
use crate::support::{Fields, Gateway, Link, Links, Proxy, Stream, Told, Watcher, World, stored_fields, within};

/// A gateway on which a hash stays live while nobody watches it.
async fn gateway(world: &World) -> Gateway {
    world.gateway_with(|settings| settings.streams.room_idle_ttl = Duration::from_mins(10)).await
}

async fn watch(gateway: &Gateway, hash: &str) -> Watcher {
    let mut watcher = Watcher::new(hash);
    assert_eq!(watcher.open(&gateway.url).await, "fresh");
    watcher
}

fn fields<const N: usize>(fields: [(&str, &str); N]) -> Fields {
    fields.map(|(field, value)| (field.into(), value.into())).into()
}

/// Sends a request about a hash. Panics unless it succeeds.
async fn send(gateway: &Gateway, method: Method, path: &str, content_type: &str, body: impl Into<reqwest::Body>) {
    let request = gateway.request(method, &format!("/v1/hashes/{path}")).header("content-type", content_type);
    let (status, body) = gateway.send(request.body(body)).await;
    assert!(status.is_success(), "{path}: {body}");
}

async fn patch(gateway: &Gateway, hash: &str, fields: &Value) {
    send(gateway, Method::PATCH, hash, "application/merge-patch+json", fields.to_string()).await;
}

async fn delete(gateway: &Gateway, path: &str) {
    send(gateway, Method::DELETE, path, "text/plain", "").await;
}

/// What a watcher is told next, without its id.
async fn next(watcher: &mut Watcher) -> (&'static str, Fields, Vec<String>) {
    match watcher.told().await {
        Told::Set { fields, .. } => ("set", fields, Vec::new()),
        Told::Delete { fields, .. } => ("delete", Fields::new(), fields),
        Told::Clear { reason, .. } => ("clear", Fields::new(), vec![reason]),
        Told::Snapshot { fields, .. } => ("snapshot", fields, Vec::new()),
        Told::Gap { reason, .. } => ("gap", Fields::new(), vec![reason]),
    }
}

fn set<const N: usize>(set: [(&str, &str); N]) -> (&'static str, Fields, Vec<String>) {
    ("set", fields(set), Vec::new())
}

fn snapshot<const N: usize>(all: [(&str, &str); N]) -> (&'static str, Fields, Vec<String>) {
    ("snapshot", fields(all), Vec::new())
}

fn named(kind: &'static str, name: &str) -> (&'static str, Fields, Vec<String>) {
    (kind, Fields::new(), vec![name.into()])
}

on_both_brokers! {
    async fn p9_a_watcher_gets_the_fields_and_then_every_kind_of_change(world) {
        let gateway = gateway(&world).await;
        put(&gateway, "/v1/hashes/lamp/fields/a", "1").await;
        put(&gateway, "/v1/hashes/lamp/fields/b", "2").await;
        let mut watcher = watch(&gateway, "lamp").await;
        assert_eq!(next(&mut watcher).await, snapshot([("a", "1"), ("b", "2")]));
        put(&gateway, "/v1/hashes/lamp/fields/a", "x").await;
        assert_eq!(next(&mut watcher).await, set([("a", "x")]));
        // The same value again is a write too.
        put(&gateway, "/v1/hashes/lamp/fields/a", "x").await;
        assert_eq!(next(&mut watcher).await, set([("a", "x")]));
        patch(&gateway, "lamp", &json!({"a": "3", "b": null, "c": "4", "none": null})).await;
        assert_eq!(next(&mut watcher).await, set([("a", "3"), ("c", "4")]));
        assert_eq!(next(&mut watcher).await, named("delete", "b"));
        let operations = json!([
            {"op": "test", "path": "/a", "value": "3"}, {"op": "move", "from": "/a", "path": "/d"},
            {"op": "copy", "from": "/c", "path": "/e"},
        ]);
        send(&gateway, Method::PATCH, "lamp", "application/json-patch+json", operations.to_string()).await;
        assert_eq!(next(&mut watcher).await, set([("d", "3"), ("e", "4")]));
        assert_eq!(next(&mut watcher).await, named("delete", "a"));
        for (by, sum) in [(json!(5), "9"), (json!(0.25), "9.25")] {
            let (status, _) = gateway.post("/v1/hashes/lamp/fields/c/increment", &json!({"by": by})).await;
            assert_eq!(status, 200);
            assert_eq!(next(&mut watcher).await, set([("c", sum)]));
        }
        delete(&gateway, "lamp/fields/c").await;
        assert_eq!(next(&mut watcher).await, named("delete", "c"));
        delete(&gateway, "lamp").await;
        assert_eq!(next(&mut watcher).await, named("clear", "removed"));
        put(&gateway, "/v1/hashes/lamp/fields/new", "").await;
        assert_eq!(next(&mut watcher).await, set([("new", "")]));
        assert_eq!(watcher.fields(), Some(&stored_fields(&gateway.url, "lamp").await));
    }

    async fn p9_writes_that_change_nothing_are_not_told(world) {
        let gateway = gateway(&world).await;
        let mut watcher = watch(&gateway, "lamp").await;
        assert_eq!(next(&mut watcher).await, snapshot([]));
        put(&gateway, "/v1/hashes/lamp/fields/a", "1").await;
        let path = "/v1/hashes/lamp/fields/a";
        let (status, _) = gateway.send(gateway.request(Method::PUT, path).header("if-none-match", "*").body("2")).await;
        assert_eq!(status, 412);
        assert_eq!(gateway.send(gateway.request(Method::DELETE, "/v1/hashes/lamp/fields/none")).await.0, 404);
        patch(&gateway, "lamp", &json!({"none": null})).await;
        for _ in 0..2 {
            // The second one is a repeat.
            let request = gateway.request(Method::PUT, path).header("idempotency-key", "once").body("3");
            assert_eq!(gateway.send(request).await.0, 200);
        }
        put(&gateway, path, "4").await;
        for value in ["1", "3", "4"] {
            assert_eq!(next(&mut watcher).await, set([("a", value)]));
        }
    }

    async fn p9_a_change_has_the_subject_that_has_made_it(world) {
        let gateway = world.gateway_with(close).await;
        let subject = |subject: &str, grant: Value| {
            let mut claims = claims(&grant);
            claims["sub"] = json!(subject);
            token(&claims)
        };
        let reader = subject("reader", json!({"read": ["lamp"]}));
        let mut watcher = Watcher::with_query("lamp", &format!("?access_token={reader}"));
        watcher.open(&gateway.url).await;
        watcher.told().await;
        for name in ["ann", "bob"] {
            let writer = subject(name, json!({"read": ["lamp"], "write": ["lamp"]}));
            for (method, path) in [
                (Method::PUT, "/v1/hashes/lamp/fields/a"), (Method::DELETE, "/v1/hashes/lamp/fields/a"),
                (Method::PUT, "/v1/hashes/lamp/fields/b"), (Method::DELETE, "/v1/hashes/lamp"),
            ] {
                let request = gateway.request(method, path).bearer_auth(&writer).body("1");
                assert!(gateway.send(request).await.0.is_success());
                let told = watcher.told().await;
                let (Told::Set { by, .. } | Told::Delete { by, .. } | Told::Clear { by, .. }) = &told else { panic!("{told:?}") };
                assert_eq!(by.as_deref(), Some(name), "{told:?}");
            }
        }
    }

    async fn p9_values_and_names_of_any_kind_are_told(world) {
        let gateway = gateway(&world).await;
        let stored = async |field: &str, value: &[u8]| {
            send(&gateway, Method::PUT, &format!("any/fields/{field}"), "application/octet-stream", value.to_vec()).await;
        };
        stored("before", b"\xff\x00 before").await;
        let mut watcher = watch(&gateway, "any").await;
        watcher.told().await;
        assert_eq!(watcher.fields().unwrap()["before"], b"\xff\x00 before");
        for (path, name) in [
            ("a%20b", "a b"), ("x%2Fy", "x/y"), ("%2A", "*"), ("100%25", "100%"), ("%C3%9F", "ß"), ("%22%5C", "\"\\"),
            ("%7Bz%7D", "{z}"), ("1%3A2", "1:2"),
        ] {
            for value in [&b"\xff\x00\r\n"[..], b"", b"two\nlines\r\n", "größe".as_bytes(), b"{\"a\":1}"] {
                stored(path, value).await;
                let told = watcher.told().await;
                let Told::Set { fields, .. } = &told else { panic!("{told:?}") };
                assert_eq!(fields, &Fields::from([(name.into(), value.to_vec())]));
            }
        }
        delete(&gateway, "any/fields/a%20b").await;
        assert_eq!(next(&mut watcher).await, named("delete", "a b"));
        let mut other = watch(&gateway, "any").await;
        other.told().await;
        assert_eq!(other.fields(), watcher.fields());
    }

    async fn p9_a_large_snapshot_comes_in_parts_and_one_that_is_not_whole_is_sent_again(world) {
        let gateway = gateway(&world).await;
        let mut all = Fields::new();
        for n in 0..30 {
            let (field, value) = (format!("f{n}"), format!("{n}").repeat(10_000 / n.to_string().len()));
            put(&gateway, &format!("/v1/hashes/big/fields/{field}"), &value).await;
            all.insert(field, value.into_bytes());
        }
        let mut watcher = watch(&gateway, "big").await;
        let (mut parts, mut whole) = (0, false);
        while !whole {
            let part = watcher.next().await.unwrap();
            assert_eq!((part.event.as_str(), &part.json()["part"]), ("hash.snapshot", &json!(parts)));
            (parts, whole) = (parts + 1, part.json()["last"] == true);
        }
        assert!(parts >= 4, "{parts} parts");
        assert_eq!(watcher.fields(), Some(&all));
        // It leaves after each of the parts.
        let mut watcher = watch(&gateway, "big").await;
        for left in 0..parts {
            for _ in 0..left {
                assert_eq!(watcher.next().await.unwrap().event, "hash.snapshot");
            }
            assert!(watcher.last_event_id.as_ref().unwrap().ends_with('!'));
            watcher.leave();
            put(&gateway, "/v1/hashes/big/fields/f0", &left.to_string()).await;
            assert_eq!(watcher.open(&gateway.url).await, "snapshot");
        }
        watcher.until_value("f0", &(parts - 1).to_string()).await;
        assert_eq!(watcher.fields(), Some(&stored_fields(&gateway.url, "big").await));
        assert_eq!(watcher.gaps(), [""; 0]);
    }

    async fn p9_a_watcher_can_select_fields(world) {
        let gateway = world.gateway_with(|settings| {
            settings.streams.room_idle_ttl = Duration::from_mins(10);
            settings.streams.heartbeat = Duration::from_millis(100);
        }).await;
        patch(&gateway, "lamp", &json!({"a": "1", "b": "2", "c d": "3"})).await;
        let mut watcher = Watcher::with_query("lamp", "?field=a&field=c+d&field=none");
        watcher.open(&gateway.url).await;
        assert_eq!(next(&mut watcher).await, snapshot([("a", "1"), ("c d", "3")]));
        patch(&gateway, "lamp", &json!({"a": "4", "b": "5", "e": "6"})).await;
        assert_eq!(next(&mut watcher).await, set([("a", "4")]));
        patch(&gateway, "lamp", &json!({"b": null, "c d": null, "e": null})).await;
        assert_eq!(next(&mut watcher).await, named("delete", "c d"));
        put(&gateway, "/v1/hashes/lamp/fields/b", "7").await;
        let before = watcher.last_event_id.clone();
        let moved = watcher.next().await.unwrap();
        assert_eq!(moved.event, "stream.position");
        assert_ne!(watcher.last_event_id, before);
        watcher.leave();
        put(&gateway, "/v1/hashes/lamp/fields/b", "8").await;
        put(&gateway, "/v1/hashes/lamp/fields/none", "some").await;
        assert_eq!(watcher.open(&gateway.url).await, "complete");
        assert_eq!(next(&mut watcher).await, set([("none", "some")]));
        delete(&gateway, "lamp").await;
        assert_eq!(next(&mut watcher).await, named("clear", "removed"));
        // None of the selected fields exists.
        put(&gateway, "/v1/hashes/lamp/fields/b", "9").await;
        let mut other = Watcher::with_query("lamp", "?field=a");
        other.open(&gateway.url).await;
        assert_eq!(next(&mut other).await, snapshot([]));
        let many = (0..101).map(|n| format!("field=f{n}")).collect::<Vec<_>>().join("&");
        for query in [many.as_str(), "field=%00", "event=x"] {
            assert_eq!(gateway.get(&format!("/v1/hashes/lamp/stream?{query}")).await.0, 400, "{query}");
        }
    }

    async fn p9_a_watcher_that_selects_other_fields_than_before_gets_a_snapshot(world) {
        let gateway = gateway(&world).await;
        patch(&gateway, "lamp", &json!({"a": "1", "b": "2"})).await;
        let paths = ["", "?field=a", "?field=a&field=b", "?field=b", "?field=ab"];
        for from in paths {
            let mut watcher = Watcher::with_query("lamp", from);
            watcher.open(&gateway.url).await;
            watcher.told().await;
            let id = watcher.last_event_id.as_deref();
            for to in paths {
                let expected = if from == to { "complete" } else { "snapshot" };
                let stream = gateway.resume(&format!("/v1/hashes/lamp/stream{to}"), id).await;
                assert_eq!(stream.opened["hashes"]["lamp"]["resume"], expected, "{from:?} {to:?}");
            }
        }
        // The order of the fields makes no difference.
        let mut watcher = Watcher::with_query("lamp", "?field=a&field=b");
        watcher.open(&gateway.url).await;
        watcher.told().await;
        let stream = gateway.resume("/v1/hashes/lamp/stream?field=b&field=a", watcher.last_event_id.as_deref()).await;
        assert_eq!(stream.opened["hashes"]["lamp"]["resume"], "complete");
    }

    async fn p9_a_list_of_all_fields_has_a_position_to_watch_from(world) {
        let gateway = gateway(&world).await;
        patch(&gateway, "lamp", &json!({"a": "1", "b": "2"})).await;
        // The hash has to be live for its mirror to vouch for the list.
        let _watcher = watch(&gateway, "lamp").await;
        for value in ["3", "4"] {
            let (_, list) = gateway.get("/v1/hashes/lamp").await;
            let position = list["position"].as_str().unwrap();
            put(&gateway, "/v1/hashes/lamp/fields/a", value).await;
            let mut stream = gateway.stream(&format!("/v1/hashes/lamp/stream?after={position}")).await;
            let event = loop {
                let event = stream.event().await;
                // A list may be made while the hash is read; then a snapshot tells its fields.
                if event.event == "hash.set" || event.json()["fields"]["a"]["value"] == value {
                    break event;
                }
            };
            assert_eq!(event.json()["fields"]["a"]["value"], value);
        }
    }

    async fn p9_rooms_and_hashes_share_a_stream_and_a_cursor(world) {
        let gateway = gateway(&world).await;
        put(&gateway, "/v1/hashes/a/fields/f", "1").await;
        // The room and the hash have one name.
        let mut watcher = Watcher::at("a", "/v1/stream?room=a&hash=a&hash=other&field=f&event=chat");
        assert_eq!(watcher.open(&gateway.url).await, "fresh");
        assert_eq!(watcher.opened()["rooms"]["a"]["resume"], "fresh");
        assert_eq!(watcher.opened()["hashes"]["other"]["resume"], "fresh");
        watcher.until_value("f", "1").await;
        let publish = async |text: &str| gateway.publish_json("a", "chat", json!(text)).await;
        publish("hello").await;
        let next_in_room = async |watcher: &mut Watcher| loop {
            let event = watcher.next().await.unwrap();
            if event.event == "chat" {
                break event.json()["data"].clone();
            }
            assert!(event.event.starts_with("hash."), "{event:?}");
        };
        assert_eq!(next_in_room(&mut watcher).await, "hello");
        put(&gateway, "/v1/hashes/a/fields/f", "2").await;
        put(&gateway, "/v1/hashes/a/fields/g", "not selected").await;
        watcher.until_value("f", "2").await;
        watcher.leave();
        publish("meanwhile").await;
        put(&gateway, "/v1/hashes/a/fields/f", "3").await;
        assert_eq!(watcher.open(&gateway.url).await, "complete");
        assert_eq!(watcher.opened()["rooms"]["a"]["resume"], "complete");
        assert_eq!(watcher.opened()["hashes"]["other"]["resume"], "complete");
        assert_eq!(next_in_room(&mut watcher).await, "meanwhile");
        watcher.until_value("f", "3").await;
        assert_eq!(watcher.told.iter().filter(|told| matches!(told, Told::Snapshot { .. })).count(), 1);
        for (query, code) in [
            ("hash=a&hash=a", "invalid_query"), ("hash=a&hash=%00", "invalid_name"), ("field=f", "invalid_query"),
            ("hash=a&after=1-1", "invalid_position"),
        ] {
            let (status, problem) = gateway.get(&format!("/v1/stream?{query}")).await;
            assert_eq!((status.as_u16(), &problem["code"]), (400, &json!(code)), "{query}");
        }
    }

    async fn p9_a_watcher_that_comes_back_gets_what_it_has_missed(world) {
        let gateway = gateway(&world).await;
        let mut watcher = watch(&gateway, "lamp").await;
        watcher.told().await;
        watcher.leave();
        // Nothing was written.
        assert_eq!(watcher.open(&gateway.url).await, "complete");
        watcher.leave();
        for n in 0..300 {
            put(&gateway, &format!("/v1/hashes/lamp/fields/f{}", n % 7), &n.to_string()).await;
        }
        delete(&gateway, "lamp/fields/f1").await;
        assert_eq!(watcher.open(&gateway.url).await, "complete");
        watcher.until(&stored_fields(&gateway.url, "lamp").await).await;
        assert_eq!(watcher.told.len(), 302);
        let place: Bookmark = watcher.last_event_id.as_ref().unwrap().parse().unwrap();
        // Another replica's, or an earlier, mirror of the hash may not have had what others have written.
        for base in [Some(WatchBase::Mirror(1)), Some(WatchBase::Unfinished), None] {
            let mut other = watcher.rewound(100);
            let id = other.last_event_id.as_ref().unwrap().parse::<Bookmark>().unwrap().id;
            let has_base = matches!(base, Some(WatchBase::Mirror(_)));
            let path = "/v1/hashes/lamp/stream";
            let mut stream = gateway.resume(path, Some(&Bookmark { id, base }.to_string())).await;
            assert_eq!(stream.opened["hashes"]["lamp"]["resume"], "snapshot");
            let mut changes = 0;
            let snapshot = loop {
                let event = stream.event().await;
                if event.event == "hash.snapshot" {
                    break event;
                }
                changes += 1;
            };
            assert_eq!(changes, if has_base { 202 } else { 0 }, "{base:?}");
            assert_eq!(snapshot.id, place.to_string());
            other.leave();
        }
    }

    async fn p9_the_oldest_change_that_is_kept_is_served_and_one_more_is_a_gap(world) {
        const CHANGES: usize = 1250;
        let gateway = gateway(&world).await;
        for first in [0, CHANGES / 2] {
            let fields = (first..first + CHANGES / 2).map(|n| (format!("f{n}"), json!("1")));
            patch(&gateway, "edge", &fields.collect::<serde_json::Map<_, _>>().into()).await;
        }
        let mut watcher = watch(&gateway, "edge").await;
        watcher.told().await;
        // Of deletions, since a client that missed one would keep the field for ever.
        for n in 0..CHANGES {
            delete(&gateway, &format!("edge/fields/f{n}")).await;
        }
        watcher.until(&Fields::new()).await;
        assert_eq!(watcher.told.len(), CHANGES + 1);
        let resume = async |told: usize| {
            let mut earlier = watcher.rewound(told);
            let resume = earlier.open(&gateway.url).await.to_owned();
            earlier.until(&Fields::new()).await;
            (resume, earlier)
        };
        // The first one of which all later changes are kept.
        let (mut low, mut high) = (1, CHANGES);
        while low < high {
            let middle = low.midpoint(high);
            if resume(middle).await.0 == "complete" { high = middle } else { low = middle + 1 }
        }
        let kept = CHANGES + 1 - low;
        assert!((1000..1200).contains(&kept), "{kept} changes are kept");
        let (how, earlier) = resume(low).await;
        assert_eq!((how.as_str(), earlier.told.len(), earlier.gaps().len()), ("complete", CHANGES + 1, 0));
        let (how, earlier) = resume(low - 1).await;
        assert_eq!((how.as_str(), earlier.gaps()), ("gap", vec!["trimmed"]));
        assert!(matches!(earlier.told.last(), Some(Told::Snapshot { .. })));
        assert_eq!(earlier.told.len(), low + 1);
    }

    async fn p9_a_position_that_is_not_known_is_a_gap_and_a_snapshot_and_garbage_is_refused(world) {
        let gateway = gateway(&world).await;
        put(&gateway, "/v1/hashes/lamp/fields/a", "1").await;
        let mut watcher = watch(&gateway, "lamp").await;
        watcher.told().await;
        let place: Bookmark = watcher.last_event_id.as_ref().unwrap().parse().unwrap();
        let (epoch, mirror) = (place.id.epoch, place.to_string().split_once('~').unwrap().1.to_owned());
        let path = "/v1/hashes/lamp/stream";
        let told = async |id: &str| {
            let mut stream = gateway.resume(path, Some(id)).await;
            let resume = stream.opened["hashes"]["lamp"]["resume"].as_str().unwrap().to_owned();
            let (mut events, mut last) = (Vec::new(), String::new());
            while last != "hash.snapshot" {
                let event = within("a snapshot", stream.event()).await;
                last.clone_from(&event.event);
                events.push(if last == "stream.gap" { event.json()["reason"].as_str().unwrap().into() } else { last.clone() });
            }
            assert_eq!(stream.last_event_id, watcher.last_event_id.clone().unwrap(), "after {id}");
            (resume, events.join(" "))
        };
        let expect = |resume: &str, events: &str| (resume.to_owned(), events.to_owned());
        for (id, reason) in [
            (format!("1-1~{mirror}"), "unknown_position"), ("1-7~5".into(), "unknown_position"),
            (format!("{}-1~{mirror}", epoch + 1), "unknown_position"), (format!("{epoch}-9~{mirror}"), "diverged"),
        ] {
            assert_eq!(told(&id).await, expect("gap", &format!("{reason} hash.snapshot")), "{id}");
        }
        for id in ["1-1!".into(), format!("{epoch}-9!"), format!("{}-1!", epoch + 1), format!("{}-1", epoch + 1)] {
            assert_eq!(told(&id).await, expect("snapshot", "hash.snapshot"), "{id}");
        }
        for garbage in ["x", "1", "1-1~", "1-1~x", "1-1!!", "1-1~01", "-1", "c2.AAAA", "1-1~1~1"] {
            let request = gateway.request(Method::GET, path).header("last-event-id", garbage);
            let (status, problem) = gateway.send(request).await;
            assert_eq!((status.as_u16(), &problem["code"]), (400, &json!("invalid_position")), "{garbage}");
        }
    }

    async fn p10_only_a_reader_of_the_hash_may_watch_it(world) {
        let gateway = world.gateway_with(close).await;
        let get = async |path: &str, grant: Value| {
            let token = token(&claims(&grant));
            let response = gateway.answer(gateway.request(Method::GET, path).bearer_auth(token)).await;
            response.status().as_u16()
        };
        let all_but_read = json!({"publish": ["*"], "subscribe": ["*"], "presence": ["*"], "write": ["*"]});
        for (path, grant, status) in [
            ("/v1/hashes/lamp/stream", json!({"read": ["lamp"]}), 200),
            ("/v1/hashes/lamp/stream", json!({"read": ["la*"]}), 200),
            ("/v1/hashes/lamp/stream", json!({"read": ["other"]}), 403),
            ("/v1/hashes/lamp/stream", all_but_read.clone(), 403),
            ("/v1/stream?hash=lamp", json!({"read": ["lamp"]}), 200),
            ("/v1/stream?hash=lamp", all_but_read.clone(), 403),
            ("/v1/stream?hash=lamp&hash=other", json!({"read": ["lamp"]}), 403),
            ("/v1/stream?room=lamp&hash=lamp", json!({"read": ["lamp"]}), 403),
            ("/v1/stream?room=lamp&hash=lamp", all_but_read, 403),
            ("/v1/stream?room=a&hash=lamp", json!({"read": ["lamp"], "subscribe": ["a"]}), 200),
        ] {
            assert_eq!(get(path, grant.clone()).await, status, "{path} {grant}");
        }
        assert_eq!(gateway.get("/v1/hashes/lamp/stream").await.0, 401);
    }

    async fn a_head_of_a_watch_is_answered_without_a_stream(world) {
        let gateway = gateway(&world).await;
        for path in ["/v1/hashes/lamp/stream", "/v1/stream?hash=lamp"] {
            let response = gateway.answer(gateway.request(Method::HEAD, path)).await;
            assert_eq!((response.status().as_u16(), &response.headers()["content-type"]), (200, &"text/event-stream".parse().unwrap()));
            assert_eq!(response.bytes().await.unwrap(), "");
        }
    }

    async fn a_hash_that_is_too_large_can_not_be_watched(world) {
        let gateway = gateway(&world).await;
        let value = "x".repeat(200_000);
        for field in 0..85 {
            send(&gateway, Method::PUT, &format!("huge/fields/{field}"), "text/plain", value.clone()).await;
        }
        for path in ["/v1/hashes/huge/stream", "/v1/stream?room=a&hash=huge"] {
            let answer = gateway.answer(gateway.request(Method::GET, path)).await;
            // A slow machine finds it out when the stream has opened.
            assert!(matches!(answer.status().as_u16(), 200 | 409), "{answer:?}");
            let text = within("all of it", answer.text()).await.unwrap();
            assert!(text.contains("hash_too_large"), "{text}");
        }
        for field in 0..70 {
            delete(&gateway, &format!("huge/fields/{field}")).await;
        }
        let mut watcher = watch(&gateway, "huge").await;
        watcher.told().await;
        assert_eq!(watcher.fields().unwrap().len(), 15);
    }
}

#[tokio::test]
async fn p9_a_watcher_that_changes_the_replica_gets_the_changes_and_then_a_snapshot() {
    let world = World::redis().await;
    let replicas = [gateway(&world).await, gateway(&world).await];
    let mut watcher = watch(&replicas[0], "lamp").await;
    watcher.told().await;
    for n in 0..5 {
        watcher.leave();
        let (here, there) = (&replicas[(n + 1) % 2], &replicas[n % 2]);
        put(there, "/v1/hashes/lamp/fields/a", &n.to_string()).await;
        put(here, "/v1/hashes/lamp/fields/b", &n.to_string()).await;
        assert_eq!(watcher.open(&here.url).await, "snapshot");
        let n = n.to_string();
        assert_eq!(next(&mut watcher).await, set([("a", &n)]));
        assert_eq!(next(&mut watcher).await, set([("b", &n)]));
        assert_eq!(next(&mut watcher).await, snapshot([("a", &n), ("b", &n)]));
    }
    assert_eq!(watcher.gaps(), [""; 0]);
}

#[tokio::test]
async fn p9_changes_that_a_replica_has_not_heard_of_are_told_before_its_snapshot() {
    let world = World::redis().await;
    let proxy = Proxy::to(world.server().port()).await;
    let here = gateway(&world).await;
    let there = world.gateway_with(|settings| settings.redis.url = Some(proxy.url().parse().unwrap())).await;
    let mut watchers = [watch(&there, "lamp").await, watch(&here, "lamp").await];
    put(&here, "/v1/hashes/lamp/fields/a", "first").await;
    for watcher in &mut watchers {
        watcher.until_value("a", "first").await;
    }
    let [_other, mut watcher] = watchers;
    watcher.leave();
    proxy.set_only(Links::PubSub, Link::Freeze);
    for n in ["0", "1", "2"] {
        put(&here, "/v1/hashes/lamp/fields/a", n).await;
    }
    assert_eq!(watcher.open(&there.url).await, "snapshot");
    for n in ["0", "1", "2"] {
        assert_eq!(next(&mut watcher).await, set([("a", n)]));
    }
    assert_eq!(next(&mut watcher).await, snapshot([("a", "2")]));
    proxy.set(Link::Pass);
    put(&there, "/v1/hashes/lamp/fields/a", "3").await;
    assert_eq!(next(&mut watcher).await, set([("a", "3")]));
}

#[tokio::test]
async fn a_key_of_another_type_can_not_be_watched() {
    let world = World::redis().await;
    let gateway = gateway(&world).await;
    world.server().cli(&["SET", "roomcast:hash:{text}", "1"]);
    for path in ["/v1/hashes/text/stream", "/v1/stream?hash=text", "/v1/stream?room=a&hash=text"] {
        let (status, problem) = gateway.get(path).await;
        assert_eq!((status.as_u16(), &problem["code"]), (409, &json!("wrong_type")), "{problem}");
    }
    world.server().cli(&["DEL", "roomcast:hash:{text}"]);
    let mut watcher = watch(&gateway, "text").await;
    assert_eq!(next(&mut watcher).await, snapshot([]));
    drop(Stream::open(&format!("{}/v1/stream?hash=text", gateway.url), None).await);

    // Who watches already goes on, and comes back, on any replica. Who begins is refused as before.
    send(&gateway, Method::PUT, "text/fields/a", "text/plain", "1").await;
    watcher.until(&fields([("a", "1")])).await;
    let unfinished = watcher.last_event_id.clone().unwrap().split('~').next().unwrap().to_owned() + "!";
    world.server().cli(&["SET", "roomcast:hash:{text}", "1"]);
    watcher.until(&Fields::new()).await;
    let other = self::gateway(&world).await;
    for gateway in [&gateway, &other, &gateway] {
        assert_eq!(gateway.get("/v1/hashes/text/stream").await.0, 409);
        let mut back = Stream::open(&format!("{}/v1/hashes/text/stream", gateway.url), Some(&unfinished)).await;
        let first = back.next().await.unwrap();
        assert_eq!((first.event.as_str(), &first.json()["fields"]), ("hash.snapshot", &json!({})));
    }
    world.server().cli(&["DEL", "roomcast:hash:{text}"]);
    send(&other, Method::PUT, "text/fields/a", "text/plain", "2").await;
    watcher.until(&fields([("a", "2")])).await;
}
