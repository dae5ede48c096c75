//! Watched hashes that other clients of Redis change, and what watching costs Redis.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use reqwest::{Client, Method};
use serde_json::{Value, json};

use super::put;
use crate::support::{
    EventSource, Fields, Gateway, RedisServer, Told, Watcher, World, eventually, stored_fields, within,
};

const KEY: &str = "roomcast:hash:{shared}";
const HASH: &str = "/v1/hashes/shared";
/// Fields of the largest hash that can be watched.
const MOST_FIELDS: usize = 100_000;
/// Watchers that come at one time.
const CROWD: usize = 1000;

async fn watched(world: &World) -> (Gateway, Watcher) {
    let gateway = world.gateway().await;
    let mut watcher = Watcher::new("shared");
    watcher.open(&gateway.url).await;
    watcher.told().await;
    (gateway, watcher)
}

fn fields<const N: usize>(fields: [(&str, &str); N]) -> Fields {
    fields.map(|(field, value)| (field.into(), value.into())).into()
}

/// Sets a field through the gateway, and reads until the watcher is told. Everything before was told then.
async fn set_last(gateway: &Gateway, watcher: &mut Watcher, value: &str) {
    assert!(put(gateway, &format!("{HASH}/fields/last"), value).await.is_success());
    watcher.until_value("last", value).await;
}

/// Sets many fields past the gateways, a thousand at a time.
fn fill(redis: &RedisServer, count: usize) {
    let script = "local words = {}
        for n = ARGV[1], ARGV[2] do
            words[#words + 1], words[#words + 2] = 'field ' .. n, 'value ' .. n
        end
        return redis.call('HSET', KEYS[1], unpack(words))";
    for first in (0..count).step_by(1000) {
        let last = count.min(first + 1000) - 1;
        redis.eval(script, &[KEY], &[&first.to_string(), &last.to_string()]);
    }
}

/// How many times Redis has run a command.
fn calls(redis: &RedisServer, command: &str) -> usize {
    let stats = redis.cli(&["INFO", "commandstats"]);
    let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
}

/// Makes Redis note the commands that block it for 10 ms; or, on a slow machine, for as long as a read of the whole hash.
fn watch_for_slow_commands(redis: &RedisServer) {
    redis.cli(&["CONFIG", "SET", "slowlog-log-slower-than", "0"]);
    redis.cli(&["SLOWLOG", "RESET"]);
    redis.cli(&["HGETALL", KEY]);
    let noted = redis.cli(&["SLOWLOG", "GET", "1"]);
    let limit: u64 = noted.lines().nth(2).unwrap().parse().unwrap();
    redis.cli(&["CONFIG", "SET", "slowlog-log-slower-than", &limit.max(10_000).to_string()]);
    redis.cli(&["SLOWLOG", "RESET"]);
}

#[tokio::test]
async fn p9_what_other_clients_change_is_told_within_the_time_of_a_comparison() {
    let world = World::redis().await;
    let (gateway, mut watcher) = watched(&world).await;
    let redis = world.server();
    redis.cli(&["HSET", KEY, "a", "1", "b", "2"]);
    watcher.until(&fields([("a", "1"), ("b", "2")])).await;
    redis.cli(&["HSET", KEY, "a", "3", "c", ""]);
    redis.cli(&["HDEL", KEY, "b"]);
    watcher.until(&fields([("a", "3"), ("c", "")])).await;
    // Now the log knows that the hash has fields.
    set_last(&gateway, &mut watcher, "1").await;
    for (n, command) in
        [&["DEL", KEY][..], &["RENAME", KEY, "other"], &["PEXPIRE", KEY, "1"]].into_iter().enumerate()
    {
        redis.cli(command);
        watcher.until(&Fields::new()).await;
        let last = watcher.told.last().unwrap();
        assert!(matches!(last, Told::Clear { by: None, .. }), "{command:?}: {last:?}");
        set_last(&gateway, &mut watcher, &format!("after {n}")).await;
    }
    // The gateway's write comes first.
    redis.cli(&["DEL", KEY]);
    set_last(&gateway, &mut watcher, "new").await;
    assert_eq!(watcher.fields(), Some(&fields([("last", "new")])));
    let [.., Told::Clear { reason, by: None, .. }, Told::Set { .. }] = &watcher.told[..] else { panic!() };
    assert_eq!(reason, "external");
    assert_eq!(watcher.gaps(), [""; 0]);
}

#[tokio::test]
async fn p9_watchers_of_all_replicas_are_told_once_what_another_client_has_changed() {
    let world = World::redis().await;
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(watched(&world).await);
    }
    let redis = world.server();
    for n in 0..5 {
        let value = n.to_string();
        redis.cli(&["HSET", KEY, "a", &value]);
        for (_, watcher) in &mut replicas {
            watcher.until_value("a", &value).await;
        }
    }
    for (gateway, watcher) in &mut replicas {
        let value = gateway.url.clone();
        set_last(gateway, watcher, &value).await;
    }
    let entries = |watcher: &Watcher| {
        let of_a = |told: &&Told| matches!(told, Told::Set { fields, .. } if fields.contains_key("a"));
        watcher.told.iter().filter(of_a).cloned().collect::<Vec<_>>()
    };
    let told = entries(&replicas[0].1);
    assert_eq!(told.len(), 5, "{told:?}");
    for (_, watcher) in &replicas {
        assert_eq!(entries(watcher), told);
    }
}

