//! What joins and leaves do to a room's log: they take no place of messages, and leave nothing behind in other rooms.

use futures_util::future::join_all;
use reqwest::Method;
use roomcast::config::PresenceInfo;
use serde_json::{Value, json};

use super::{GRACE, listed, quick};
use crate::auth::{all, claims, close, token};
use crate::support::{Gateway, Stream, World, eventually};

/// Members that join and leave at once. Each event about all of them is larger than [`RETAINED_BYTES`].
const MEMBERS: usize = 30;
const RETAINED_BYTES: u64 = 16 * 1024;
const MESSAGES: usize = 10;

/// A gateway with small logs, and a ring of one event, so that streams resume from the log.
async fn with_small_logs(world: &World) -> Gateway {
    let settings = |settings: &mut roomcast::config::Settings| {
        close(settings);
        settings.presence.grace = GRACE;
        settings.presence.info = PresenceInfo::Query;
        settings.retention.bytes = RETAINED_BYTES;
        settings.streams.ring_events = 1;
    };
    world.gateway_with(settings).await
}

/// The path of a stream of the room, for a caller with all permissions.
fn stream_path(query: &str) -> String {
    format!("/v1/rooms/lobby/stream?access_token={}&{query}", token(&claims(&all())))
}

/// Publishes messages with the data `m0`, `m1` and so on. Returns their ids.
async fn publish(gateway: &Gateway, datas: impl Iterator<Item = String>) -> Vec<String> {
    let mut ids = Vec::new();
    for data in datas {
        let request = gateway.request(Method::POST, "/v1/rooms/lobby/events").bearer_auth(token(&claims(&all())));
        let (_, published) = gateway.send(request.body(data)).await;
        ids.push(published["id"].as_str().unwrap().to_owned());
    }
    ids
}

async fn until_present(watcher: &mut Stream, present: usize) {
    loop {
        let event = watcher.event().await;
        if event.event.starts_with("presence.") && event.json()["present"] == present {
            return;
        }
    }
}

/// Many members join and leave.
async fn come_and_go(gateway: &Gateway, watcher: &mut Stream) {
    let info = "x".repeat(1000);
    let paths: Vec<_> =
        (0..MEMBERS).map(|number| stream_path(&format!("subscriber=s{number}&info=%22{info}%22"))).collect();
    let streams = join_all(paths.iter().map(|path| gateway.stream(path))).await;
    until_present(watcher, MEMBERS).await;
    drop(streams);
    until_present(watcher, 0).await;
}

async fn log(gateway: &Gateway, query: &str, grants: &Value) -> Value {
    let request = gateway.request(Method::GET, &format!("/v1/rooms/lobby/events?limit=1000&{query}"));
    gateway.send(request.bearer_auth(token(&claims(grants)))).await.1
}

