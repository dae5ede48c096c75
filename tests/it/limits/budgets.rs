//! Budgets: a small request moves a bounded number of bytes, also between the gateway and Redis.

use std::collections::BTreeSet;
use std::time::Instant;

use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::auth::{SECRET, at, claims, close, token};
use crate::support::{Gateway, Replica, Stream, World};

/// The size of a large value; the largest that is allowed by default.
const VALUE_BYTES: usize = 256 * 1024;
/// What a list of fields may have, with the values that Redis keeps in one place of its table.
const LIST_BYTES: usize = 1024 * 1024 + 8 * VALUE_BYTES;

/// What Redis has sent since its start.
fn sent_bytes(world: &World) -> usize {
    let info = world.redis.as_ref().map(|redis| redis.cli(&["INFO", "stats"])).unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("total_net_output_bytes:"));
    line.map_or(0, |bytes| bytes.trim().parse().unwrap())
}

/// Sets large fields, named a000 and so on.
async fn set_fields(gateway: &Gateway, hash: &str, count: usize) {
    for n in 0..count {
        let path = format!("/v1/hashes/{hash}/fields/a{n:03}");
        let request = gateway.request(Method::PUT, &path).body("x".repeat(VALUE_BYTES));
        assert_eq!(gateway.send(request).await.0, 201);
    }
}

/// Reads a list of fields to its end. Returns the names of each page.
async fn pages(gateway: &Gateway, path: &str) -> Vec<BTreeSet<String>> {
    let (mut pages, mut after) = (Vec::new(), String::new());
    loop {
        let answer = gateway.answer(gateway.request(Method::GET, &format!("{path}{after}"))).await;
        assert_eq!(answer.status(), 200);
        let body = answer.bytes().await.unwrap();
        assert!(body.len() < LIST_BYTES, "{} bytes in one answer", body.len());
        let list: Value = serde_json::from_slice(&body).unwrap();
        pages.push(list["fields"].as_object().unwrap().keys().cloned().collect());
        match list["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return pages,
        }
    }
}