#[tokio::test]
async fn p9_a_loss_is_told_although_another_watcher_has_made_the_gateway_read_the_hash_first() {
    let world = World::redis().await;
    let (gateway, mut watcher) = watched(&world).await;
    for n in 0..3 {
        set_last(&gateway, &mut watcher, &n.to_string()).await;
        watcher.told.clear();
        world.server().cli(&["FLUSHALL"]);
        until_compared(&gateway, async {
            watcher.told().await;
        })
        .await;
        assert!(matches!(watcher.told[0], Told::Gap { .. }), "{:?}", watcher.told);
        watcher.until(&Fields::new()).await;
    }
}

#[tokio::test]
async fn p9_watchers_of_a_key_that_becomes_another_type_and_a_hash_again_are_told() {
    let world = World::redis().await;
    let (gateway, mut watcher) = watched(&world).await;
    let redis = world.server();
    // Once before and once after a write of the gateway.
    for n in 0..2 {
        for (command, is_text) in [(&["SET", KEY, "text"][..], true), (&["LPUSH", KEY, "item"], false)] {
            redis.cli(&["DEL", KEY]);
            redis.cli(&["HSET", KEY, "a", &n.to_string(), "b", "2"]);
            watcher.until(&fields([("a", &n.to_string()), ("b", "2")])).await;
            if n == 1 {
                set_last(&gateway, &mut watcher, if is_text { "text" } else { "list" }).await;
            }
            redis.cli(&["DEL", KEY]);
            redis.cli(command);
            watcher.until(&Fields::new()).await;
            let (status, problem) =
                gateway.send(gateway.request(Method::PUT, &format!("{HASH}/fields/a")).body("1")).await;
            assert_eq!((status.as_u16(), &problem["code"]), (409, &json!("wrong_type")));
        }
    }
    redis.cli(&["DEL", KEY]);
    set_last(&gateway, &mut watcher, "a hash again").await;
    assert_eq!(watcher.fields(), Some(&fields([("last", "a hash again")])));
    assert_eq!(watcher.gaps(), [""; 0]);
}

#[tokio::test]
async fn p9_fields_whose_names_are_none_are_not_told_and_not_compared_for_ever() {
    let world = World::redis().await;
    let (gateway, mut watcher) = watched(&world).await;
    let redis = world.server();
    redis.eval("return redis.call('HSET', KEYS[1], 'a\\0b', '1', '\\255', '2', string.rep('x', 3000), '3', '', '4', 'good', '5')", &[KEY], &[]);
    watcher.until(&fields([("good", "5")])).await;
    let entries = redis.cli(&["XLEN", &format!("{KEY}:log")]);
    // Two more comparisons.
    for value in ["6", "7"] {
        redis.cli(&["HSET", KEY, "good", value]);
        watcher.until_value("good", value).await;
    }
    assert_eq!(
        redis.cli(&["XLEN", &format!("{KEY}:log")]).parse::<usize>().unwrap(),
        entries.parse::<usize>().unwrap() + 2
    );
    for (path, name) in [("%2A", "*"), ("x%2Fy", "x/y"), ("100%25", "100%"), ("a%20b", "a b")] {
        redis.cli(&["HSET", KEY, name, ""]);
        watcher.until_value(name, "").await;
        assert_eq!(gateway.send(gateway.request(Method::DELETE, &format!("{HASH}/fields/{path}"))).await.0, 204);
        let told = watcher.told().await;
        assert!(matches!(&told, Told::Delete { fields, .. } if *fields == [name]), "{told:?}");
    }
}

