//! Presence: lists of members, joins and leaves in a room's log, and the owners of names.

mod log;
mod replicas;

use std::time::Duration;

use reqwest::{Method, StatusCode};
use roomcast::config::PresenceInfo;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::auth::{all, at, claims, close, token};
use crate::metrics::{text, value};
use crate::support::{Gateway, Link, Proxy, SseEvent, Stream, World, eventually};

const GRACE: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_mins(10);

async fn quick(world: &World) -> Gateway {
    world.gateway_with(|settings| settings.presence.grace = GRACE).await
}

/// The names of a room's members, from all pages of the list.
pub async fn listed(gateway: &Gateway, room: &str) -> Vec<String> {
    members(gateway, room, "").await.iter().map(|member| member["subscriber"].as_str().unwrap().into()).collect()
}

async fn members(gateway: &Gateway, room: &str, token: &str) -> Vec<Value> {
    let mut members = Vec::new();
    let mut next = format!("/v1/rooms/{room}/subscribers?limit=2");
    loop {
        let answer = gateway.answer(gateway.request(Method::GET, &next).bearer_auth(token)).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let link = answer.headers().get("link").map(|link| link.to_str().unwrap().to_owned());
        let page: Value = answer.json().await.unwrap();
        members.extend(page["subscribers"].as_array().unwrap().iter().cloned());
        let Some(link) = link else { break };
        next = link.split(['<', '>']).nth(1).unwrap().into();
    }
    members.sort_by_key(|member| member["subscriber"].as_str().unwrap().to_owned());
    members
}

/// The change that an event reports: the event's name, the names of the members, and the number of members after
/// it.
fn change(event: &SseEvent) -> (String, Vec<String>, u64) {
    let data = event.json();
    let names = data["members"].as_array().unwrap().iter();
    let names = names.map(|member| member["subscriber"].as_str().unwrap().to_owned()).collect();
    (event.event.clone(), names, data["present"].as_u64().unwrap())
}

fn expected(event: &str, names: &[&str], present: u64) -> (String, Vec<String>, u64) {
    (event.into(), names.iter().map(|name| (*name).to_owned()).collect(), present)
}

/// The data of the stream's end.
async fn stream_end(stream: &mut Stream) -> Value {
    loop {
        let event = stream.event().await;
        if event.event == "stream.end" {
            return event.json();
        }
    }
}

fn as_user(user: &str) -> String {
    let mut claims = claims(&all());
    claims["sub"] = json!(user);
    token(&claims)
}

