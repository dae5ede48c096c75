//! Presence in a room with streams on several replicas: killed replicas, subscribers that move, and lost data in
//! Redis.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use super::{GRACE, change, expected};
use crate::support::{DEADLINE, RedisServer, Replica, Stream, World, eventually};

const LEASE: &str = "2s";

fn replica(redis: &RedisServer) -> Replica {
    Replica::start(&redis.url(), &["--replica-lease", LEASE, "--presence-grace", "300ms"])
}

/// Three replicas, and a watcher of the room on the first one.
async fn three_replicas(redis: &RedisServer) -> (Vec<Replica>, Stream) {
    let replicas: Vec<_> = (0..3).map(|_| replica(redis)).collect();
    for replica in &replicas {
        replica.until(200).await;
    }
    let watch = format!("{}/v1/rooms/lobby/stream?subscriber=watcher&presence=true", replicas[0].url());
    let watcher = Stream::open(&watch, None).await;
    (replicas, watcher)
}

async fn get(url: &str) -> Value {
    reqwest::get(url).await.unwrap().json().await.unwrap()
}

/// The names of the room's members.
async fn listed(replica: &Replica) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut after = String::new();
    loop {
        let url = format!("{}/v1/rooms/lobby/subscribers?limit=200{after}", replica.url());
        let answer = reqwest::get(&url).await.unwrap();
        let link = answer.headers().get("link").map(|link| link.to_str().unwrap().to_owned());
        let page: Value = answer.json().await.unwrap();
        let page = page["subscribers"].as_array().unwrap();
        names.extend(page.iter().map(|member| member["subscriber"].as_str().unwrap().to_owned()));
        let Some(link) = link else { return names };
        after = format!("&after={}", link.split("after=").nth(1).unwrap().split('>').next().unwrap());
    }
}

async fn open(replica: &Replica, name: &str) -> Stream {
    Stream::open(&format!("{}/v1/rooms/lobby/stream?subscriber={name}", replica.url()), None).await
}

/// Reads changes of one kind until they have named this many members. Returns the names, sorted, with repetitions.
async fn changed_names(watcher: &mut Stream, kind: &str, count: usize) -> Vec<String> {
    let mut names = Vec::new();
    while names.len() < count {
        let event = watcher.event().await;
        if event.event.starts_with("presence.") {
            let (name, more, _) = change(&event);
            assert_eq!(name, kind);
            names.extend(more);
        }
    }
    names.sort();
    names
}

#[tokio::test]
async fn when_a_replica_is_killed_each_of_its_members_leaves_once_and_lists_are_right_within_its_lease() {
    let redis = RedisServer::start().await;
    let (mut replicas, mut watcher) = three_replicas(&redis).await;
    watcher.event().await;
    let opening =
        (0..500).map(|n| open_owned(format!("{}/v1/rooms/lobby/stream?subscriber=s{n:03}", replicas[n % 3].url())));
    let streams = futures_util::future::join_all(opening).await;
    changed_names(&mut watcher, "presence.join", 500).await;
    assert_eq!(listed(&replicas[1]).await.len(), 501);
    eventually("all are counted", async || {
        (get(&format!("{}/v1/rooms/lobby", replicas[1].url())).await["subscribers"] == 501).then_some(())
    })
    .await;

    replicas[2].kill();
    let gone: Vec<_> = (0..500).filter(|n| n % 3 == 2).map(|n| format!("s{n:03}")).collect();
    assert_eq!(changed_names(&mut watcher, "presence.leave", gone.len()).await, gone, "each once");
    for replica in &replicas[..2] {
        assert_eq!(listed(replica).await.len(), 501 - gone.len());
        let room = get(&format!("{}/v1/rooms/lobby", replica.url())).await;
        assert_eq!(room["subscribers"], 501 - gone.len());
        assert_eq!(get(&format!("{}/v1/replicas", replica.url())).await["replicas"].as_array().unwrap().len(), 2);
    }
    // A name on the killed replica is free, and no other change was published.
    let _again = open(&replicas[1], "s002").await;
    assert_eq!(change(&watcher.event().await), expected("presence.join", &["s002"], 502 - gone.len() as u64));
    drop(streams);
}