on_both_brokers! {
    async fn p11_a_field_that_is_selected_many_times_is_read_once(world) {
        let gateway = world.gateway().await;
        set_fields(&gateway, "m", 1).await;
        let before = sent_bytes(&world);
        let (status, list) = gateway.get(&format!("/v1/hashes/m?field=a000{}", "&field=a000".repeat(999))).await;
        assert_eq!((status.as_u16(), list["fields"].as_object().unwrap().len()), (200, 1));
        assert!(sent_bytes(&world) - before < 2 * VALUE_BYTES, "Redis sent {} bytes", sent_bytes(&world) - before);
    }

    async fn p11_lists_of_large_fields_have_many_pages(world) {
        let gateway = world.gateway().await;
        set_fields(&gateway, "m", 40).await;
        let expected: BTreeSet<_> = (0..40).map(|n| format!("a{n:03}")).collect();
        let selection: Vec<_> = expected.iter().map(|name| format!("field={name}")).collect();
        for path in [format!("/v1/hashes/m?{}", selection.join("&")), "/v1/hashes/m?limit=10000".to_owned()] {
            let before = sent_bytes(&world);
            let pages = pages(&gateway, &path).await;
            let found: BTreeSet<_> = pages.iter().flatten().cloned().collect();
            assert_eq!(found, expected, "{path}");
            let average = (sent_bytes(&world) - before) / pages.len();
            assert!(average < LIST_BYTES, "Redis sent {average} bytes for a page of {path}");
        }
    }

    async fn small_fields_are_still_listed_on_one_page(world) {
        let gateway = world.gateway().await;
        for n in 0..3 {
            let fields: serde_json::Map<_, _> = (0..300).map(|m| (format!("f{n}-{m}"), json!("x"))).collect();
            assert_eq!(gateway.send(gateway.request(Method::PATCH, "/v1/hashes/m").json(&fields)).await.0, 200);
        }
        let pages = pages(&gateway, "/v1/hashes/m?limit=10000").await;
        assert_eq!((pages.len(), pages[0].len()), (1, 900));
    }

    async fn p11_data_that_grows_in_a_stream_is_refused_by_what_it_takes_there(world) {
        let gateway = world.gateway().await;
        let publish = |body: String| gateway.request(Method::POST, "/v1/rooms/lobby/events").body(body);
        for (body, expected) in [
            ("\n".repeat(60_000), 413),
            ("\r".repeat(60_000), 413),
            ("\u{1}".repeat(60_000), 413),
            ("\"".repeat(60_000), 201),
            ("a line of text\n".repeat(4_000), 201),
        ] {
            let (status, problem) = gateway.send(publish(body)).await;
            assert_eq!(status.as_u16(), expected, "{problem}");
        }
        let json = format!("{{\"data\":[{}1]}}", "\n".repeat(60_000));
        let request = gateway.request(Method::POST, "/v1/rooms/lobby/events").header("content-type", "application/json");
        assert_eq!(gateway.send(request.body(json)).await.0, 413);
    }

    async fn p11_a_refused_condition_moves_no_value_for_a_caller_that_may_not_read_it(world) {
        let gateway = world.gateway_with(close).await;
        let token = token(&claims(&json!({"write": ["m"]})));
        let put = |body: String| gateway.request(Method::PUT, "/v1/hashes/m/fields/f").bearer_auth(&token).body(body);
        assert_eq!(gateway.send(put("x".repeat(VALUE_BYTES))).await.0, 201);
        let before = sent_bytes(&world);
        let refused = join_all((0..100).map(|_| gateway.send(put("y".into()).header("if-none-match", "*")))).await;
        assert!(refused.iter().all(|(status, _)| *status == StatusCode::PRECONDITION_FAILED));
        assert!(sent_bytes(&world) - before < VALUE_BYTES, "Redis sent {} bytes", sent_bytes(&world) - before);
    }

    async fn p11_the_start_of_a_recent_stream_is_found_without_reading_its_events(world) {
        let large = |settings: &mut roomcast::config::Settings| settings.retention.bytes = 8_000_000;
        let gateway = world.gateway_with(large).await;
        publish_many(&gateway, "lobby", 4, 250, 3400).await;
        // A room with few events beside it: its part of the budget is its own.
        publish_many(&gateway, "hall", 1, 3, 10).await;
        let before = sent_bytes(&world);
        let mut stream = gateway.stream("/v1/stream?room=lobby&room=hall&recent=1000").await;
        for _ in 0..1003 {
            stream.event().await;
        }
        let sent = sent_bytes(&world) - before;
        assert!(sent < 1000 * 3400 * 3 / 2, "Redis sent {sent} bytes for events of {} bytes", 1000 * 3400);
    }

    async fn p5_a_room_that_was_only_read_has_a_position_that_nothing_stores(world) {
        let gateway = world.gateway().await;
        let (_, list) = gateway.get("/v1/rooms/quiet/events").await;
        let head = list["head"].as_str().unwrap().to_owned();
        let (_, room) = gateway.get("/v1/rooms/quiet").await;
        assert_eq!((room["head"].as_str(), &room["retained"]), (Some(&*head), &json!(0)));
        let (_, next) = gateway.get(&format!("/v1/rooms/quiet/events?after={head}")).await;
        assert_eq!((next["gap"].clone(), next["events"].as_array().unwrap().len()), (Value::Null, 0));
        let id = gateway.publish("quiet", "first").await;
        // Nothing was missed, so nothing is told.
        let mut stream = gateway.resume("/v1/rooms/quiet/stream", Some(&head)).await;
        assert_eq!(stream.opened["rooms"]["quiet"]["resume"], "complete");
        assert_eq!(stream.data().await, "first");
        let (_, list) = gateway.get(&format!("/v1/rooms/quiet/events?after={head}")).await;
        assert_eq!((list["gap"].clone(), list["events"][0]["id"].as_str()), (Value::Null, Some(&*id)));
        // A later reader, before anything was published.
        let (_, list) = gateway.get("/v1/rooms/silent/events").await;
        let stream = gateway.resume("/v1/rooms/silent/stream", list["head"].as_str()).await;
        assert_eq!(stream.opened["rooms"]["silent"]["resume"], "complete");
    }

    async fn p11_each_room_of_a_stream_counts_as_a_request(world) {
        let gateway = world.gateway_with(|settings| {
            close(settings);
            settings.limits.rate_per_subject = 10;
        }).await;
        let token = token(&claims(&json!({"subscribe": ["*"]})));
        let rooms: Vec<_> = (0..20).map(|n| format!("room=r{n}")).collect();
        let path = format!("/v1/stream?{}&access_token={token}", rooms.join("&"));
        let _open = gateway.stream(&path).await;
        let answer = gateway.answer(gateway.request(Method::GET, &path)).await;
        let text = answer.text().await.unwrap();
        assert!(text.contains("stream.end") && text.contains("too_many_requests"), "{text}");
    }

    async fn p11_each_64_kib_that_is_read_counts_as_a_request(world) {
        let gateway = world.gateway_with(|settings| {
            close(settings);
            settings.limits.rate_per_subject = 10;
        }).await;
        let mut nobody = claims(&json!({"write": ["*"], "publish": ["*"]}));
        nobody.as_object_mut().unwrap().remove("sub");
        let writer = token(&nobody);
        for n in 0..5 {
            let put = gateway.request(Method::PUT, &format!("/v1/hashes/m/fields/a00{n}")).bearer_auth(&writer);
            assert_eq!(gateway.send(put.body("x".repeat(VALUE_BYTES))).await.0, 201);
            let batch = json!({"events": vec![json!({"room": "lobby", "data": "x".repeat(4000)}); 60]});
            let post = gateway.request(Method::POST, "/v1/events").bearer_auth(&writer).json(&batch);
            let (status, answer) = gateway.send(post).await;
            assert_eq!(status, 200, "{answer}");
        }
        let reads = ["/v1/hashes/m", "/v1/hashes/m?field=a000&field=a001&field=a002&field=a003", "/v1/rooms/lobby/events"];
        for (n, path) in reads.into_iter().enumerate() {
            let mut claims = claims(&json!({"read": ["*"], "subscribe": ["*"]}));
            claims["sub"] = json!(format!("reader-{n}"));
            let token = token(&claims);
            let mut count = 0;
            while gateway.send(gateway.request(Method::GET, path).bearer_auth(&token)).await.0 == StatusCode::OK {
                count += 1;
            }
            // The limit is 20 requests at once, and each read counts as 17.
            assert!(count < 10, "{count} reads of {path}");
        }
    }

    async fn p11_values_leave_the_last_part_of_the_memory_to_events(world) {
        let gateway = world.gateway_with(|settings| settings.embedded.max_bytes = 12_000_000).await;
        set_fields(&gateway, "m", 40).await;
        if let Some(redis) = &world.redis {
            let info = redis.cli(&["INFO", "memory"]);
            let used = info.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
            let limit = used.trim().parse::<u64>().unwrap() * 100 / 95;
            redis.cli(&["CONFIG", "SET", "maxmemory", &limit.to_string()]);
        }
        let put = |n: usize| {
            let request = gateway.request(Method::PUT, &format!("/v1/hashes/m/fields/b{n}"));
            gateway.send(request.body("x".repeat(VALUE_BYTES / 4)))
        };
        let mut count = 0;
        crate::support::eventually("values are refused", async || {
            count += 1;
            let (status, problem) = put(count % 8).await;
            (status == StatusCode::SERVICE_UNAVAILABLE).then_some(problem["detail"].to_string())
        }).await;
        gateway.publish("lobby", &"x".repeat(10_000)).await;
        let patch = gateway.request(Method::PATCH, "/v1/hashes/m").json(&json!({"a001": null}));
        assert_eq!(gateway.send(patch).await.0, 200);
    }

    async fn recent_and_pages_count_only_what_the_caller_gets(world) {
        let gateway = world.gateway_with(|settings| {
            close(settings);
            settings.presence.info = roomcast::config::PresenceInfo::Query;
        }).await;
        let ann = token(&claims(&json!({"subscribe": ["*"], "publish": ["*"], "presence": ["*"]})));
        let bob = token(&claims(&json!({"subscribe": ["*"]})));
        let publish = |n: usize| {
            let name = if n == 0 { "first" } else { "chat" };
            let path = format!("/v1/rooms/lobby/events?event={name}");
            gateway.request(Method::POST, &path).bearer_auth(&ann).body(n.to_string())
        };
        for n in 0..5 {
            assert_eq!(gateway.send(publish(n)).await.0, 201);
        }
        let path = format!("/v1/rooms/lobby/stream?presence=true&access_token={ann}");
        let mut watcher = gateway.stream(&path).await;
        // Each profile is another join.
        for n in 0..20 {
            drop(gateway.stream(&format!("{path}&subscriber=ann&info={n}")).await);
            watcher.event().await;
        }
        let recent = |query: &str| format!("/v1/rooms/lobby/stream?recent={query}&access_token={bob}");
        assert_eq!(gateway.stream(&recent("5")).await.datas(5).await, ["0", "1", "2", "3", "4"]);
        assert_eq!(gateway.stream(&recent("1&event=first")).await.data().await, "0");
        // A topic that is not live yet has no copy of its events.
        if world.redis.is_some() {
            let other = world.gateway_with(close).await;
            assert_eq!(other.stream(&recent("3")).await.datas(3).await, ["2", "3", "4"]);
        }
        for (query, expected) in [("limit=3", ["0", "1", "2"]), ("limit=3&before=9000000000000000-0", ["2", "3", "4"])] {
            let request = gateway.request(Method::GET, &format!("/v1/rooms/lobby/events?{query}")).bearer_auth(&bob);
            let (status, list) = gateway.send(request).await;
            assert_eq!(status, 200, "{list}");
            let data: Vec<_> = list["events"].as_array().unwrap().iter().map(|event| event["data"].clone()).collect();
            assert_eq!(data, expected, "{query}");
        }
    }
}