on_both_brokers! {
    async fn joins_and_leaves_are_published_and_listed(world) {
        let gateway = quick(&world).await;
        let mut ann = gateway.stream("/v1/rooms/lobby/stream?subscriber=ann&presence=true").await;
        assert_eq!(change(&ann.event().await), expected("presence.join", &["ann"], 1));
        let bob = gateway.stream("/v1/rooms/lobby/stream?subscriber=bob").await;
        assert_eq!(change(&ann.event().await), expected("presence.join", &["bob"], 2));
        // A stream without a name is only counted.
        let nameless = gateway.room("lobby").await;
        let carl = gateway.stream("/v1/stream?room=lobby&room=news&subscriber=carl").await;
        assert_eq!(change(&ann.event().await), expected("presence.join", &["carl"], 3));
        assert_eq!(listed(&gateway, "lobby").await, ["ann", "bob", "carl"]);
        assert_eq!(listed(&gateway, "news").await, ["carl"]);
        let member = &members(&gateway, "lobby", "").await[1];
        assert_eq!(member["replica"], ann.opened["replica"]);
        assert!(humantime::parse_rfc3339(member["since"].as_str().unwrap()).is_ok() && member.get("user").is_none());
        drop((bob, nameless));
        assert_eq!(change(&ann.event().await), expected("presence.leave", &["bob"], 2));
        assert_eq!(listed(&gateway, "lobby").await, ["ann", "carl"]);
        drop(carl);
        assert_eq!(change(&ann.event().await), expected("presence.leave", &["carl"], 1));
        // Joins and leaves are events in the log, so a stream that resumes misses none.
        let log = gateway.get("/v1/rooms/lobby/events").await.1;
        let events = log["events"].as_array().unwrap();
        let names: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
        assert_eq!(names, ["presence.join", "presence.join", "presence.join", "presence.leave", "presence.leave"]);
        let mut again = gateway.stream("/v1/rooms/lobby/stream?from=earliest&presence=true&subscriber=dora").await;
        assert_eq!(change(&again.event().await), expected("presence.join", &["ann"], 1));
    }

    async fn a_subscriber_that_reconnects_within_the_grace_does_not_leave(world) {
        let gateway = world.gateway_with(|settings| settings.presence.grace = LONG).await;
        let mut ann = gateway.stream("/v1/rooms/lobby/stream?subscriber=ann&presence=true").await;
        ann.event().await;
        for _ in 0..5 {
            drop(gateway.stream("/v1/rooms/lobby/stream?subscriber=bob").await);
        }
        let since = members(&gateway, "lobby", "").await[1]["since"].clone();
        let _bob = gateway.stream("/v1/rooms/lobby/stream?subscriber=bob").await;
        assert_eq!(members(&gateway, "lobby", "").await[1]["since"], since);
        gateway.publish("lobby", "hello").await;
        assert_eq!(change(&ann.event().await), expected("presence.join", &["bob"], 2));
        assert_eq!(ann.data().await, "hello", "no other change was published");
    }

    async fn streams_without_presence_receive_no_joins_and_leaves(world) {
        let gateway = world.gateway_with(|settings| {
            settings.presence.grace = GRACE;
            settings.streams.heartbeat = Duration::from_millis(200);
        }).await;
        let mut plain = gateway.room("lobby").await;
        let mut several = gateway.stream("/v1/stream?room=lobby&room=news").await;
        // No stream has asked for presence yet, so the log has no changes.
        let quiet = gateway.stream("/v1/rooms/lobby/stream?subscriber=quiet").await;
        assert_eq!(gateway.get("/v1/rooms/lobby/events").await.1["events"], json!([]));
        let mut ann = gateway.stream("/v1/rooms/lobby/stream?subscriber=ann&presence=true&event=chat").await;
        let joined = ann.event().await;
        assert_eq!(change(&joined), expected("presence.join", &["ann"], 2));
        // The other streams receive the new position instead.
        for stream in [&mut plain, &mut several] {
            let position = stream.event().await;
            assert_eq!(position.event, "stream.position");
        }
        assert_eq!(plain.last_event_id, joined.id);
        gateway.publish("lobby", "other").await;
        gateway.publish_json("lobby", "chat", json!(1)).await;
        let mut next = ann.event().await;
        while next.event == "stream.position" {
            next = ann.event().await;
        }
        assert_eq!(next.event, "chat");
        assert_eq!(plain.data().await, "other");
        drop(quiet);
        assert_eq!(change(&ann.event().await), expected("presence.leave", &["quiet"], 1));
    }

    async fn a_name_belongs_to_its_owner_and_a_later_stream_supersedes_an_earlier_one(world) {
        let gateway = world.gateway_with(|settings| {
            close(settings);
            settings.presence.grace = LONG;
        }).await;
        let (ann, bob) = (as_user("ann"), as_user("bob"));
        let path = |token: &str| format!("/v1/rooms/lobby/stream?subscriber=desk&presence=true&access_token={token}");
        let mut first = gateway.stream(&path(&ann)).await;
        assert_eq!(change(&first.event().await), expected("presence.join", &["desk"], 1));
        let (status, problem) = gateway.get(&path(&bob)).await;
        assert_eq!((status.as_u16(), &problem["code"]), (409, &json!("subscriber_taken")));
        // In another room the same name is free.
        gateway.stream(&format!("/v1/rooms/news/stream?subscriber=desk&access_token={bob}")).await;
        let mut second = gateway.stream(&path(&ann)).await;
        assert_eq!(stream_end(&mut first).await, json!({"reason": "superseded", "reconnect": "never"}));
        gateway.send(gateway.request(Method::POST, "/v1/rooms/lobby/events").bearer_auth(&ann).body("hello")).await;
        assert_eq!(second.data().await, "hello", "the second stream goes on, without a join or a leave");
        let listed = members(&gateway, "lobby", &bob).await;
        assert_eq!((listed.len(), &listed[0]["user"]), (1, &json!("ann")));
        // The name stays reserved while its owner is disconnected.
        drop(second);
        assert_eq!(gateway.get(&path(&bob)).await.0.as_u16(), 409);
    }

    async fn a_stream_that_is_refused_in_one_room_enters_no_room(world) {
        let gateway = world.gateway_with(|settings| {
            close(settings);
            settings.presence.grace = LONG;
        }).await;
        let (ann, bob) = (as_user("ann"), as_user("bob"));
        let path = |room: &str, name: &str, token: &str| {
            format!("/v1/rooms/{room}/stream?subscriber={name}&presence=true&access_token={token}")
        };
        let mut healthy = gateway.stream(&path("mine", "desk", &ann)).await;
        healthy.event().await;
        let _bob = gateway.stream(&path("taken", "desk", &bob)).await;
        let mut witness = gateway.stream(&path("free", "witness", &ann)).await;
        witness.event().await;
        for rooms in [["mine", "free", "taken"], ["taken", "mine", "free"], ["free", "taken", "mine"]] {
            let rooms = rooms.map(|room| format!("room={room}")).join("&");
            let path = format!("/v1/stream?{rooms}&subscriber=desk&access_token={ann}");
            let (status, problem) = gateway.get(&path).await;
            assert_eq!((status.as_u16(), &problem["code"]), (409, &json!("subscriber_taken")));
            assert!(problem["detail"].as_str().unwrap().contains("taken"), "{problem}");
        }
        for (room, stream) in [("mine", &mut healthy), ("free", &mut witness)] {
            let publish = gateway.request(Method::POST, &format!("/v1/rooms/{room}/events")).bearer_auth(&ann);
            gateway.send(publish.body("hello")).await;
            assert_eq!(stream.data().await, "hello", "nobody has joined, left or taken over in {room}");
        }
        gateway.stream(&path("free", "desk", &bob)).await;
    }

    async fn a_stream_that_is_refused_asks_for_no_presence_events(world) {
        let gateway = world.gateway_with(close).await;
        let (ann, bob) = (as_user("ann"), as_user("bob"));
        let path = |name: &str, token: &str| format!("/v1/rooms/lobby/stream?subscriber={name}&access_token={token}");
        let _ann = gateway.stream(&path("sam", &ann)).await;
        for _ in 0..2 {
            let request = gateway.request(Method::GET, &format!("{}&presence=true", path("sam", &bob)));
            assert_eq!(gateway.send(request).await.0, 409);
        }
        let _bob = gateway.stream(&path("bob", &bob)).await;
        let (_, list) = gateway.get(&format!("/v1/rooms/lobby/events?access_token={ann}")).await;
        assert_eq!(list["events"], json!([]));
    }

    async fn of_streams_of_two_callers_with_one_name_only_the_one_that_opens_supersedes(world) {
        let gateway = world.gateway_with(|settings| {
            close(settings);
            settings.presence.grace = LONG;
        }).await;
        let (ann, bob) = (as_user("ann"), as_user("bob"));
        for n in 0..10 {
            let own = |user: &str| format!("{user}-{n}");
            let first = |user: &'static str, token: &str| {
                let path = format!("/v1/rooms/{}/stream?subscriber=desk&access_token={token}", own(user));
                let gateway = &gateway;
                async move { gateway.stream(&path).await }
            };
            let (ann_first, bob_first) = (first("ann", &ann).await, first("bob", &bob).await);
            // Each names a room that it is in already, and both name two that are free.
            let second = |user: &str, rooms: &str, token: &str| {
                let path = format!("/v1/stream?room={}&{rooms}&subscriber=desk&access_token={token}", own(user));
                gateway.answer(gateway.request(Method::GET, &path))
            };
            let (one, other) = (format!("room=x{n}&room=y{n}"), format!("room=y{n}&room=x{n}"));
            let (ann_second, bob_second) = tokio::join!(second("ann", &one, &ann), second("bob", &other, &bob));
            for (user, token, mut first, second) in
                [("ann", &ann, ann_first, &ann_second), ("bob", &bob, bob_first, &bob_second)]
            {
                if second.status() == StatusCode::OK {
                    assert_eq!(stream_end(&mut first).await["reason"], "superseded");
                    continue;
                }
                assert_eq!(second.status(), StatusCode::CONFLICT);
                let publish = gateway.request(Method::POST, &format!("/v1/rooms/{}/events", own(user)));
                gateway.send(publish.bearer_auth(token).body("hello")).await;
                assert_eq!(first.data().await, "hello", "the stream of {user} goes on");
            }
            let opened = [&ann_second, &bob_second].iter().filter(|answer| answer.status() == StatusCode::OK).count();
            eventually("both free rooms belong to the stream that has opened", async || {
                let x = members(&gateway, &format!("x{n}"), &ann).await;
                let y = members(&gateway, &format!("y{n}"), &ann).await;
                let owner = |list: &[Value]| list.first().map(|member| member["user"].clone());
                (x.len() == opened && y.len() == opened && owner(&x) == owner(&y)).then_some(())
            }).await;
        }
    }

    async fn p10_presence_needs_its_permission(world) {
        let gateway = world.gateway_with(close).await;
        let ann = token(&claims(&json!({"subscribe": ["*"], "presence": ["lobby"]})));
        let mut others = claims(&json!({"subscribe": ["*"], "publish": ["*"]}));
        others["sub"] = json!("bob");
        let bob = token(&others);
        let path = |room: &str, token: &str| {
            format!("/v1/rooms/{room}/stream?subscriber=me&presence=true&access_token={token}")
        };
        let mut stream = gateway.stream(&path("lobby", &ann)).await;
        assert_eq!(stream.event().await.event, "presence.join");
        for (path, token) in [
            (path("lobby", &bob), &bob),
            (path("other", &ann), &ann),
            ("/v1/rooms/lobby/subscribers".into(), &bob),
            ("/v1/rooms/other/subscribers".into(), &ann),
            (format!("/v1/stream?room=lobby&room=other&presence=true&access_token={ann}"), &ann),
        ] {
            let (status, problem) = gateway.send(gateway.request(Method::GET, &path).bearer_auth(token)).await;
            assert_eq!((status.as_u16(), &problem["code"]), (403, &json!("forbidden")), "{path}");
            assert!(problem["detail"].as_str().unwrap().contains("presence"), "{problem}");
        }
        // Without the permission, the log lacks the changes too.
        let log = async |token: &str| {
            let request = gateway.request(Method::GET, "/v1/rooms/lobby/events").bearer_auth(token);
            gateway.send(request).await.1["events"].as_array().unwrap().len()
        };
        assert_eq!((log(&ann).await, log(&bob).await), (1, 0));
    }

    async fn the_info_of_a_member_comes_from_the_allowed_source(world) {
        for (allowed, from_token, from_query) in [
            (PresenceInfo::None, None, None),
            (PresenceInfo::Token, Some("signed"), None),
            (PresenceInfo::Query, Some("signed"), Some("own")),
        ] {
            let gateway = world.gateway_with(|settings| {
                close(settings);
                settings.presence.info = allowed;
            }).await;
            let mut grant = all();
            grant["info"] = json!("signed");
            let signed = token(&json!({"sub": "ann", "exp": at(600), "aud": "roomcast.example", "roomcast": grant}));
            let plain = token(&claims(&all()));
            let room = format!("room{allowed:?}");
            let _first = gateway.stream(&format!("/v1/rooms/{room}/stream?subscriber=a&access_token={signed}")).await;
            let with_info = format!("/v1/rooms/{room}/stream?subscriber=b&info=%22own%22&access_token={plain}");
            let second = if from_query.is_some() { Some(gateway.stream(&with_info).await) } else {
                assert_eq!(gateway.get(&with_info).await.0.as_u16(), 400);
                None
            };
            let listed = members(&gateway, &room, &plain).await;
            assert_eq!(listed[0].get("info"), from_token.map(|text| json!(text)).as_ref());
            assert_eq!(listed.get(1).map(|member| member["info"].clone()), from_query.map(|text| json!(text)));
            drop(second);
        }
    }

    async fn presence_exists_only_in_the_rooms_that_the_setting_names(world) {
        let gateway = world.gateway_with(|settings| settings.presence.rooms = vec!["team.*".into()]).await;
        let _with_presence = gateway.stream("/v1/rooms/team.a/stream?subscriber=ann").await;
        let _without_presence = gateway.stream("/v1/rooms/lobby/stream?subscriber=ann").await;
        assert_eq!(listed(&gateway, "team.a").await, ["ann"]);
        assert_eq!(listed(&gateway, "lobby").await, [""; 0]);
        let (status, problem) = gateway.get("/v1/rooms/lobby/stream?presence=true").await;
        assert_eq!(status.as_u16(), 400);
        assert!(problem["detail"].as_str().unwrap().contains("--presence"), "{problem}");
        for wrong in ["info={}", "presence=maybe", "subscriber=a%20b"] {
            assert_eq!(gateway.get(&format!("/v1/rooms/team.a/stream?{wrong}")).await.0.as_u16(), 400, "{wrong}");
        }
    }

    async fn a_stream_without_a_name_receives_presence_and_is_not_listed(world) {
        let gateway = quick(&world).await;
        let mut watcher = gateway.stream("/v1/rooms/lobby/stream?presence=true").await;
        let bob = gateway.stream("/v1/rooms/lobby/stream?subscriber=bob").await;
        assert_eq!(change(&watcher.event().await), expected("presence.join", &["bob"], 1));
        assert_eq!(listed(&gateway, "lobby").await, ["bob"]);
        drop(bob);
        assert_eq!(change(&watcher.event().await), expected("presence.leave", &["bob"], 0));
    }

    async fn the_info_of_a_member_is_limited_in_size_and_depth(world) {
        let gateway = world.gateway_with(|settings| settings.presence.info = PresenceInfo::Query).await;
        let mut watcher = gateway.stream("/v1/rooms/lobby/stream?presence=true").await;
        let deep = |depth: usize| format!("{}1{}", "%5B".repeat(depth), "%5D".repeat(depth));
        for info in [deep(33), deep(70), "x".into(), "%22".to_owned() + &"x".repeat(1024) + "%22"] {
            let path = format!("/v1/rooms/lobby/stream?subscriber=a&info={info}");
            assert_eq!(gateway.get(&path).await.0.as_u16(), 400, "{info}");
        }
        let path = format!("/v1/rooms/lobby/stream?subscriber=a&info={}", deep(32));
        let _deepest = gateway.stream(&path).await;
        assert_eq!(change(&watcher.event().await), expected("presence.join", &["a"], 1));
        let odd_info = "%7B%22a%20b%22%3A%20%22%5C%22%5Cn%E2%82%AC%5C%5C%22%7D";
        let _odd = gateway.stream(&format!("/v1/rooms/lobby/stream?subscriber=b&info={odd_info}")).await;
        let joined = watcher.event().await.json();
        assert_eq!(joined["members"][0]["info"], json!({"a b": "\"\n€\\"}));
        assert_eq!(members(&gateway, "lobby", "").await[1]["info"], joined["members"][0]["info"]);
    }

    async fn the_info_of_a_member_keeps_its_numbers_and_takes_no_more_bytes_than_were_sent(world) {
        let gateway = world.gateway_with(|settings| settings.presence.info = PresenceInfo::Query).await;
        let info = format!("[ {}]", vec!["1e15"; 203].join(","));
        let query = info.replace(' ', "%20");
        let _stream = gateway.stream(&format!("/v1/rooms/lobby/stream?subscriber=a&info={query}")).await;
        let request = gateway.request(Method::GET, "/v1/rooms/lobby/subscribers");
        let list = gateway.answer(request).await.text().await.unwrap();
        assert!(list.contains(&format!("\"info\":{}", info.replace(' ', ""))), "{list}");
    }

    async fn many_joins_at_once_take_few_log_entries_and_miss_no_member(world) {
        let gateway = quick(&world).await;
        let mut watcher = gateway.stream("/v1/rooms/lobby/stream?subscriber=watcher&presence=true").await;
        watcher.event().await;
        let opening = (0..300).map(|n| {
            let url = format!("{}/v1/rooms/lobby/stream?subscriber=s{n}", gateway.url);
            async move { Stream::open(&url, None).await }
        });
        let streams: Vec<_> = futures_util::future::join_all(opening).await;
        let (mut joined, mut entries) = (Vec::new(), 0);
        while joined.len() < 300 {
            let (event, names, _) = change(&watcher.event().await);
            assert_eq!(event, "presence.join");
            joined.extend(names);
            entries += 1;
        }
        joined.sort();
        joined.dedup();
        assert_eq!(joined.len(), 300);
        assert!(entries < 150, "{entries} entries");
        assert_eq!(listed(&gateway, "lobby").await.len(), 301);
        drop(streams);
        let mut left = 0;
        while left < 300 {
            let (event, names, present) = change(&watcher.event().await);
            assert_eq!(event, "presence.leave");
            left += names.len();
            if left == 300 {
                assert_eq!(present, 1);
            }
        }
        eventually("only the watcher is listed", async || {
            (listed(&gateway, "lobby").await == ["watcher"]).then_some(())
        }).await;
    }

    async fn replicas_are_listed(world) {
        let gateway = quick(&world).await;
        let _streams = (gateway.room("lobby").await, gateway.room("lobby").await);
        let found = eventually("both streams are counted", async || {
            let answer = gateway.get("/v1/replicas").await.1;
            (answer["replicas"][0]["streams"] == 2).then_some(answer)
        }).await;
        let replica = &found["replicas"][0];
        assert_eq!((&replica["version"], &replica["rooms"]), (&json!(env!("CARGO_PKG_VERSION")), &json!(1)));
        assert!(humantime::parse_rfc3339(replica["reported_at"].as_str().unwrap()).is_ok());
    }
}

