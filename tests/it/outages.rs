//! Faults of Redis: each is reported by name, requests are answered in time, and the gateway recovers by itself once
//! the cause is gone.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Gateway, RedisServer, Replica, Stream, World, eventually, number_from, spawn, within};

/// Rooms in the test with many rooms, and rooms of each of its streams. `ROOMCAST_ROOMS` sets another number of rooms, a
/// multiple of the latter: `tests/long rooms` has ten thousand.
const ROOMS: u64 = 2_000;
const ROOMS_PER_STREAM: usize = 100;

/// A gateway with a stream that stays open before, during and after the fault.
struct Scenario {
    world: World,
    gateway: Gateway,
    stream: Stream,
    published: usize,
}

impl Scenario {
    async fn new(redis: RedisServer) -> Self {
        let world = World { redis: Some(redis), ..World::embedded() };
        let gateway = world.gateway().await;
        let stream = gateway.room("lobby").await;
        let mut scenario = Self { world, gateway, stream, published: 0 };
        scenario.check_delivery().await;
        scenario
    }

    fn redis(&mut self) -> &mut RedisServer {
        self.world.redis.as_mut().unwrap()
    }

    async fn publish(&self, data: &str) -> (StatusCode, bool, Value) {
        let request = self.gateway.request(Method::POST, "/v1/rooms/lobby/events").body(data.to_owned());
        let answer = self.gateway.answer(request).await;
        let (status, retry) = (answer.status(), answer.headers().contains_key("retry-after"));
        (status, retry, answer.json().await.unwrap())
    }

    /// An event that is published now is the next on the stream: none is missing and none comes twice.
    async fn check_delivery(&mut self) {
        let data = format!("event {}", self.published);
        self.published += 1;
        self.gateway.publish("lobby", &data).await;
        assert_eq!(self.stream.data().await, data);
    }

    /// `/healthz` names the fault, a publish is refused with its code, and the replica stays ready.
    async fn check_fault(&self, part: &str, fault: &str, code: &str) {
        eventually(&format!("/healthz says {fault}"), async || {
            let (status, health) = self.gateway.get("/healthz").await;
            (status == 503 && health[part] == fault).then_some(())
        })
        .await;
        let (status, retry, problem) = self.publish("refused").await;
        assert_eq!((status.as_u16(), &problem["code"], retry), (503, &json!(code), true), "{problem}");
        assert_eq!(self.gateway.get("/readyz").await.0, StatusCode::OK);
    }

    /// Stored events can be read, and streams open and resume, while nothing can be written.
    async fn check_reads(&self) {
        let (status, page) = self.gateway.get("/v1/rooms/lobby/events").await;
        let events: Vec<_> = page["events"].as_array().unwrap().iter().map(|event| event["data"].clone()).collect();
        assert_eq!((status.as_u16(), events.len()), (200, self.published), "{page}");
        let first = page["events"][0]["id"].as_str().unwrap();
        let mut resumed = self.gateway.resume("/v1/rooms/lobby/stream", Some(first)).await;
        assert_eq!(resumed.opened["rooms"]["lobby"]["resume"], "complete");
        for data in &events[1..] {
            assert_eq!(&json!(resumed.data().await), data);
        }
    }

    async fn check_recovery(mut self) {
        self.gateway.until_well().await;
        self.check_delivery().await;
        self.check_delivery().await;
    }
}

