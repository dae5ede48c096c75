//! Removals: the streams of a removed subscriber end on every replica, and its owner is banned.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;

use crate::auth::{all, at, claims, close, token};
use crate::support::{Gateway, Link, Links, Proxy, SseEvent, Stream, World, eventually, spawn, within};

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

/// The data of the stream's end.
async fn stream_end(stream: &mut Stream) -> Value {
    loop {
        let event = stream.event().await;
        if event.event == "stream.end" {
            return event.json();
        }
    }
}

/// The status of a stream request.
async fn stream_status(gateway: &Gateway, path: &str) -> u16 {
    gateway.answer(gateway.request(Method::GET, path)).await.status().as_u16()
}

on_both_brokers! {
    async fn a_subscriber_removed_for_a_time_is_banned_under_every_name(world) {
        let gateway = closed(&world).await;
        let (ann, bob) = (as_user("ann"), as_user("bob"));
        let path = |room: &str, name: &str, token: &str| {
            format!("/v1/rooms/{room}/stream?subscriber={name}&access_token={token}")
        };
        let mut removed = gateway.stream(&path("lobby", "one", &ann)).await;
        let mut same_owner = gateway.stream(&path("lobby", "two", &ann)).await;
        let mut elsewhere = gateway.stream(&path("news", "one", &ann)).await;
        let both_rooms = format!("/v1/stream?room=news&room=lobby&access_token={ann}");
        let mut several = gateway.stream(&format!("{both_rooms}&subscriber=three")).await;
        let mut other = gateway.stream(&path("lobby", "b", &bob)).await;
        remove(&gateway, "/v1/rooms/lobby/subscribers/one?deny_seconds=600").await;
        for stream in [&mut removed, &mut same_owner, &mut several] {
            assert_eq!(stream_end(stream).await, json!({"reason": "removed", "reconnect": "never"}));
            assert!(stream.next().await.is_none());
        }
        for name in ["one", "two", "another"] {
            let status = stream_status(&gateway, &path("lobby", name, &ann)).await;
            assert_eq!(status, 204, "an EventSource gives up after 204");
        }
        assert_eq!(stream_status(&gateway, &both_rooms).await, 204);
        // The member has left at once. The ban is about neither other rooms nor other users.
        eventually("only the other user is listed", async || {
            let request = gateway.request(Method::GET, "/v1/rooms/lobby/subscribers").bearer_auth(&bob);
            let list = gateway.send(request).await.1;
            let list = list["subscribers"].as_array().unwrap();
            (list.len() == 1 && list[0]["user"] == "bob").then_some(())
        }).await;
        let publish = |room: &str| {
            gateway.request(Method::POST, &format!("/v1/rooms/{room}/events")).bearer_auth(&bob).body("hello")
        };
        gateway.send(publish("lobby")).await;
        gateway.send(publish("news")).await;
        assert_eq!(other.data().await, "hello");
        assert_eq!(elsewhere.data().await, "hello");
    }

    async fn a_subscriber_removed_without_a_time_may_reconnect(world) {
        let gateway = closed(&world).await;
        let path = format!("/v1/rooms/lobby/stream?subscriber=one&access_token={}", as_user("ann"));
        let mut stream = gateway.stream(&path).await;
        remove(&gateway, "/v1/rooms/lobby/subscribers/one").await;
        assert_eq!(stream_end(&mut stream).await, json!({"reason": "removed", "reconnect": "later"}));
        gateway.stream(&path).await;
    }

    async fn a_removed_subscriber_receives_the_end_before_its_own_leave(world) {
        let gateway = world.gateway().await;
        let mentions_leave =
            |event: &SseEvent| event.event == "presence.leave" || event.data.contains("presence.leave");
        let mut streams = Vec::new();
        for n in 0..40 {
            // A stream of several rooms has its own task. The broadcaster of the room writes a stream of one room.
            let path = if n % 2 == 0 { format!("rooms/r{n}/stream?") } else { format!("stream?room=r{n}&room=lobby&") };
            streams.push(gateway.stream(&format!("/v1/{path}presence=true&subscriber=sam-{n}")).await);
        }
        // The joins of the first ones are published by now, so their leaves are published at once.
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

    async fn without_a_token_the_address_is_banned_and_its_open_streams_go_on(world) {
        let gateway = world.gateway().await;
        let mut removed = gateway.stream("/v1/rooms/lobby/stream?subscriber=one").await;
        let mut neighbour = gateway.stream("/v1/rooms/lobby/stream?subscriber=two").await;
        let path = "/v1/rooms/lobby/subscribers/one?deny_seconds=1";
        assert_eq!(gateway.send(gateway.request(Method::DELETE, path)).await.0.as_u16(), 204);
        assert_eq!(stream_end(&mut removed).await["reason"], "removed");
        eventually("another name is banned too", async || {
            (stream_status(&gateway, "/v1/rooms/lobby/stream?subscriber=three").await == 204).then_some(())
        }).await;
        gateway.publish("lobby", "hello").await;
        assert_eq!(neighbour.data().await, "hello");
        eventually("the ban ends", async || {
            (stream_status(&gateway, "/v1/rooms/lobby/stream?subscriber=one").await == 200).then_some(())
        }).await;
    }

    async fn a_disconnected_subscriber_is_banned_by_its_address_or_its_user(world) {
        let gateway = world.gateway_with(|settings| settings.presence.grace = Duration::from_mins(10)).await;
        drop(gateway.stream("/v1/rooms/lobby/stream?subscriber=sam").await);
        let path = "/v1/rooms/lobby/subscribers/sam?deny_seconds=600";
        assert_eq!(gateway.send(gateway.request(Method::DELETE, path)).await.0.as_u16(), 204);
        for name in ["sam", "other"] {
            let path = format!("/v1/rooms/lobby/stream?subscriber={name}");
            eventually("it is banned", async || {
                (stream_status(&gateway, &path).await == 204).then_some(())
            }).await;
        }
        let gateway = closed(&world).await;
        drop(gateway.stream(&format!("/v1/rooms/team/stream?subscriber=sam&access_token={}", as_user("ann"))).await);
        remove(&gateway, "/v1/rooms/team/subscribers/sam?deny_seconds=600").await;
        let path = |user: &str| format!("/v1/rooms/team/stream?subscriber=sam&access_token={}", as_user(user));
        eventually("its owner is banned", async || {
            (stream_status(&gateway, &path("ann")).await == 204).then_some(())
        }).await;
        // Another user may take the name.
        eventually("the name is free", async || {
            (stream_status(&gateway, &path("bob")).await == 200).then_some(())
        }).await;
    }

    async fn a_removed_subscriber_that_does_not_read_is_off_the_list_at_once(world) {
        let gateway = world.gateway_with(|settings| {
            close(settings);
            settings.presence.grace = Duration::from_mins(10);
            settings.streams.stall_timeout = Duration::from_mins(10);
        });
        let gateway = gateway.await;
        let moderator = as_user("mod");
        let request = |method: Method, path: &str| gateway.request(method, path).bearer_auth(&moderator);
        let members = async |room: &str| {
            let list = gateway.send(request(Method::GET, &format!("/v1/rooms/{room}/subscribers"))).await.1;
            list["subscribers"].as_array().unwrap().len()
        };
        for (n, path) in ["/v1/rooms/{room}/subscribers/ann", "/v1/users/ann/streams", "/v1/tokens/jti"].iter().enumerate() {
            for (version, query) in [("1.1", "room={room}"), ("1.1", "room={room}&room=b"), ("1.0", "room={room}")] {
                let room = format!("r{n}-{version}-{}", query.len());
                let mut claims = claims(&all());
                claims["jti"] = json!(room);
                let path = path.replace("{room}", &room).replace("jti", &room);
                let query = query.replace("{room}", &room);
                let socket = TcpSocket::new_v4().unwrap();
                socket.set_recv_buffer_size(4096).unwrap();
                let mut socket = socket.connect(gateway.address().parse().unwrap()).await.unwrap();
                let head = format!("GET /v1/stream?{query}&subscriber=ann&access_token={} HTTP/{version}", token(&claims));
                socket.write_all(format!("{head}\r\nhost: localhost\r\n\r\n").as_bytes()).await.unwrap();
                eventually("it is listed", async || (members(&room).await == 1).then_some(())).await;
                // More than the buffers hold.
                for _ in 0..10 {
                    let publish = request(Method::POST, &format!("/v1/rooms/{room}/events"));
                    assert_eq!(gateway.send(publish.body("x".repeat(60_000))).await.0.as_u16(), 201);
                }
                remove(&gateway, &path).await;
                eventually("it is not listed", async || (members(&room).await == 0).then_some(())).await;
                drop(socket);
            }
        }
    }

    async fn all_streams_of_a_user_can_be_ended(world) {
        let gateway = closed(&world).await;
        let (ann, bob) = (as_user("ann"), as_user("bob"));
        let mut streams = Vec::new();
        for path in ["/v1/rooms/a/stream?", "/v1/rooms/b/stream?subscriber=x&", "/v1/stream?room=a&room=c&"] {
            streams.push(gateway.stream(&format!("{path}access_token={ann}")).await);
        }
        let mut other = gateway.stream(&format!("/v1/rooms/a/stream?access_token={bob}")).await;
        remove(&gateway, "/v1/users/ann/streams?deny_seconds=600").await;
        for stream in &mut streams {
            assert_eq!(stream_end(stream).await, json!({"reason": "removed", "reconnect": "never"}));
        }
        assert_eq!(stream_status(&gateway, &format!("/v1/rooms/z/stream?access_token={ann}")).await, 204);
        gateway.send(gateway.request(Method::POST, "/v1/rooms/a/events").bearer_auth(&ann).body("hello")).await;
        assert_eq!(other.data().await, "hello", "the token still permits publishing");
    }

    async fn p10_a_revoked_token_is_refused_and_its_streams_end(world) {
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
        assert_eq!(stream_end(&mut stream).await, json!({"reason": "token_revoked", "reconnect": "never"}));
        let (status, code) = crate::auth::ask(&gateway, Method::GET, "/v1/rooms/lobby/events", None, &revoked).await;
        assert_eq!((status, code.as_str()), (401, "token_invalid"));
        gateway.send(gateway.request(Method::POST, "/v1/rooms/lobby/events").bearer_auth(&other).body("hello")).await;
        assert_eq!(goes_on.data().await, "hello");
    }
}

#[tokio::test]
async fn p10_a_removal_reaches_every_replica_even_one_that_was_cut_off() {
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
    assert_eq!(stream_end(&mut stream).await["reason"], "removed");
    for gateway in [&near, &far] {
        eventually("it is banned on both replicas", async || {
            (stream_status(gateway, &path("lobby")).await == 204).then_some(())
        })
        .await;
    }
    proxy.set(Link::Cut);
    remove(&near, "/v1/rooms/news/subscribers/one?deny_seconds=600").await;
    proxy.set(Link::Pass);
    assert_eq!(stream_end(&mut cut_off).await["reason"], "removed");
    // A replica that starts later knows the removal too.
    let late = closed(&world).await;
    assert_eq!(stream_status(&late, &path("news")).await, 204);
}

#[tokio::test]
async fn a_removal_that_redis_refuses_is_answered_with_the_fault() {
    let world = World::redis().await;
    let gateway = closed(&world).await;
    let redis = world.redis.as_ref().unwrap();
    redis.cli(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    let request = gateway.request(Method::DELETE, "/v1/users/ann/streams?deny_seconds=600").bearer_auth(admin());
    let (status, problem) = gateway.send(request).await;
    assert_eq!((status.as_u16(), &problem["code"]), (503, &json!("no_replicas")));
    redis.cli(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    // One removal has expired, the other one has not.
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
    eventually("the removal that has not expired is known", async || {
        (stream_status(&gateway, &path).await == 204).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_removal_is_answered_after_it_is_stored() {
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
    assert_eq!(stream_status(&gateway, &format!("/v1/rooms/a/stream?access_token={}", as_user("ann"))).await, 204);
}

#[tokio::test]
async fn p10_a_token_that_is_revoked_while_a_stream_opens_keeps_no_stream() {
    let world = World::redis().await;
    let redis = world.redis.as_ref().unwrap();
    let proxy = Proxy::to(redis.port()).await;
    let near = closed(&world).await;
    let far = world
        .gateway_with(|settings| {
            close(settings);
            settings.redis.url = Some(proxy.url().parse().unwrap());
            // The request of each subject is counted after its token is checked: it waits for the slow link there.
            settings.limits.rate_per_address = 0;
            settings.limits.rate_total = 0;
        })
        .await;
    eventually("both replicas write over the link that they are told over", async || {
        let clients = redis.cli(&["CLIENT", "LIST"]);
        let subscribed = clients.lines().filter(|client| !client.contains(" sub=0 "));
        (subscribed.filter(|client| !client.contains(" cmd=subscribe ")).count() == 2).then_some(())
    })
    .await;
    proxy.set_only(Links::PubSub, Link::Delay(Duration::from_millis(150)));
    for n in 0..3 {
        let mut claims = claims(&all());
        (claims["sub"], claims["jti"]) = (json!(format!("ann-{n}")), json!(format!("t{n}")));
        let path = format!("{}/v1/rooms/lobby/stream?access_token={}", far.url, token(&claims));
        let opening = spawn(async move { reqwest::get(path).await.unwrap() });
        remove(&near, &format!("/v1/tokens/t{n}")).await;
        let answer = within("an answer", opening).await.unwrap();
        // If the revocation was late, it ends the stream.
        let status = answer.status().as_u16();
        let text = within("the stream ends", answer.text()).await.unwrap();
        assert!(status == 401 || text.contains("token_revoked"), "{status} {text}");
    }
}