#[tokio::test]
async fn after_a_restart_on_a_data_folder_members_that_do_not_reconnect_leave() {
    let folder = tempfile::tempdir().unwrap();
    let start = async || {
        let gateway = Gateway::start(|settings| {
            settings.embedded.data_dir = Some(folder.path().into());
            settings.presence.grace = GRACE;
            settings.presence.replica_lease = Duration::from_secs(2);
        });
        gateway.await
    };
    let gateway = start().await;
    let mut ann = gateway.stream("/v1/rooms/lobby/stream?subscriber=ann&presence=true").await;
    let _bob = gateway.stream("/v1/rooms/lobby/stream?subscriber=bob").await;
    ann.event().await;
    ann.event().await;
    let position = ann.last_event_id.clone();
    gateway.stop().await.unwrap();
    let gateway = start().await;
    let mut ann = gateway.resume("/v1/rooms/lobby/stream?subscriber=ann&presence=true", Some(&position)).await;
    assert_eq!(change(&ann.event().await), expected("presence.leave", &["bob"], 1));
    assert_eq!(listed(&gateway, "lobby").await, ["ann"]);
}

#[tokio::test]
async fn a_stream_of_several_rooms_that_is_abandoned_while_it_opens_enters_no_room() {
    let world = World::redis().await;
    let proxy = Proxy::to(world.redis.as_ref().unwrap().port()).await;
    let gateway = world
        .gateway_with(|settings| {
            settings.redis.url = Some(proxy.url().parse().unwrap());
            settings.presence.grace = LONG;
        })
        .await;
    let mut healthy = gateway.stream("/v1/rooms/mine/stream?subscriber=desk").await;
    // Both rooms are live, so that the new stream waits for nothing but the member lists.
    let _live = gateway.room("free").await;
    let connections = async || value(&text(&gateway).await, "roomcast_connections");
    let before = connections().await;
    proxy.set(Link::Freeze);
    let mut socket = TcpStream::connect(gateway.address()).await.unwrap();
    let request = "GET /v1/stream?room=mine&room=free&subscriber=desk HTTP/1.1\r\nhost: localhost\r\n\r\n";
    socket.write_all(request.as_bytes()).await.unwrap();
    eventually("the request is read", async || (connections().await == before + 1).then_some(())).await;
    drop(socket);
    eventually("the gateway has noticed", async || (connections().await == before).then_some(())).await;
    proxy.set(Link::Pass);
    eventually("Redis answers", async || {
        let publish = gateway.request(Method::POST, "/v1/rooms/mine/events").body("hello");
        (gateway.send(publish).await.0 == StatusCode::CREATED).then_some(())
    })
    .await;
    assert_eq!(healthy.data().await, "hello", "the stream goes on");
    assert_eq!(listed(&gateway, "free").await, [""; 0]);
}