/// If a step announced more than it has caused, those of others would be taken for its own. The time until the next
/// comparison is longer than a test waits.
#[tokio::test]
async fn p9_no_step_hides_the_notification_of_another_client() {
    let world = World::redis().await;
    let redis = world.server();
    redis.cli(&["CONFIG", "SET", "notify-keyspace-events", "KA"]);
    let gateway = world.gateway().await;
    let mut stream = gateway.stream(&format!("{HASH}/stream")).await;
    let mut until = async |event: &str, text: &str| {
        loop {
            let next = within("the watcher is told", stream.next()).await.expect("the stream goes on");
            if next.event == event && next.data.contains(text) {
                return;
            }
        }
    };
    let expiry = async |expiry| {
        let request = gateway.request(Method::PUT, &format!("{HASH}/expiry")).json(&expiry);
        assert_eq!(gateway.send(request).await.0, 204);
    };
    let remove = async |field| {
        let request = gateway.request(Method::DELETE, &format!("{HASH}/fields/{field}"));
        assert_eq!(gateway.send(request).await.0, 204);
    };
    assert!(put(&gateway, &format!("{HASH}/fields/last"), "1").await.is_success());
    until("hash.set", "last").await;
    redis.cli(&["HSET", KEY, "last", "of another client"]);
    expiry(json!({"seconds": null})).await;
    until("hash.set", "of another client").await;
    expiry(json!({"seconds": 900, "refresh": true})).await;
    assert!(put(&gateway, &format!("{HASH}/fields/a"), "1").await.is_success());
    until("hash.set", "\"a\"").await;
    redis.cli(&["HDEL", KEY, "last"]);
    remove("a").await;
    until("hash.clear", "external").await;
}

#[tokio::test]
async fn p9_the_setting_of_notifications_may_change() {
    let world = World::redis().await;
    let (gateway, mut watcher) = watched(&world).await;
    let redis = world.server();
    for (setting, is_on) in [("KA", true), ("", false), ("Kgh", true)] {
        redis.cli(&["CONFIG", "SET", "notify-keyspace-events", setting]);
        eventually("the gateway has noticed", async || {
            (gateway.get("/healthz").await.1["keyspace_notifications"] == is_on).then_some(())
        })
        .await;
        if is_on {
            // The next comparison without a hint would be a minute later.
            redis.cli(&["HSET", KEY, "now", setting]);
            watcher.until_value("now", setting).await;
        }
    }
}

/// Redis does nothing else while it copies a value.
#[tokio::test]
async fn a_huge_value_of_another_client_is_no_number_and_has_no_entity_tag() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    let redis = world.server();
    redis.eval("return redis.call('HSET', KEYS[1], 'huge', string.rep('1', 3000000))", &[KEY], &[]);
    let path = format!("{HASH}/fields/huge");
    let before = calls(redis, "hget");
    let increment = gateway.request(Method::POST, &format!("{path}/increment")).json(&json!({"by": 1}));
    let (status, problem) = gateway.send(increment).await;
    assert_eq!((status.as_u16(), &problem["code"]), (409, &json!("not_a_number")));
    let conditional = gateway.request(Method::DELETE, &path).header("if-match", "\"0123\"");
    let (status, problem) = gateway.send(conditional).await;
    assert_eq!((status.as_u16(), &problem["present"]), (412, &Value::Null), "a refusal has no large value");
    assert!(problem["detail"].as_str().unwrap().contains("too large"), "{}", problem["detail"]);
    // It was read once for that.
    assert!(calls(redis, "hget") <= before + 1);
    let request = gateway.request(Method::PATCH, HASH).header("content-type", "application/json-patch+json");
    let test = json!([{"op": "test", "path": "/huge", "value": "1"}]);
    let (status, problem) = gateway.send(request.body(test.to_string())).await;
    assert_eq!((status.as_u16(), &problem["present_fields"]), (412, &Value::Null));
    assert_eq!(gateway.send(gateway.request(Method::DELETE, &path).header("if-match", "*")).await.0, 204);
}

#[tokio::test]
async fn p9_a_hash_whose_expiry_moves_with_every_write_is_compared_too() {
    let world = World::redis().await;
    let (gateway, mut watcher) = watched(&world).await;
    let redis = world.server();
    redis.cli(&["HSET", KEY, "a", "1"]);
    let mut milliseconds = 3_600_000;
    eventually("the watcher is told", async || {
        milliseconds += 1000;
        redis.cli(&["PEXPIRE", KEY, &milliseconds.to_string()]);
        set_last(&gateway, &mut watcher, &milliseconds.to_string()).await;
        watcher.fields().unwrap().contains_key("a").then_some(())
    })
    .await;
}

