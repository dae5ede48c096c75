//! What writes and lists cost: fields of a patch, copies of a batch, bytes, and the rooms and hashes that a list looks
//! at.

use std::time::Instant;

use futures_util::future::join_all;
use reqwest::{Method, RequestBuilder, StatusCode};
use roomcast::config::Settings;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{as_user, few, status};
use crate::auth::{claims, close, token};
use crate::support::{Gateway, World, eventually};

/// Most fields of a hash.
const MAX_FIELDS: usize = 100_000;
/// The largest data of an event.
const EVENT_BYTES: usize = 64 * 1024;

/// Closes the gateway, and allows each subject 20 requests at once.
fn twenty(settings: &mut Settings) {
    few(settings);
    settings.limits.rate_per_subject = 10;
}

/// What each of these requests costs at most, in requests of the rate limit: they are sent until one is refused, 100 at
/// most, to a gateway that allows [`twenty`].
async fn cost(gateway: &Gateway, request: impl Fn() -> RequestBuilder) -> f64 {
    let began = Instant::now();
    for count in 0..100 {
        match gateway.send(request()).await {
            (status, _) if status.is_success() => {}
            // A slow machine gives more time to allow more of them.
            (StatusCode::TOO_MANY_REQUESTS, _) => {
                let allowed = began.elapsed().as_secs_f64().mul_add(10.0, 20.0);
                return allowed / f64::from(count);
            }
            (status, problem) => panic!("{status}: {problem}"),
        }
    }
    0.0
}

/// Fills a hash with as many fields as it may have, f0 and so on.
async fn fill_hash(world: &World, gateway: &Gateway) {
    if let Some(redis) = &world.redis {
        let script = "for n = 0, ARGV[1] - 1 do redis.call('HSET', KEYS[1], 'f' .. n, 'x') end";
        redis.cli(&["EVAL", script, "1", "roomcast:hash:{m}", &MAX_FIELDS.to_string()]);
        return;
    }
    for first in (0..MAX_FIELDS).step_by(1000) {
        let fields: serde_json::Map<_, _> = (first..first + 1000).map(|n| (format!("f{n}"), json!("x"))).collect();
        assert_eq!(gateway.send(gateway.request(Method::PATCH, "/v1/hashes/m").json(&fields)).await.0, 200);
    }
}