async fn open_owned(url: String) -> Stream {
    Stream::open(&url, None).await
}

#[tokio::test]
async fn churn_leaves_no_stale_members() {
    let redis = RedisServer::start().await;
    let (mut replicas, mut watcher) = three_replicas(&redis).await;
    // Streams open and close as fast as they can, and after each round a replica is killed and started again.
    for round in 0..4 {
        for batch in 0..10 {
            let opening = (0..25).map(|n| {
                let name = format!("c{}", (round * 7 + batch * 13 + n * 3) % 60);
                open_owned(format!("{}/v1/rooms/lobby/stream?subscriber={name}", replicas[n % 3].url()))
            });
            drop(futures_util::future::join_all(opening).await);
        }
        replicas[2].kill();
        replicas[2] = replica(&redis);
        replicas[2].until(200).await;
    }
    eventually("only the watcher is left", async || (listed(&replicas[1]).await.len() == 1).then_some(())).await;
    // The published changes lead to the same list.
    let mut present_names = BTreeSet::new();
    let end = tokio::time::Instant::now() + DEADLINE;
    loop {
        assert!(tokio::time::Instant::now() < end, "these members joined and never left: {present_names:?}");
        let event = watcher.event().await;
        if !event.event.starts_with("presence.") {
            continue;
        }
        let (kind, names, present) = change(&event);
        for name in names {
            let is_join = kind == "presence.join";
            let is_change = if is_join { present_names.insert(name.clone()) } else { present_names.remove(&name) };
            assert!(is_change, "{name}: {kind} twice in a row");
        }
        if kind == "presence.leave" && present == 1 && present_names.len() == 1 {
            break;
        }
    }
}

#[tokio::test]
async fn a_subscriber_that_moves_to_another_replica_does_not_leave_and_its_earlier_stream_ends() {
    let world = World::redis().await;
    let start = async || {
        world
            .gateway_with(|settings| {
                settings.presence.grace = GRACE * 10;
                settings.presence.replica_lease = Duration::from_secs(2);
            })
            .await
    };
    let (one, other) = (start().await, start().await);
    let mut watcher = one.stream("/v1/rooms/lobby/stream?subscriber=watcher&presence=true").await;
    watcher.event().await;
    let mut first = one.stream("/v1/rooms/lobby/stream?subscriber=bob").await;
    assert_eq!(change(&watcher.event().await), expected("presence.join", &["bob"], 2));
    // The first stream has not ended, as when the client's connection to a balancer was cut.
    let second = other.stream("/v1/rooms/lobby/stream?subscriber=bob").await;
    assert_eq!(first.event().await.json()["reason"], "superseded");
    drop(second);
    let _third = one.stream("/v1/rooms/lobby/stream?subscriber=bob").await;
    // Longer than the grace on both replicas that the subscriber has left.
    tokio::time::sleep(GRACE * 12).await;
    one.publish("lobby", "hello").await;
    assert_eq!(watcher.data().await, "hello", "no join or leave was published");
    assert_eq!(super::listed(&other, "lobby").await, ["bob", "watcher"]);
}