fn cli(port: u16) -> Command {
    let mut command = Command::new("redis-cli");
    command.args(["-p", &port.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Kills a process when it is dropped, so that a failed test leaves none behind.
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn p8_a_redis_that_is_loading_its_data_is_reported_and_recovers() {
    // Redis loads a key and answers commands every tenth of a second, until the delay is set to 0.
    let slowly = ["--key-load-delay", "100000", "--loading-process-events-interval-bytes", "1024"];
    let redis = RedisServer::start_with(&[&["--save", ""][..], &slowly].concat()).await;
    let mut scenario = Scenario::new(redis).await;
    let fill = "for n = 1, 500 do redis.call('SET', 'filler' .. n, string.rep('x', 2000)) end";
    scenario.redis().cli(&["EVAL", fill, "0"]);
    scenario.redis().cli(&["SAVE"]);
    scenario.redis().kill();
    let mut redis = scenario.world.redis.take().unwrap();
    let port = redis.port();
    let back = async {
        redis.come_back().await;
        redis
    };
    let while_loading = async {
        scenario.check_fault("commands", "loading", "unavailable").await;
        let refused = scenario.gateway.room("lobby").await;
        assert_eq!(
            (&refused.opened["reason"], &refused.opened["reconnect"]),
            (&"unavailable".into(), &"later".into())
        );
        assert!(cli(port).args(["CONFIG", "SET", "key-load-delay", "0"]).status().unwrap().success());
    };
    let (redis, ()) = tokio::join!(back, while_loading);
    scenario.world.redis = Some(redis);
    scenario.check_recovery().await;
}

#[tokio::test]
async fn p8_a_redis_that_can_not_save_is_reported_and_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let (kept, gone) = (folder.path().to_str().unwrap(), folder.path().join("gone"));
    std::fs::create_dir(&gone).unwrap();
    let redis = RedisServer::start_with(&["--enable-protected-configs", "yes", "--save", "3600 1000000"]).await;
    let mut scenario = Scenario::new(redis).await;
    scenario.redis().cli(&["CONFIG", "SET", "dir", gone.to_str().unwrap()]);
    std::fs::remove_dir(&gone).unwrap();
    scenario.redis().cli(&["BGSAVE"]);
    scenario.check_fault("commands", "misconfigured", "misconfigured").await;
    scenario.redis().cli(&["CONFIG", "SET", "dir", kept]);
    scenario.redis().cli(&["BGSAVE"]);
    scenario.check_recovery().await;
}

#[tokio::test]
async fn p8_a_redis_that_is_busy_with_a_script_is_reported_and_recovers() {
    let redis = RedisServer::start_with(&["--save", "", "--busy-reply-threshold", "100"]).await;
    let mut scenario = Scenario::new(redis).await;
    let port = scenario.redis().port();
    let _script = KillOnDrop(cli(port).args(["EVAL", "while true do end", "0"]).spawn().unwrap());
    scenario.check_fault("commands", "busy", "busy").await;
    scenario.redis().cli(&["SCRIPT", "KILL"]);
    scenario.check_recovery().await;
}

#[tokio::test]
async fn p8_a_redis_without_memory_replicas_or_a_master_is_reported_and_recovers() {
    let redis = RedisServer::start_with(&["--save", ""]).await;
    let mut scenario = Scenario::new(redis).await;
    scenario.gateway.publish("full", "x").await;
    let faults = [
        (["CONFIG", "SET", "maxmemory", "1"], ["CONFIG", "SET", "maxmemory", "0"], "out_of_memory"),
        (
            ["CONFIG", "SET", "min-replicas-to-write", "1"],
            ["CONFIG", "SET", "min-replicas-to-write", "0"],
            "no_replicas",
        ),
    ];
    for (bad, good, fault) in faults {
        scenario.redis().cli(&bad);
        scenario.check_fault("commands", fault, fault).await;
        scenario.check_reads().await;
        let empty = scenario.gateway.request(Method::DELETE, "/v1/rooms/full/events");
        let (status, answer) = scenario.gateway.send(empty).await;
        if fault == "out_of_memory" {
            // Redis runs a command that frees memory.
            assert_eq!(status, 204, "{answer}");
            assert_eq!(scenario.gateway.get("/v1/rooms/full").await.1["retained"], 0);
        } else {
            assert_eq!((status.as_u16(), &answer["code"]), (503, &json!(fault)));
        }
        scenario.redis().cli(&good);
        scenario.gateway.until_well().await;
        scenario.check_delivery().await;
    }
    scenario.redis().cli(&["REPLICAOF", "127.0.0.1", "1"]);
    scenario.check_fault("commands", "read_only", "read_only").await;
    scenario.redis().cli(&["REPLICAOF", "NO", "ONE"]);
    scenario.check_recovery().await;
}

#[tokio::test]
async fn p8_replicas_and_rooms_are_listed_while_redis_has_no_memory() {
    let world = World { redis: Some(RedisServer::start().await), ..World::embedded() };
    let gateway = world.gateway_with(|settings| settings.presence.replica_lease = Duration::from_secs(1)).await;
    let _stream = gateway.room("lobby").await;
    let listed = async || {
        let (_, answer) = gateway.get("/v1/replicas").await;
        answer["replicas"][0]["reported_at"].as_str().map(str::to_owned)
    };
    eventually("the room is listed", async || {
        (gateway.get("/v1/rooms").await.1["rooms"][0]["subscribers"] == 1).then_some(())
    })
    .await;
    world.redis.as_ref().unwrap().cli(&["CONFIG", "SET", "maxmemory", "1"]);
    // Three in a lease.
    let mut reports = BTreeSet::new();
    eventually("further reports arrive", async || {
        reports.insert(listed().await.expect("the replica stays listed"));
        (reports.len() > 9).then_some(())
    })
    .await;
    assert_eq!(gateway.get("/v1/rooms").await.1["rooms"][0]["subscribers"], 1);
}

/// While Redis hangs or is away, the replica stays ready, each publish is answered, and each new stream is refused.
#[tokio::test]
async fn p8_during_an_outage_requests_are_answered_and_the_replica_stays_ready() {
    let redis = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let mut scenario = Scenario::new(redis).await;
    for hangs in [true, false] {
        if hangs {
            scenario.redis().freeze();
        } else {
            scenario.redis().kill();
        }
        eventually("the gateway is degraded", async || {
            (scenario.gateway.get("/healthz").await.0 == 503).then_some(())
        })
        .await;
        let publish = async {
            let (status, retry, problem) = scenario.publish("lost").await;
            assert_eq!((status.as_u16(), retry), (503, true), "{problem}");
            let codes = [json!("unavailable"), json!("outcome_unknown")];
            assert!(codes[..if hangs { 2 } else { 1 }].contains(&problem["code"]), "{problem}");
        };
        let join = async {
            let refused = scenario.gateway.resume("/v1/rooms/lobby/stream", Some("7-7")).await;
            assert_eq!(refused.opened, json!({"reason": "unavailable", "reconnect": "later"}));
            assert_eq!(refused.last_event_id, "7-7");
        };
        let ready = async {
            for path in ["/readyz", "/livez"] {
                assert_eq!(scenario.gateway.get(path).await.0, StatusCode::OK, "{path}");
            }
        };
        tokio::join!(publish, join, ready, async {
            let (status, _) = scenario.gateway.get("/v1/rooms/lobby/events").await;
            assert_eq!(status, 503);
        });
        if hangs {
            scenario.redis().thaw();
        } else {
            scenario.redis().come_back().await;
        }
        scenario.gateway.until_well().await;
        // A hung Redis runs the commands that it had received when it goes on.
        scenario.gateway.publish("lobby", "back").await;
        while scenario.stream.data().await != "back" {}
    }
    scenario.check_recovery().await;
}

/// A replica that reads thousands of rooms receives events in all of them after a restart of Redis.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_thousands_of_rooms_are_back_after_redis_has_returned() {
    let redis = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "no"]).await;
    let mut world = World { redis: Some(redis), ..World::embedded() };
    let gateway = world.gateway_with(|settings| settings.streams.max_rooms_per_stream = 100).await;
    let count = number_from("ROOMCAST_ROOMS").unwrap_or(ROOMS);
    let rooms: Vec<String> = (0..count).map(|n| format!("r{n}")).collect();
    let mut streams = Vec::new();
    for rooms in rooms.chunks(ROOMS_PER_STREAM) {
        streams.push(gateway.stream(&format!("/v1/stream?room={}", rooms.join("&room="))).await);
    }
    // SHUTDOWN writes the data, so that all of it comes back.
    let redis = world.redis.as_mut().unwrap();
    redis.cli(&["SHUTDOWN"]);
    redis.kill();
    eventually("the gateway is degraded", async || (gateway.get("/healthz").await.0 == 503).then_some(())).await;
    redis.come_back().await;
    let back = std::time::Instant::now();
    let elsewhere = world.gateway().await;
    let well_elsewhere = back.elapsed();
    for (number, rooms) in rooms.chunks(200).enumerate() {
        let events: Vec<_> = rooms.iter().map(|room| json!({"room": room, "data": room})).collect();
        let batch = json!({"events": events});
        // While thousands of rooms are read, an append may not be answered in time. Clients then repeat it with its
        // key.
        let stored = async || {
            let request =
                elsewhere.request(Method::POST, "/v1/events").header("idempotency-key", format!("{number}"));
            let (status, answer) = elsewhere.send(request.json(&batch)).await;
            let problems =
                answer["results"].as_array().unwrap().iter().filter_map(|result| result["problem"].as_object());
            for problem in problems {
                assert!(problem["code"] == "outcome_unknown" || problem["code"] == "unavailable", "{problem:?}");
            }
            (status == 200).then_some(())
        };
        eventually("a batch is stored", stored).await;
    }
    let published = back.elapsed();
    let readers = streams.into_iter().map(|mut stream| {
        spawn(async move {
            let mut received = Vec::new();
            for _ in 0..ROOMS_PER_STREAM {
                let event = stream.event().await;
                assert_eq!(event.event, "message", "{event:?}");
                received.push(event.json()["room"].as_str().unwrap().to_owned());
            }
            received
        })
    });
    let mut received = Vec::new();
    for reader in readers.collect::<Vec<_>>() {
        // Each event has a deadline of its own.
        received.extend(reader.await.unwrap());
    }
    println!(
        "after Redis's return: another replica well {well_elsewhere:?}, published {published:?}, \
         received in all {count} rooms {:?}",
        back.elapsed()
    );
    received.sort();
    let mut expected = rooms;
    expected.sort();
    assert_eq!(received, expected);
    gateway.until_well().await;
}