/// Publishes batches of events of so many bytes, and waits for them.
async fn publish_many(gateway: &Gateway, room: &str, batches: usize, events: usize, bytes: usize) {
    for _ in 0..batches {
        let event = json!({"room": room, "data": "x".repeat(bytes)});
        let batch = json!({"events": vec![event; events]});
        assert_eq!(gateway.send(gateway.request(Method::POST, "/v1/events").json(&batch)).await.0, 200);
    }
}

/// Rooms of another replica, as many as a busy one reports.
#[tokio::test]
async fn p11_lists_of_rooms_are_read_once_a_second_and_in_parts() {
    const ROOMS: usize = 20_000;
    let world = World::redis().await;
    let gateway = world.gateway().await;
    let redis = world.redis.as_ref().unwrap();
    redis.cli(&["SADD", "roomcast:replicas", "other"]);
    redis.cli(&["SET", "roomcast:replica:other", "{}"]);
    let script = "for n = 1, ARGV[1] do redis.call('HSET', KEYS[1], 'room-' .. n, 1) end";
    redis.cli(&["EVAL", script, "1", "roomcast:replica:other:rooms", &ROOMS.to_string()]);
    let before = sent_bytes(&world);
    let began = Instant::now();
    let lists = join_all((0..200).map(|_| gateway.get("/v1/rooms?limit=1000"))).await;
    let reads = usize::try_from(began.elapsed().as_secs()).unwrap() + 1;
    assert!(lists.iter().all(|(status, list)| *status == 200 && list["rooms"].as_array().unwrap().len() == 1000));
    let sent = sent_bytes(&world) - before;
    // A name and its count take some 20 bytes.
    assert!(sent < reads * ROOMS * 40, "Redis sent {sent} bytes in {reads} s");
}