on_both_brokers! {
    async fn joins_and_leaves_push_no_message_out_of_the_log(world) {
        let gateway = with_small_logs(&world).await;
        let mut watcher = gateway.stream(&stream_path("presence=true")).await;
        let sent: Vec<_> = (0..MESSAGES).map(|number| format!("m{number}")).collect();
        publish(&gateway, sent.iter().cloned()).await;
        come_and_go(&gateway, &mut watcher).await;
        come_and_go(&gateway, &mut watcher).await;
        let log = log(&gateway, "", &all()).await;
        let events = log["events"].as_array().unwrap();
        let messages = events.iter().filter(|event| event["event"].is_null()).map(|event| &event["data"]);
        assert!(messages.eq(&sent), "{events:?}");
        let mut recent = gateway.stream(&stream_path("recent=5")).await;
        assert_eq!(recent.datas(5).await, sent[5..]);
    }

    async fn p4_a_stream_gets_a_gap_for_dropped_joins_and_leaves_only_if_it_gets_them(world) {
        let gateway = with_small_logs(&world).await;
        let mut watcher = gateway.stream(&stream_path("presence=true")).await;
        let ids = publish(&gateway, ["a".into(), "b".into()].into_iter()).await;
        come_and_go(&gateway, &mut watcher).await;
        let last = publish(&gateway, ["c".into()].into_iter()).await.remove(0);
        come_and_go(&gateway, &mut watcher).await;
        let mut messages = gateway.resume(&stream_path(""), Some(&ids[0])).await;
        assert_eq!(messages.opened["rooms"]["lobby"]["resume"], "complete");
        assert_eq!(messages.datas(2).await, ["b", "c"]);
        let mut everything = gateway.resume(&stream_path("presence=true"), Some(&ids[1])).await;
        assert_eq!(everything.opened["rooms"]["lobby"]["resume"], "gap");
        let gap = everything.event().await;
        assert_eq!((gap.event.as_str(), &gap.json()["reason"]), ("stream.gap", &json!("trimmed")));
        let mut at_end = gateway.resume(&stream_path(""), Some(&last)).await;
        assert_eq!(at_end.opened["rooms"]["lobby"]["resume"], "complete");
        publish(&gateway, ["d".into()].into_iter()).await;
        assert_eq!((messages.data().await, at_end.data().await), ("d".into(), "d".into()));
        let subscribe = json!({"subscribe": ["*"]});
        let after = format!("after={}", ids[1]);
        let page = log(&gateway, &after, &subscribe).await;
        assert_eq!((&page["gap"], &page["events"][0]["data"]), (&Value::Null, &json!("c")));
        assert_eq!(log(&gateway, &after, &all()).await["gap"]["reason"], "trimmed");
        // A message that was dropped is a gap for every stream.
        publish(&gateway, (0..20).map(|_| "x".repeat(2000))).await;
        let mut behind = gateway.resume(&stream_path(""), Some(&ids[0])).await;
        assert_eq!(behind.opened["rooms"]["lobby"]["resume"], "gap");
        assert_eq!(behind.event().await.event, "stream.gap");
    }

    async fn p4_a_stream_that_gets_no_joins_gets_no_gap_where_all_of_them_were_dropped(world) {
        let gateway = world.gateway_with(|settings| {
            close(settings);
            settings.presence.grace = GRACE;
            settings.retention.events = 0;
        }).await;
        let mut watcher = gateway.stream(&stream_path("presence=true")).await;
        let mut reader = gateway.stream(&stream_path("")).await;
        let last = publish(&gateway, ["a".into()].into_iter()).await.remove(0);
        assert_eq!(reader.data().await, "a");
        drop(gateway.stream(&stream_path("subscriber=bob")).await);
        until_present(&mut watcher, 1).await;
        until_present(&mut watcher, 0).await;
        let page = log(&gateway, &format!("after={last}"), &json!({"subscribe": ["*"]})).await;
        assert_eq!((&page["gap"], &page["events"]), (&Value::Null, &json!([])));
        let mut back = gateway.resume(&stream_path(""), Some(&last)).await;
        assert_eq!(back.opened["rooms"]["lobby"]["resume"], "complete");
        publish(&gateway, ["b".into()].into_iter()).await;
        assert_eq!(back.data().await, "b");
    }

    async fn old_joins_and_leaves_do_not_stand_before_a_part_of_the_log_that_was_dropped(world) {
        let gateway = world.gateway_with(|settings| {
            close(settings);
            settings.presence.grace = GRACE;
            settings.retention.events = 20;
            settings.streams.ring_events = 1;
        }).await;
        let mut watcher = gateway.stream(&stream_path("presence=true")).await;
        let first = publish(&gateway, ["first".into()].into_iter()).await.remove(0);
        drop(gateway.stream(&stream_path("subscriber=bob")).await);
        until_present(&mut watcher, 0).await;
        // As long as nothing was dropped, they are a part of the log.
        let log_of_all = log(&gateway, "", &all()).await;
        assert_eq!(log_of_all["events"].as_array().unwrap().len(), 3, "{log_of_all}");
        publish(&gateway, (0..30).map(|number| format!("{number} {}", "x".repeat(2000)))).await;
        let subscribe = json!({"subscribe": ["*"]});
        for grants in [all(), subscribe] {
            let page = log(&gateway, "", &grants).await;
            let events = page["events"].as_array().unwrap();
            assert!(events.iter().all(|event| event["event"].is_null()), "{page}");
            assert!(events.last().unwrap()["data"].as_str().unwrap().starts_with("29 "), "{page}");
            assert_eq!((&page["gap"], &page["oldest"]), (&Value::Null, &events[0]["id"]));
            let room = gateway.request(Method::GET, "/v1/rooms/lobby").bearer_auth(token(&claims(&grants)));
            assert_eq!(gateway.send(room).await.1["retained"], events.len());
            let after = log(&gateway, &format!("after={first}"), &grants).await;
            assert_eq!(after["gap"]["reason"], "trimmed", "{after}");
            assert_eq!(after["events"][0], events[0]);
        }
        for query in ["from=earliest", "from=earliest&presence=true", "recent=20"] {
            let mut stream = gateway.stream(&stream_path(query)).await;
            assert!(stream.data().await.ends_with("xxx"), "{query}");
        }
    }
}

