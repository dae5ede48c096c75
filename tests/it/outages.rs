//! Redis in every kind of trouble: it is named, answered for in time, and everything heals by itself once the cause is gone.

use std::process::{Child, Command, Stdio};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Gateway, RedisServer, Replica, Stream, World, eventually, spawn, within};

/// Rooms of the test with many, and how many one stream reads.
const ROOMS: usize = 10_000;
const ROOMS_OF_A_STREAM: usize = 100;

/// A gateway with a stream that is open before, during and after the trouble.
struct Patient {
    world: World,
    gateway: Gateway,
    stream: Stream,
    published: usize,
}

impl Patient {
    async fn on(redis: RedisServer) -> Self {
        let world = World { redis: Some(redis), ..World::embedded() };
        let gateway = world.gateway().await;
        let stream = gateway.room("patient").await;
        let mut patient = Self { world, gateway, stream, published: 0 };
        patient.delivers().await;
        patient
    }

    fn redis(&mut self) -> &mut RedisServer {
        self.world.redis.as_mut().unwrap()
    }

    async fn publish(&self, data: &str) -> (StatusCode, bool, Value) {
        let request = self.gateway.request(Method::POST, "/v1/rooms/patient/events").body(data.to_owned());
        let answer = self.gateway.answer(request).await;
        let (status, retry) = (answer.status(), answer.headers().contains_key("retry-after"));
        (status, retry, answer.json().await.unwrap())
    }

    /// What is published now is stored, and reaches the stream, with nothing missed and nothing twice.
    async fn delivers(&mut self) {
        let data = format!("event {}", self.published);
        self.published += 1;
        self.gateway.publish("patient", &data).await;
        assert_eq!(self.stream.data().await, data);
    }

    /// The monitor names the fault, a publish is refused with its code, and the replica stays ready.
    async fn is_ill(&self, part: &str, fault: &str, code: &str) {
        eventually(&format!("the monitor says {fault}"), async || {
            let (status, health) = self.gateway.get("/healthz").await;
            (status == 503 && health[part] == fault).then_some(())
        })
        .await;
        let (status, retry, problem) = self.publish("refused").await;
        assert_eq!((status.as_u16(), &problem["code"], retry), (503, &json!(code), true), "{problem}");
        assert_eq!(self.gateway.get("/readyz").await.0, StatusCode::OK);
    }

    /// What is there can be read, and streams open and resume, though nothing can be written.
    async fn reads(&self) {
        let (status, page) = self.gateway.get("/v1/rooms/patient/events").await;
        let events: Vec<_> = page["events"].as_array().unwrap().iter().map(|event| event["data"].clone()).collect();
        assert_eq!((status.as_u16(), events.len()), (200, self.published), "{page}");
        let first = page["events"][0]["id"].as_str().unwrap();
        let mut resumed = self.gateway.resume("/v1/rooms/patient/stream", Some(first)).await;
        assert_eq!(resumed.opened["rooms"]["patient"]["resume"], "complete");
        for data in &events[1..] {
            assert_eq!(&json!(resumed.data().await), data);
        }
    }

    async fn heals(mut self) {
        self.gateway.until_well().await;
        self.delivers().await;
        self.delivers().await;
    }
}