#[tokio::test]
async fn p11_the_cache_of_verified_tokens_is_bounded_by_what_tokens_hold_in_memory() {
    /// The cache has 32 MiB; the allocator may lose the same again.
    const MOST_KIB: u64 = 64 * 1024;
    let replica = Replica::start_with(&["--jwt-hs256-secret", SECRET]);
    // Short patterns take the most memory for each byte of a token.
    let patterns: Vec<_> = (0..1500).map(|_| "a").collect();
    let client = reqwest::Client::new();
    let ask = async |n: i64| {
        let token = token(&json!({"exp": at(600 + n), "roomcast": {"read": patterns}}));
        let answer = client.get(format!("{}/v1/hashes/a", replica.url())).bearer_auth(token).send().await.unwrap();
        assert_eq!(answer.status(), 200);
    };
    join_all((0..20).map(ask)).await;
    let before = replica.resident_kib();
    for n in 1..75 {
        join_all((20 * n..20 * (n + 1)).map(ask)).await;
    }
    let growth = replica.resident_kib() - before;
    assert!(growth < MOST_KIB, "{growth} KiB for 1,500 tokens");
}

/// What the embedded broker of a process counts of its memory, and what the process really has, in KiB.
async fn memory(replica: &Replica) -> (u64, u64) {
    let metrics = reqwest::get(format!("{}/metrics", replica.url())).await.unwrap().text().await.unwrap();
    let used = metrics.lines().find_map(|line| line.strip_prefix("roomcast_broker_memory_used_bytes "));
    (used.unwrap().parse::<u64>().unwrap() / 1024, replica.resident_kib())
}