/// The embedded broker reports its memory limit as Redis does. Readers alone can't bring it to the limit.
#[tokio::test]
async fn p8_an_embedded_broker_without_memory_is_reported_and_recovers() {
    for world in [World::embedded(), World::durable()] {
        let gateway = world.gateway_with(|settings| settings.embedded.max_bytes = 64 * 1024).await;
        let stream = gateway.room("lobby").await;
        for n in 0..1000 {
            let (status, answer) = gateway.get(&format!("/v1/rooms/unused.{n}")).await;
            let refused = status == 503 && answer["code"] == "out_of_memory";
            assert!(status == 200 || refused && n > 10, "{n}: {answer}");
        }
        let mut scenario = Scenario { stream, world, gateway, published: 0 };
        scenario.check_delivery().await;
        let mut full = 0;
        while scenario.gateway.post("/v1/rooms/full/events", &json!({"data": "x".repeat(2000)})).await.0 == 201 {
            full += 1;
        }
        assert!((10..30).contains(&full), "{full}");
        while scenario.gateway.post("/v1/rooms/full/events", &json!({"data": ""})).await.0 == 201 {}
        scenario.check_fault("commands", "out_of_memory", "out_of_memory").await;
        scenario.check_reads().await;
        let emptied = scenario.gateway.request(Method::DELETE, "/v1/rooms/full/events");
        assert_eq!(scenario.gateway.send(emptied).await.0, 204);
        scenario.check_recovery().await;
    }
}