fn cli(port: u16) -> Command {
    let mut command = Command::new("redis-cli");
    command.args(["-p", &port.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Ends a process that a failed test would leave behind.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn p8_a_redis_that_is_loading_its_data_is_named_and_heals() {
    // Loads a key, and looks whether someone wants something, each tenth of a second: until it is told to hurry.
    let slowly = ["--key-load-delay", "100000", "--loading-process-events-interval-bytes", "1024"];
    let redis = RedisServer::start_with(&[&["--save", ""][..], &slowly].concat()).await;
    let mut patient = Patient::on(redis).await;
    let fill = "for n = 1, 500 do redis.call('SET', 'filler' .. n, string.rep('x', 2000)) end";
    patient.redis().cli(&["EVAL", fill, "0"]);
    patient.redis().cli(&["SAVE"]);
    patient.redis().kill();
    let mut redis = patient.world.redis.take().unwrap();
    let port = redis.port();
    let back = async {
        redis.come_back().await;
        redis
    };
    let meanwhile = async {
        patient.is_ill("commands", "loading", "unavailable").await;
        let refused = patient.gateway.room("patient").await;
        assert_eq!(
            (&refused.opened["reason"], &refused.opened["reconnect"]),
            (&"unavailable".into(), &"later".into())
        );
        assert!(cli(port).args(["CONFIG", "SET", "key-load-delay", "0"]).status().unwrap().success());
    };
    let (redis, ()) = tokio::join!(back, meanwhile);
    patient.world.redis = Some(redis);
    patient.heals().await;
}

#[tokio::test]
async fn p8_a_redis_that_can_not_save_is_named_and_heals() {
    let folder = tempfile::tempdir().unwrap();
    let (kept, gone) = (folder.path().to_str().unwrap(), folder.path().join("gone"));
    std::fs::create_dir(&gone).unwrap();
    let redis = RedisServer::start_with(&["--enable-protected-configs", "yes", "--save", "3600 1000000"]).await;
    let mut patient = Patient::on(redis).await;
    patient.redis().cli(&["CONFIG", "SET", "dir", gone.to_str().unwrap()]);
    std::fs::remove_dir(&gone).unwrap();
    patient.redis().cli(&["BGSAVE"]);
    patient.is_ill("commands", "misconfigured", "misconfigured").await;
    patient.redis().cli(&["CONFIG", "SET", "dir", kept]);
    patient.redis().cli(&["BGSAVE"]);
    patient.heals().await;
}

#[tokio::test]
async fn p8_a_redis_that_is_busy_with_a_script_is_named_and_heals() {
    let redis = RedisServer::start_with(&["--save", "", "--busy-reply-threshold", "100"]).await;
    let mut patient = Patient::on(redis).await;
    let port = patient.redis().port();
    let _script = Ends(cli(port).args(["EVAL", "while true do end", "0"]).spawn().unwrap());
    patient.is_ill("commands", "busy", "busy").await;
    patient.redis().cli(&["SCRIPT", "KILL"]);
    patient.heals().await;
}

#[tokio::test]
async fn p8_a_redis_without_memory_replicas_or_a_master_is_named_and_heals() {
    let redis = RedisServer::start_with(&["--save", ""]).await;
    let mut patient = Patient::on(redis).await;
    patient.gateway.publish("full", "x").await;
    let faults = [
        (["CONFIG", "SET", "maxmemory", "1"], ["CONFIG", "SET", "maxmemory", "0"], "out_of_memory"),
        (
            ["CONFIG", "SET", "min-replicas-to-write", "1"],
            ["CONFIG", "SET", "min-replicas-to-write", "0"],
            "no_replicas",
        ),
    ];
    for (ill, well, fault) in faults {
        patient.redis().cli(&ill);
        patient.is_ill("commands", fault, fault).await;
        patient.reads().await;
        let empty = patient.gateway.request(Method::DELETE, "/v1/rooms/full/events");
        let (status, answer) = patient.gateway.send(empty).await;
        if fault == "out_of_memory" {
            // What frees memory is done.
            assert_eq!(status, 204, "{answer}");
            assert_eq!(patient.gateway.get("/v1/rooms/full").await.1["retained"], 0);
        } else {
            assert_eq!((status.as_u16(), &answer["code"]), (503, &json!(fault)));
        }
        patient.redis().cli(&well);
        patient.gateway.until_well().await;
        patient.delivers().await;
    }
    patient.redis().cli(&["REPLICAOF", "127.0.0.1", "1"]);
    patient.is_ill("commands", "read_only", "read_only").await;
    patient.redis().cli(&["REPLICAOF", "NO", "ONE"]);
    patient.heals().await;
}

/// Away or hanging: the replica stays ready, each publish gets its answer, and each new stream its refusal.
#[tokio::test]
async fn p8_throughout_an_outage_everyone_is_answered_and_the_replica_stays_ready() {
    let redis = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let mut patient = Patient::on(redis).await;
    for hangs in [true, false] {
        if hangs {
            patient.redis().freeze();
        } else {
            patient.redis().kill();
        }
        eventually("the monitor is told", async || (patient.gateway.get("/healthz").await.0 == 503).then_some(()))
            .await;
        let publish = async {
            let (status, retry, problem) = patient.publish("lost").await;
            assert_eq!((status.as_u16(), retry), (503, true), "{problem}");
            let surely_not = [json!("unavailable"), json!("outcome_unknown")];
            assert!(surely_not[..if hangs { 2 } else { 1 }].contains(&problem["code"]), "{problem}");
        };
        let join = async {
            let refused = patient.gateway.resume("/v1/rooms/patient/stream", Some("7-7")).await;
            assert_eq!(refused.opened, json!({"reason": "unavailable", "reconnect": "later"}));
            assert_eq!(refused.last_event_id, "7-7");
        };
        let ready = async {
            for path in ["/readyz", "/livez"] {
                assert_eq!(patient.gateway.get(path).await.0, StatusCode::OK, "{path}");
            }
        };
        tokio::join!(publish, join, ready, async {
            let (status, _) = patient.gateway.get("/v1/rooms/patient/events").await;
            assert_eq!(status, 503);
        });
        if hangs {
            patient.redis().thaw();
        } else {
            patient.redis().come_back().await;
        }
        patient.gateway.until_well().await;
        // What a hanging Redis had taken is done when it goes on.
        patient.gateway.publish("patient", "back").await;
        while patient.stream.data().await != "back" {}
    }
    patient.heals().await;
}

/// One replica that holds ten thousand rooms has them all back after a restart of Redis.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_ten_thousand_rooms_are_back_after_redis_has_returned() {
    let redis = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "no"]).await;
    let mut world = World { redis: Some(redis), ..World::embedded() };
    let gateway = world.gateway_with(|settings| settings.streams.max_rooms_per_stream = 100).await;
    let rooms: Vec<String> = (0..ROOMS).map(|n| format!("r{n}")).collect();
    let mut streams = Vec::new();
    for rooms in rooms.chunks(ROOMS_OF_A_STREAM) {
        streams.push(gateway.stream(&format!("/v1/stream?room={}", rooms.join("&room="))).await);
    }
    // A snapshot too, so that everything comes back as it was.
    let redis = world.redis.as_mut().unwrap();
    redis.cli(&["SHUTDOWN"]);
    redis.kill();
    eventually("the monitor is told", async || (gateway.get("/healthz").await.0 == 503).then_some(())).await;
    redis.come_back().await;
    let back = std::time::Instant::now();
    let elsewhere = world.gateway().await;
    let well_elsewhere = back.elapsed();
    for (number, rooms) in rooms.chunks(1000).enumerate() {
        let events: Vec<_> = rooms.iter().map(|room| json!({"room": room, "data": room})).collect();
        let batch = json!({"events": events});
        // While ten thousand rooms are read, an append may not be answered in time. A client sends it again, with its key.
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
            let mut heard = Vec::new();
            for _ in 0..ROOMS_OF_A_STREAM {
                let event = stream.event().await;
                assert_eq!(event.event, "message", "{event:?}");
                heard.push(event.json()["room"].as_str().unwrap().to_owned());
            }
            heard
        })
    });
    let mut heard = Vec::new();
    for reader in readers.collect::<Vec<_>>() {
        heard.extend(within("every room's event", reader).await.unwrap());
    }
    println!(
        "after Redis's return: another replica well {well_elsewhere:?}, published {published:?}, heard in all {ROOMS} rooms {:?}",
        back.elapsed()
    );
    heard.sort();
    let mut expected = rooms;
    expected.sort();
    assert_eq!(heard, expected);
    gateway.until_well().await;
}