#[tokio::test]
async fn p11_small_hashes_and_rooms_count_as_what_they_take() {
    let replica = Replica::start_with(&[]);
    replica.until(200).await;
    let client = reqwest::Client::new();
    let put_hashes = async |first: usize, count: usize| {
        for n in (first..first + count).step_by(50) {
            let puts =
                (n..n + 50).map(|n| client.put(format!("{}/v1/hashes/hash-{n}/fields/f", replica.url())).send());
            assert!(join_all(puts).await.into_iter().all(|answer| answer.unwrap().status() == 201));
        }
    };
    let publish_to_rooms = async |first: usize, count: usize| {
        for n in (first..first + count).step_by(1000) {
            let rooms: Vec<_> = (n..n + 1000).map(|n| format!("room-{n}")).collect();
            let batch = json!({"events": [{"rooms": rooms, "data": 1}]});
            let answer = client.post(format!("{}/v1/events", replica.url())).json(&batch).send().await.unwrap();
            assert_eq!(answer.status(), 200);
        }
    };
    put_hashes(0, 2000).await;
    publish_to_rooms(0, 2000).await;
    let before = memory(&replica).await;
    put_hashes(2000, 15_000).await;
    let between = memory(&replica).await;
    publish_to_rooms(2000, 30_000).await;
    let after = memory(&replica).await;
    let (counted, taken) = (between.0 - before.0, between.1 - before.1);
    assert!(taken < counted * 3 / 2, "{taken} KiB, and {counted} are counted, for hashes");
    let (counted, taken) = (after.0 - between.0, after.1 - between.1);
    // The ids that a replica remembers of the rooms have a limit of their own.
    assert!(taken < counted * 3 / 2, "{taken} KiB, and {counted} are counted, for rooms");
}