#[tokio::test]
async fn members_that_redis_has_lost_are_restored() {
    let world = World::redis().await;
    let gateway = world.gateway_with(|settings| settings.presence.replica_lease = Duration::from_secs(2)).await;
    let ann = gateway.stream("/v1/rooms/lobby/stream?subscriber=ann").await;
    let _bob = gateway.stream("/v1/rooms/lobby/stream?subscriber=bob").await;
    let redis = world.redis.as_ref().unwrap();
    let keys = ["roomcast:{lobby}:members", "roomcast:{lobby}:presence"];
    redis.cli(&["DEL", keys[0], keys[1]]);
    assert_eq!(super::listed(&gateway, "lobby").await, [""; 0]);
    eventually("both are listed again", async || {
        (super::listed(&gateway, "lobby").await == ["ann", "bob"]).then_some(())
    })
    .await;
    // A member that Redis lists for this replica, without a stream.
    let replica = ann.opened["replica"].as_str().unwrap();
    let own = redis.cli(&["HKEYS", keys[1]]);
    let replica = own.lines().find(|name| name.starts_with(replica)).unwrap();
    let orphan = format!("5 2026-01-01T00:00:00.000Z {replica} owner - \"subscriber\":\"orphan\"");
    redis.cli(&["HSET", keys[0], "orphan", &orphan]);
    redis.cli(&["HINCRBY", keys[1], replica, "1"]);
    assert_eq!(super::listed(&gateway, "lobby").await.len(), 3);
    eventually("the orphan is removed", async || {
        (super::listed(&gateway, "lobby").await == ["ann", "bob"]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn wrong_counts_in_redis_are_corrected() {
    let world = World::redis().await;
    let gateway = world.gateway_with(|settings| settings.presence.replica_lease = Duration::from_secs(2)).await;
    let mut watcher = gateway.stream("/v1/rooms/lobby/stream?presence=true").await;
    let _streams = [
        gateway.stream("/v1/rooms/lobby/stream?subscriber=ann").await,
        gateway.stream("/v1/rooms/lobby/stream?subscriber=bob").await,
    ];
    assert_eq!(change(&watcher.event().await), expected("presence.join", &["ann"], 1));
    assert_eq!(change(&watcher.event().await), expected("presence.join", &["bob"], 2));
    let redis = world.redis.as_ref().unwrap();
    // The members are lost, but not the counts.
    redis.cli(&["DEL", "roomcast:{lobby}:members"]);
    let mut back = changed_names(&mut watcher, "presence.join", 2).await;
    back.sort();
    assert_eq!(back, ["ann", "bob"]);
    let _carl = gateway.stream("/v1/rooms/lobby/stream?subscriber=carl").await;
    assert_eq!(change(&watcher.event().await), expected("presence.join", &["carl"], 3));
    assert_eq!(super::listed(&gateway, "lobby").await, ["ann", "bob", "carl"]);
}

#[tokio::test]
async fn a_named_stream_of_many_rooms_is_answered_soon_while_redis_hangs() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    let rooms: Vec<_> = (0..20).map(|n| format!("room=r{n}")).collect();
    let path = format!("/v1/stream?{}", rooms.join("&"));
    let _topics_stay_live = gateway.stream(&path).await;
    let redis = world.redis.as_ref().unwrap();
    redis.freeze();
    let began = std::time::Instant::now();
    let mut named = gateway.stream(&format!("{path}&subscriber=ann&presence=true")).await;
    // It may have opened, or have ended with the advice to reconnect.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    redis.thaw();
    gateway.until_well().await;
    if named.opened.get("rooms").is_none() {
        named = gateway.stream(&format!("{path}&subscriber=ann&presence=true")).await;
    }
    gateway.publish("r7", "hello").await;
    while named.event().await.event != "message" {}
    eventually("it is listed in all rooms", async || {
        for n in [0, 7, 19] {
            if super::listed(&gateway, &format!("r{n}")).await != ["ann"] {
                return None;
            }
        }
        Some(())
    })
    .await;
}

#[tokio::test]
async fn members_of_a_new_replica_are_not_removed_as_stale() {
    let redis = RedisServer::start().await;
    let old = replica(&redis);
    old.until(200).await;
    let mut watcher = Stream::open(&format!("{}/v1/rooms/lobby/stream?presence=true", old.url()), None).await;
    let _first = open(&old, "first").await;
    assert_eq!(change(&watcher.event().await), expected("presence.join", &["first"], 1));
    // Longer than a lease: after it, the old replica removes stale members.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let new = replica(&redis);
    new.until(200).await;
    for n in 0..5 {
        let streams = (open(&new, &format!("new{n}")).await, open(&old, &format!("old{n}")).await);
        for name in [format!("new{n}"), format!("old{n}")] {
            assert_eq!(
                change(&watcher.event().await),
                expected("presence.join", &[&name], 2 + u64::from(name.starts_with("old")))
            );
        }
        drop(streams);
        let mut left = changed_names(&mut watcher, "presence.leave", 2).await;
        left.sort();
        assert_eq!(left, [format!("new{n}"), format!("old{n}")]);
    }
}

#[tokio::test]
async fn a_replica_that_restarts_under_its_name_leaves_no_stale_members() {
    let redis = RedisServer::start().await;
    let named = || {
        Replica::start(&redis.url(), &["--replica-lease", LEASE, "--presence-grace", "300ms", "--replica-id", "rb"])
    };
    let other = replica(&redis);
    other.until(200).await;
    let mut watcher = Stream::open(&format!("{}/v1/rooms/lobby/stream?presence=true", other.url()), None).await;
    let mut first = named();
    first.until(200).await;
    let _bob = open(&first, "bob").await;
    assert_eq!(change(&watcher.event().await), expected("presence.join", &["bob"], 1));
    first.kill();
    let second = named();
    second.until(200).await;
    assert_eq!(change(&watcher.event().await), expected("presence.leave", &["bob"], 0));
    eventually("both processes count as one replica", async || {
        let replicas = get(&format!("{}/v1/replicas", other.url())).await;
        (replicas["replicas"].as_array().unwrap().len() == 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_join_that_was_never_answered_leaves_no_stale_member() {
    let world = World::redis().await;
    let gateway = world
        .gateway_with(|settings| {
            settings.presence.grace = GRACE;
            settings.presence.replica_lease = Duration::from_secs(2);
        })
        .await;
    let _other = gateway.room("lobby").await;
    let redis = world.redis.as_ref().unwrap();
    redis.freeze();
    let request = reqwest::Client::new().get(format!("{}/v1/rooms/lobby/stream?subscriber=casper", gateway.url));
    let _ = tokio::time::timeout(Duration::from_millis(500), request.send()).await;
    redis.thaw();
    gateway.until_well().await;
    eventually("no member is left", async || {
        tokio::time::sleep(GRACE * 2).await;
        super::listed(&gateway, "lobby").await.is_empty().then_some(())
    })
    .await;
    assert_eq!(redis.cli(&["HLEN", "roomcast:{lobby}:members"]).trim(), "0");
}

#[tokio::test]
async fn an_outage_of_redis_longer_than_the_leases_makes_no_member_leave() {
    let mut world = World {
        redis: Some(RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await),
        ..World::embedded()
    };
    let start = async |world: &World| {
        world
            .gateway_with(|settings| {
                settings.presence.grace = GRACE;
                settings.presence.replica_lease = Duration::from_secs(2);
            })
            .await
    };
    let (one, other) = (start(&world).await, start(&world).await);
    let mut watcher = one.stream("/v1/rooms/lobby/stream?subscriber=watcher&presence=true").await;
    watcher.event().await;
    let _bob = other.stream("/v1/rooms/lobby/stream?subscriber=bob").await;
    watcher.event().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let redis = world.redis.as_mut().unwrap();
    redis.kill();
    tokio::time::sleep(Duration::from_secs(4)).await;
    redis.come_back().await;
    one.until_well().await;
    other.until_well().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    one.publish("lobby", "hello").await;
    assert_eq!(watcher.data().await, "hello", "no join or leave was published");
    assert_eq!(super::listed(&one, "lobby").await, ["bob", "watcher"]);
}