/// Waits until a watcher is told what another client has changed. A comparison takes so long here that the next one would be
/// minutes later. So others begin to watch, which is a comparison too.
async fn until_compared(gateway: &Gateway, told: impl Future<Output = ()>) {
    let others = async {
        loop {
            let mut other = Watcher::new("shared");
            other.open(&gateway.url).await;
            other.told().await;
        }
    };
    tokio::select! {
        () = told => {}
        () = others => {}
    }
}

#[tokio::test]
async fn p9_the_largest_hash_is_watched_changed_and_deleted_without_blocking_redis() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    let redis = world.server();
    // With the last one, it has as many as a hash can have.
    fill(redis, MOST_FIELDS - 1);
    let all = stored_fields(&gateway.url, "shared").await;
    assert_eq!(all.len(), MOST_FIELDS - 1);
    watch_for_slow_commands(redis);
    let mut watcher = Watcher::new("shared");
    watcher.open(&gateway.url).await;
    watcher.until(&all).await;
    set_last(&gateway, &mut watcher, "1").await;
    // Most of the fields at once, by another client.
    redis.cli(&["UNLINK", KEY]);
    until_compared(&gateway, watcher.until(&Fields::new())).await;
    let slow = redis.cli(&["SLOWLOG", "GET", "10"]);
    assert_eq!(slow, "", "these commands took too long");
    fill(redis, 20_000);
    redis.cli(&["SLOWLOG", "RESET"]);
    let filled = stored_fields(&gateway.url, "shared").await;
    until_compared(&gateway, watcher.until(&filled)).await;
    let deletes = watcher.told.iter().filter(|told| matches!(told, Told::Delete { .. })).count();
    assert_eq!(deletes, 0, "the fields of a hash that is gone are not told one by one");
    assert_eq!(gateway.send(gateway.request(Method::DELETE, HASH)).await.0, 204);
    watcher.until(&Fields::new()).await;
    let slow = redis.cli(&["SLOWLOG", "GET", "10"]);
    assert_eq!(slow, "", "these commands took too long");
}

#[tokio::test]
async fn p9_a_hash_that_grows_too_large_ends_its_streams() {
    let world = World::redis().await;
    let (_gateway, mut watcher) = watched(&world).await;
    fill(world.server(), MOST_FIELDS + 1);
    within("the stream ends", async {
        while let Some(event) = watcher.next().await {
            if event.event == "stream.end" {
                assert_eq!(event.json(), json!({"reason": "hash_too_large", "reconnect": "never"}));
            }
        }
    })
    .await;
}

/// Opens a thousand streams at one time, and waits until each has its snapshot.
async fn crowd(client: &Client, url: &str, last_event_id: Option<&str>) {
    let watch = async || {
        let mut request = client.get(format!("{url}{HASH}/stream"));
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        loop {
            let mut response = request.try_clone().unwrap().send().await.unwrap();
            let mut source = EventSource::default();
            while let Some(bytes) = response.chunk().await.unwrap() {
                if source.feed(&bytes).iter().any(|event| event.event == "hash.snapshot") {
                    return response;
                }
            }
            // A stream that had to wait too long for its turn is opened again.
        }
    };
    within("all have a snapshot", join_all((0..CROWD).map(|_| watch()))).await;
}

#[tokio::test]
async fn p9_a_thousand_watchers_that_come_together_cost_few_reads() {
    let world = World::redis().await;
    let (first, mut watcher) = watched(&world).await;
    let redis = world.server();
    set_last(&first, &mut watcher, "1").await;
    let whole = watcher.last_event_id.clone().unwrap();
    let other = world.gateway().await;
    let client = Client::new();
    let epoch: u64 = whole.split('-').next().unwrap().parse().unwrap();
    let mut reads = BTreeMap::new();
    for (which, id) in [
        ("fresh", None),
        ("from another replica", Some(whole.clone())),
        ("with an unfinished snapshot", Some(whole.split('~').next().unwrap().to_owned() + "!")),
        ("after a position that is lost", Some(format!("1-1~{}", whole.split('~').next_back().unwrap()))),
        ("with a position that is far ahead", Some(format!("{}-1!", epoch + 1_000_000_000))),
    ] {
        let before = calls(redis, "hscan");
        crowd(&client, &other.url, id.as_deref()).await;
        reads.insert(which, calls(redis, "hscan") - before);
    }
    println!("{reads:?}");
    assert!(reads.values().all(|reads| *reads <= CROWD / 20), "{reads:?}");
}