#[tokio::test]
async fn p11_the_rings_of_all_rooms_together_are_bounded() {
    const ROOMS: usize = 1000;
    /// 256 rings, and as much again for all else.
    const MOST_KIB: u64 = 2 * 256 * 100;
    let world = World::redis().await;
    let redis = world.redis.as_ref().unwrap();
    let replica = Replica::start(&redis.url(), &["--ring-bytes", "100000", "--ring-events", "1000"]);
    replica.until(200).await;
    let names: Vec<_> = (0..ROOMS).map(|n| format!("r{n}")).collect();
    let mut streams = Vec::new();
    for rooms in names.chunks(20) {
        let query = rooms.iter().map(|room| format!("room={room}")).collect::<Vec<_>>().join("&");
        streams.push(Stream::open(&format!("{}/v1/stream?{query}", replica.url()), None).await);
    }
    let before = replica.resident_kib();
    let batch = json!({"events": [{"rooms": names, "data": "x".repeat(1000)}]});
    for _ in 0..100 {
        let post = reqwest::Client::new().post(format!("{}/v1/events", replica.url())).json(&batch);
        assert_eq!(post.send().await.unwrap().status(), 200);
    }
    // The last event arrives too.
    let mut last = Stream::open(&format!("{}/v1/rooms/r999/stream?recent=1", replica.url()), None).await;
    last.event().await;
    let growth = replica.resident_kib().saturating_sub(before);
    assert!(growth < MOST_KIB, "{growth} KiB for {ROOMS} rooms of 100 KiB");
    // A ring that was emptied loses nothing: the log has the rest.
    let mut all = Stream::open(&format!("{}/v1/rooms/r0/stream?from=earliest", replica.url()), None).await;
    for data in all.datas(100).await {
        assert_eq!(data.len(), 1002);
    }
}

#[tokio::test]
async fn p11_rooms_that_are_only_read_leave_no_keys_in_redis() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    let redis = world.redis.as_ref().unwrap();
    let keys = || redis.cli(&["KEYS", "roomcast:{*"]).lines().filter(|line| !line.is_empty()).count();
    let before = keys();
    for n in 0..50 {
        for path in ["", "/events", "/events?before=1790000000000000-7", "/events?after=1790000000000000-7"] {
            let (status, answer) = gateway.get(&format!("/v1/rooms/read-{n}{path}")).await;
            assert_eq!(status, 200, "{answer}");
        }
    }
    assert_eq!(keys(), before);
    // What was acknowledged and lost together with all data is told, also by a replica that knows nothing of it.
    let (_, list) = gateway.get("/v1/rooms/lost/events").await;
    let head = list["head"].as_str().unwrap().to_owned();
    gateway.publish("lost", "gone").await;
    drop(gateway);
    redis.cli(&["FLUSHALL"]);
    let other = world.gateway().await;
    let stream = other.resume("/v1/rooms/lost/stream", Some(&head)).await;
    assert_eq!(stream.opened["rooms"]["lost"]["resume"], "gap");
}

/// How often Redis has read a log backward since its start.
fn backward_reads(world: &World) -> usize {
    let info = world.redis.as_ref().unwrap().cli(&["INFO", "commandstats"]);
    let line = info.lines().find_map(|line| line.strip_prefix("cmdstat_xrevrange:calls="));
    line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
}

/// On one broker: the embedded one counts no commands.
#[tokio::test]
async fn p11_recent_events_that_a_replica_has_are_not_read_again() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    publish_many(&gateway, "lobby", 1, 3, 10).await;
    let _first = gateway.room("lobby").await;
    let before = backward_reads(&world);
    for _ in 0..20 {
        let mut stream = gateway.stream("/v1/rooms/lobby/stream?recent=5").await;
        for _ in 0..3 {
            stream.event().await;
        }
    }
    let reads = backward_reads(&world) - before;
    assert!(reads < 10, "{reads} reads for 20 streams");
}