#[tokio::test]
async fn p4_joins_that_no_head_covers_hide_no_message_in_the_log() {
    let world = World::redis().await;
    let gateway = with_small_logs(&world).await;
    let mut watcher = gateway.stream(&stream_path("presence=true")).await;
    come_and_go(&gateway, &mut watcher).await;
    drop(watcher);
    let server = world.redis.as_ref().unwrap();
    assert_eq!(server.cli(&["DEL", "roomcast:{lobby}:head"]), "1");
    let sent: Vec<_> = (0..5).map(|number| format!("m{number}")).collect();
    publish(&gateway, sent.iter().cloned()).await;
    for grants in [all(), json!({"subscribe": ["*"]})] {
        let page = log(&gateway, "", &grants).await;
        let datas = page["events"].as_array().unwrap().iter().map(|event| &event["data"]);
        assert!(datas.eq(&sent), "{page}");
    }
}

#[tokio::test]
async fn presence_in_a_room_without_messages_is_forgotten_a_minute_after_its_streams() {
    const MINUTE: i64 = 60_000;
    let world = World::redis().await;
    let server = world.redis.as_ref().unwrap();
    let gateway = quick(&world).await;
    let lifetimes = |room: &str| -> Vec<(String, i64)> {
        let keys = server.cli(&["KEYS", &format!("roomcast:{{{room}}}:*")]);
        let lifetime = |key: &str| (key.to_owned(), server.cli(&["PTTL", key]).parse().unwrap());
        keys.lines().map(lifetime).collect()
    };
    let mut ann = gateway.stream("/v1/rooms/quiet/stream?subscriber=ann&presence=true").await;
    ann.event().await;
    // A head lives as long as readers alone have made it live.
    server.cli(&["PEXPIRE", "roomcast:{quiet}:head", "30000"]);
    let bob = gateway.stream("/v1/rooms/quiet/stream?subscriber=bob").await;
    ann.event().await;
    assert_eq!(lifetimes("quiet").len(), 4);
    assert!(lifetimes("quiet").iter().all(|(_, left)| (1..=MINUTE).contains(left)), "{:?}", lifetimes("quiet"));
    drop((ann, bob));
    eventually("both have left", async || listed(&gateway, "quiet").await.is_empty().then_some(())).await;
    assert!(lifetimes("quiet").iter().all(|(_, left)| (1..=MINUTE).contains(left)), "{:?}", lifetimes("quiet"));

    gateway.publish("busy", "message").await;
    let mut carl = gateway.stream("/v1/rooms/busy/stream?subscriber=carl&presence=true").await;
    carl.event().await;
    assert_eq!(lifetimes("busy").len(), 5);
    assert!(lifetimes("busy").iter().all(|(_, left)| *left > MINUTE), "{:?}", lifetimes("busy"));
}