/// Publishers that go on while Redis hangs, and then is away, take no memory: no queue is without a limit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_publishers_during_an_outage_take_no_memory() {
    const PUBLISHERS: usize = 100;
    const MOST_MIB: u64 = 48;
    let mut redis = RedisServer::start().await;
    let replica = Replica::start(&redis.url(), &[]);
    replica.until(200).await;
    let before = replica.resident_kib();
    redis.freeze();
    replica.until(503).await;
    let body = "x".repeat(60_000);
    for away in [false, true] {
        if away {
            redis.thaw();
            redis.kill();
        }
        let publishers = (0..PUBLISHERS).map(|n| {
            let (url, body) = (format!("{}/v1/rooms/r{n}/events", replica.url()), body.clone());
            spawn(async move {
                let client = reqwest::Client::new();
                for _ in 0..5 {
                    let answer = within("an answer", client.post(&url).body(body.clone()).send()).await.unwrap();
                    assert_eq!(answer.status(), 503);
                }
            })
        });
        for publisher in publishers.collect::<Vec<_>>() {
            publisher.await.unwrap();
        }
    }
    let after = replica.resident_kib();
    println!("{before} KiB before, {after} KiB after {} refused publishes", 2 * 5 * PUBLISHERS);
    // Memory holds the bodies of requests that wait, and none of requests that were answered.
    assert!(after < before + MOST_MIB * 1024, "{before} {after}");
}
