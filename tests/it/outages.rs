//! Redis in every kind of trouble: it is named, answered for in time, and everything heals by itself once the cause is gone.

use std::process::{Child, Command, Stdio};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Gateway, RedisServer, Stream, World, eventually, spawn, within};

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
    let gateway = world.gateway_with(|settings| settings.max_rooms_per_stream = 100).await;
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
    for rooms in rooms.chunks(1000) {
        let events: Vec<_> = rooms.iter().map(|room| json!({"room": room, "data": room})).collect();
        let (status, answer) = elsewhere.post("/v1/events", &json!({"events": events})).await;
        assert_eq!(status, 200, "{answer}");
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