on_both_brokers! {
    async fn each_field_of_a_patch_counts(world) {
        let gateway = world.gateway_with(|settings| {
            few(settings);
            settings.limits.rate_per_subject = 5;
        }).await;
        for (user, value) in [("ann", json!("x")), ("bob", Value::Null)] {
            let patch = |count: usize| {
                let fields: serde_json::Map<_, _> = (0..count).map(|n| (format!("f{n}"), value.clone())).collect();
                gateway.request(Method::PATCH, "/v1/hashes/m").bearer_auth(as_user(user)).json(&fields)
            };
            let (refused, problem) = gateway.send(patch(12)).await;
            assert_eq!(refused.as_u16(), 429);
            assert!(problem["detail"].as_str().unwrap().contains("10 at most"), "{problem}");
            eventually("eight are changed", async || (status(&gateway, patch(8)).await == 200).then_some(())).await;
            assert_eq!(status(&gateway, patch(8)).await, 429);
        }
    }

    async fn p11_a_hash_has_a_bounded_number_of_fields_and_is_deleted_in_one_step(world) {
        let gateway = world.gateway().await;
        fill_hash(&world, &gateway).await;
        let field = |method: Method, name: &str| gateway.request(method, &format!("/v1/hashes/m/fields/{name}"));
        let patch = |body: Value| gateway.request(Method::PATCH, "/v1/hashes/m").json(&body);
        for refused in [
            field(Method::PUT, "new").body("x"),
            field(Method::POST, "new/increment").json(&json!({"by": 1})),
            patch(json!({"f0": "y", "new": "x"})),
        ] {
            let (status, problem) = gateway.send(refused).await;
            assert_eq!((status.as_u16(), problem["code"].as_str()), (409, Some("too_many_fields")), "{problem}");
        }
        assert_eq!(gateway.get("/v1/hashes/m/fields/f0").await.1["value"], "x", "the patch has changed nothing");
        assert_eq!(gateway.send(field(Method::PUT, "f0").body("y")).await.0, 200);
        assert_eq!(gateway.send(patch(json!({"f0": "z", "f1": null}))).await.0, 200);
        assert_eq!(gateway.send(field(Method::PUT, "new").body("x")).await.0, 201);
        // The hash is full again. A field can be renamed, but not copied.
        let json_patch = |operation: &str| {
            let operations = json!([{"op": operation, "from": "/f2", "path": "/f-2"}]).to_string();
            let request = gateway.request(Method::PATCH, "/v1/hashes/m");
            gateway.send(request.header("content-type", "application/json-patch+json").body(operations))
        };
        let (status, problem) = json_patch("copy").await;
        assert_eq!((status.as_u16(), problem["code"].as_str()), (409, Some("too_many_fields")), "{problem}");
        assert_eq!(json_patch("move").await.0, 200);
        let deleted = gateway.send(gateway.request(Method::DELETE, "/v1/hashes/m")).await.0;
        // The disk of a busy machine may take longer than an answer waits for it.
        assert!(deleted == 204 || deleted == 503 && world.data.is_some(), "{deleted}");
        eventually("all of it is gone", async || {
            (gateway.get("/v1/hashes/m").await.1["fields"] == json!({})).then_some(())
        }).await;
        assert_eq!(gateway.send(field(Method::PUT, "new").body("x")).await.0, 201);
        if let Some(redis) = &world.redis {
            // DEL frees each field before the next command.
            let statistics = redis.cli(&["INFO", "commandstats"]);
            assert!(statistics.contains("cmdstat_unlink:") && !statistics.contains("cmdstat_del:"), "{statistics}");
        }
    }

    async fn p11_the_hashes_that_a_list_looks_at_count_for_its_caller(world) {
        let gateway = world.gateway_with(twenty).await;
        for first in (0..1000).step_by(50) {
            let puts = (first..first + 50).map(|n| {
                let put = gateway.request(Method::PUT, &format!("/v1/hashes/{}{n}/fields/f", "h".repeat(120)));
                status(&gateway, put.bearer_auth(as_user(&format!("user-{n}"))).body("x"))
            });
            assert!(join_all(puts).await.iter().all(|status| *status == 201));
        }
        let list = |user: &str| gateway.request(Method::GET, "/v1/hashes?limit=1000").bearer_auth(as_user(user));
        // Each counts as 1,000 keys and names, which is about four.
        assert!(cost(&gateway, || list("ann")).await > 1.3);
        if let Some(redis) = &world.redis {
            redis.eval("for n = 1, 20000 do redis.call('SET', 'x:' .. n, '') end", &[], &[]);
            let none = || gateway.request(Method::GET, "/v1/hashes?prefix=none").bearer_auth(as_user("bob"));
            // Each counts as 10,000 keys, which is ten.
            assert!(cost(&gateway, none).await > 3.0);
        }
    }

    async fn p11_each_64_kib_of_an_event_counts_as_a_request_in_each_room(world) {
        let gateway = world.gateway_with(twenty).await;
        let data = "x".repeat(EVENT_BYTES);
        let single = || {
            let post = gateway.request(Method::POST, "/v1/rooms/lobby/events");
            post.bearer_auth(as_user("ann")).header("content-type", "text/plain").body(data.clone())
        };
        let rooms: Vec<_> = (0..4).map(|n| format!("r{n}")).collect();
        // With its quotes, a string of JSON has two more bytes.
        let batch = json!({"events": [{"rooms": rooms, "data": &data[2..]}]});
        let batch = || gateway.request(Method::POST, "/v1/events").bearer_auth(as_user("bob")).json(&batch);
        // Without their bytes, they would count as 1 and 4.
        assert!(cost(&gateway, single).await > 1.3);
        assert!(cost(&gateway, batch).await > 5.0);
    }

    async fn p11_each_64_kib_that_a_patch_copies_count_as_a_request(world) {
        let gateway = world.gateway_with(twenty).await;
        let put = gateway.request(Method::PUT, "/v1/hashes/m/fields/a").bearer_auth(as_user("bob"));
        assert_eq!(status(&gateway, put.body("x".repeat(250 * 1024))).await, 201);
        let copy = || {
            let patch = gateway.request(Method::PATCH, "/v1/hashes/m").bearer_auth(as_user("ann"));
            patch.header("content-type", "application/json-patch+json").body(r#"[{"op":"copy","from":"/a","path":"/b"}]"#)
        };
        // Without the bytes, they would count as 1.
        assert!(cost(&gateway, copy).await > 2.0);
    }

    async fn p11_the_copies_of_a_batch_have_no_more_bytes_than_a_body(world) {
        let gateway = world.gateway().await;
        let batch = |rooms: usize, bytes: usize| {
            let rooms: Vec<_> = (0..rooms).map(|n| format!("r{n}")).collect();
            json!({"events": [{"rooms": rooms, "data": "x".repeat(bytes)}]})
        };
        let (status, problem) = gateway.post("/v1/events", &batch(1000, 60_000)).await;
        assert_eq!((status.as_u16(), problem["code"].as_str()), (413, Some("body_too_large")), "{problem}");
        assert_eq!(gateway.get("/v1/rooms/r0").await.1["retained"], 0);
        assert_eq!(gateway.post("/v1/events", &batch(17, 60_000)).await.0, 200);
        assert_eq!(gateway.post("/v1/events", &batch(1000, 1000)).await.0, 200);
    }
}

/// Follows the links of a list of rooms. Returns the rooms, and the links.
async fn list_rooms(gateway: &Gateway, token: &str) -> (Vec<String>, Vec<String>) {
    let (mut rooms, mut links, mut path) = (Vec::new(), Vec::new(), "/v1/rooms?limit=2".to_owned());
    loop {
        let answer = gateway.answer(gateway.request(Method::GET, &path).bearer_auth(token)).await;
        assert_eq!(answer.status(), 200);
        let link = answer.headers().get("link").map(|link| link.to_str().unwrap().to_owned());
        let list: Value = answer.json().await.unwrap();
        rooms
            .extend(list["rooms"].as_array().unwrap().iter().map(|room| room["room"].as_str().unwrap().to_owned()));
        let Some(link) = link else { return (rooms, links) };
        link[1..link.find('>').unwrap()].clone_into(&mut path);
        links.push(link);
    }
}

/// Rooms of another replica, of which the caller may read few.
#[tokio::test]
async fn p11_a_page_of_rooms_ends_after_a_bounded_number_of_comparisons() {
    let world = World::redis().await;
    let redis = world.redis.as_ref().unwrap();
    redis.cli(&["SADD", "roomcast:replicas", "other"]);
    redis.cli(&["SET", "roomcast:replica:other", "{}"]);
    let script = "for n = 1, 20000 do redis.call('HSET', KEYS[1], 'hidden-' .. n, 1) end
        for _, name in ipairs({ 'a', 'hidden-1000-seen', 'hidden-5000-seen', 'z1', 'z2', 'z3' }) do
          redis.call('HSET', KEYS[1], name, 1)
        end";
    redis.cli(&["EVAL", script, "1", "roomcast:replica:other:rooms"]);
    let gateway = world
        .gateway_with(|settings| {
            close(settings);
            settings.limits.rate_per_subject = 0;
        })
        .await;
    let mut patterns: Vec<_> = (0..97).map(|n| format!("hidden-*-{n}")).collect();
    patterns.extend(["a", "*-seen", "z*"].map(str::to_owned));
    let token = token(&claims(&json!({"subscribe": patterns})));
    let (rooms, links) = list_rooms(&gateway, &token).await;
    assert_eq!(rooms, ["a", "hidden-1000-seen", "hidden-5000-seen", "z1", "z2", "z3"]);
    // 20,000 names of 12 bytes are compared with 100 patterns, and a page ends after 1 MiB.
    assert!((20..30).contains(&links.len()), "{} pages", links.len());
    let names_hidden = |link: &String| link.contains("hidden") && !link.contains("seen");
    assert!(!links.iter().any(names_hidden), "{links:?}");
}

/// As [`p11_a_page_of_rooms_ends_after_a_bounded_number_of_comparisons`], with limits.
#[tokio::test]
async fn p11_the_comparisons_for_a_page_of_rooms_count_by_bytes() {
    let world = World::redis().await;
    let redis = world.redis.as_ref().unwrap();
    redis.cli(&["SADD", "roomcast:replicas", "other"]);
    redis.cli(&["SET", "roomcast:replica:other", "{}"]);
    let script = "for n = 1, 20000 do redis.call('HSET', KEYS[1], 'hidden-' .. n, 1) end";
    redis.cli(&["EVAL", script, "1", "roomcast:replica:other:rooms"]);
    let gateway = world.gateway_with(twenty).await;
    let patterns: Vec<_> = (0..100).map(|n| format!("hidden-*-{n}")).collect();
    let token = token(&claims(&json!({"subscribe": patterns})));
    // A page counts as 17.
    assert!(cost(&gateway, || gateway.request(Method::GET, "/v1/rooms").bearer_auth(&token)).await > 2.0);
}

/// Redis does nothing else during a script.
#[tokio::test]
async fn p11_a_page_of_a_large_hash_is_read_in_short_steps() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    fill_hash(&world, &gateway).await;
    let redis = world.redis.as_ref().unwrap();
    redis.cli(&["CONFIG", "RESETSTAT"]);
    let list = gateway.get("/v1/hashes/m?limit=10000").await.1;
    assert!(list["fields"].as_object().unwrap().len() >= 10_000);
    let statistics = redis.cli(&["INFO", "commandstats"]);
    let calls = |command: &str| {
        let line = statistics.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
        line.map_or(0, |rest| rest.split(',').next().unwrap().parse::<usize>().unwrap())
    };
    // Some scripts are the probe's, which scan nothing.
    assert!(calls("hscan") < 100 * calls("evalsha"), "{statistics}");
}

/// Each read is a system call of Redis and another one of the gateway, and so are the answers. On one thread, so that no
/// other one takes requests away.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn requests_that_arrive_together_reach_redis_together() {
    const REQUESTS: usize = 64;
    const TIMES: usize = 10;
    let world = World::redis().await;
    let gateway = world.gateway().await;
    let redis = world.redis.as_ref().unwrap();
    for time in 0..=TIMES {
        if time == 1 {
            // Now the connections are open.
            redis.cli(&["CONFIG", "RESETSTAT"]);
        }
        let get = |n| gateway.request(Method::GET, &format!("/v1/hashes/h/fields/f{n}")).send();
        let mut tasks = JoinSet::new();
        tasks.spawn(join_all((0..REQUESTS).map(get)));
        let answers = tasks.join_all().await.into_iter().flatten();
        assert!(answers.map(|answer| answer.unwrap().status()).all(|status| status == 404));
    }
    let statistics = redis.cli(&["INFO", "stats"]);
    let reads = statistics.lines().find_map(|line| line.strip_prefix("total_reads_processed:"));
    let reads: usize = reads.unwrap().trim().parse().unwrap();
    assert!(reads * 3 < REQUESTS * TIMES, "{reads} reads");
}