/// The embedded broker at its limit is ill as Redis is, and readers alone can't bring it there.
#[tokio::test]
async fn p8_an_embedded_broker_without_memory_is_named_and_heals() {
    for world in [World::embedded(), World::durable()] {
        let gateway = world.gateway_with(|settings| settings.embedded.max_bytes = 64 * 1024).await;
        let stream = gateway.room("patient").await;
        for n in 0..1000 {
            let (status, answer) = gateway.get(&format!("/v1/rooms/unused.{n}")).await;
            let refused = status == 503 && answer["code"] == "out_of_memory";
            assert!(status == 200 || refused && n > 10, "{n}: {answer}");
        }
        let mut patient = Patient { stream, world, gateway, published: 0 };
        patient.delivers().await;
        let mut full = 0;
        while patient.gateway.post("/v1/rooms/full/events", &json!({"data": "x".repeat(2000)})).await.0 == 201 {
            full += 1;
        }
        assert!((10..30).contains(&full), "{full}");
        while patient.gateway.post("/v1/rooms/full/events", &json!({"data": ""})).await.0 == 201 {}
        patient.is_ill("commands", "out_of_memory", "out_of_memory").await;
        patient.reads().await;
        let emptied = patient.gateway.request(Method::DELETE, "/v1/rooms/full/events");
        assert_eq!(patient.gateway.send(emptied).await.0, 204);
        patient.heals().await;
    }
}

/// Publishers that don't let up while Redis hangs, and then is away, take no memory: nothing is queued without bound.
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
    // The bodies of those that are being answered, and not of those that were.
    assert!(after < before + MOST_MIB * 1024, "{before} {after}");
}
