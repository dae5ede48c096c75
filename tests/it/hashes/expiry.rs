//! Expiry of hashes.

use std::time::{Duration, SystemTime};

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use super::put;
use crate::support::{Gateway, RedisServer, Replica, World, eventually, values_of};

const HASH: &str = "/v1/hashes/lamp";
const FIELD: &str = "/v1/hashes/lamp/fields/colour";
const KEY: &str = "roomcast:hash:{lamp}";
const REFRESH: &str = "roomcast:hash:{lamp}:refresh";

fn expire(gateway: &Gateway, hash: &str, expiry: &Value) -> RequestBuilder {
    gateway.request(Method::PUT, &format!("/v1/hashes/{hash}/expiry")).json(expiry)
}

async fn set(gateway: &Gateway, expiry: Value) {
    let (status, body) = gateway.send(expire(gateway, "lamp", &expiry)).await;
    assert_eq!(status, 204, "{body}");
}

/// When the hash expires, and the seconds that writes begin anew.
async fn expiry(gateway: &Gateway) -> (Option<SystemTime>, Value) {
    let (_, list) = gateway.get(HASH).await;
    let at = list["expires_at"].as_str().map(|at| humantime::parse_rfc3339(at).unwrap());
    (at, list["refresh_seconds"].clone())
}

async fn expires_at(gateway: &Gateway) -> SystemTime {
    expiry(gateway).await.0.expect("the hash expires")
}

/// The present time, without what a time of the gateway leaves out.
fn now() -> SystemTime {
    SystemTime::now() - Duration::from_millis(1)
}

/// Each write to a field, and each patch.
fn writes(gateway: &Gateway) -> [RequestBuilder; 5] {
    [
        gateway.request(Method::PUT, FIELD).body("red"),
        gateway.request(Method::POST, "/v1/hashes/lamp/fields/count/increment").json(&json!({"by": 1})),
        gateway.request(Method::PATCH, HASH).json(&json!({"a": "1", "b": null})),
        gateway
            .request(Method::PATCH, HASH)
            .header("content-type", "application/json-patch+json")
            .body(r#"[{"op":"copy","from":"/colour","path":"/b"}]"#),
        gateway.request(Method::DELETE, "/v1/hashes/lamp/fields/a"),
    ]
}

/// Makes a hash that is refreshed by writes.
async fn refreshed(gateway: &Gateway) {
    put(gateway, FIELD, "green").await;
    set(gateway, json!({"seconds": 1000, "refresh": true})).await;
}

on_both_brokers! {
    async fn a_patch_that_leaves_fields_keeps_the_expiry(world) {
        let gateway = world.gateway().await;
        put(&gateway, FIELD, "green").await;
        set(&gateway, json!({"seconds": 1000, "refresh": true})).await;
        for patch in [json!({"colour": null, "zzz": "1"}), json!({"zzz": null, "aaa": "1"}), json!({"aaa": null, "bbb": "2"})] {
            assert_eq!(gateway.send(gateway.request(Method::PATCH, HASH).json(&patch)).await.0, 200);
            let (at, refresh) = expiry(&gateway).await;
            assert!(at.is_some() && refresh == 1000, "{patch}");
        }
        let operations = json!([{"op": "remove", "path": "/bbb"}, {"op": "add", "path": "/ccc", "value": "3"}]);
        let patch = gateway.request(Method::PATCH, HASH).header("content-type", "application/json-patch+json");
        assert_eq!(gateway.send(patch.body(operations.to_string())).await.0, 200);
        assert!(expiry(&gateway).await.0.is_some());
    }

    async fn a_hash_expires_after_the_seconds_that_were_set(world) {
        let gateway = world.gateway().await;
        put(&gateway, FIELD, "green").await;
        put(&gateway, "/v1/hashes/other/fields/f", "x").await;
        assert_eq!(expiry(&gateway).await, (None, Value::Null));
        let before = now();
        set(&gateway, json!({"seconds": 1})).await;
        let (at, refresh) = expiry(&gateway).await;
        let at = at.expect("the hash expires");
        assert!(at >= before + Duration::from_secs(1) && at <= SystemTime::now() + Duration::from_secs(1));
        assert_eq!(refresh, Value::Null);
        // Of some fields, and on each page.
        assert!(gateway.get(&format!("{HASH}?field=colour")).await.1["expires_at"].is_string());
        eventually("the hash is gone", async || {
            let field = gateway.get(FIELD).await.0;
            let seen = SystemTime::now();
            assert!(field == 200 || seen >= at, "the hash is gone before its time");
            (field == 404).then_some(())
        }).await;
        assert_eq!(gateway.get(HASH).await.1["fields"], json!({}));
        assert_eq!(gateway.get(&format!("{HASH}?field=colour")).await.1["fields"], json!({}));
        assert_eq!(gateway.send(gateway.request(Method::DELETE, HASH)).await.0, 404);
        assert_eq!(gateway.send(expire(&gateway, "lamp", &json!({"seconds": 5}))).await.0, 404);
        let increment = gateway.post("/v1/hashes/lamp/fields/n/increment", &json!({"by": 1})).await;
        assert_eq!(increment.1["value"], "1");
        assert_eq!(expiry(&gateway).await, (None, Value::Null));
        assert_eq!(values_of(&gateway.get("/v1/hashes/other").await.1), json!({"f": {"value": "x"}}));
    }

    async fn p9_an_expired_hash_is_never_seen_again(world) {
        let gateway = world.gateway().await;
        let patch = gateway.request(Method::PATCH, HASH).json(&json!({"colour": "green", "old": "x"}));
        assert_eq!(gateway.send(patch).await.0, 200);
        set(&gateway, json!({"seconds": 1})).await;
        let at = expires_at(&gateway).await;
        // A condition that holds as long as the hash is there. The write after it begins a new hash.
        eventually("the old value is gone", async || {
            let request = gateway.request(Method::PUT, FIELD).header("if-none-match", "*").body("red");
            let (status, _) = gateway.send(request).await;
            assert!(status == 201 || status == 412, "{status}");
            (status == 201).then_some(())
        }).await;
        assert!(SystemTime::now() >= at);
        assert_eq!(values_of(&gateway.get(HASH).await.1), json!({"colour": {"value": "red"}}));
        assert_eq!(expiry(&gateway).await, (None, Value::Null));
    }

    async fn each_write_begins_the_seconds_anew_if_that_was_asked_for(world) {
        let gateway = world.gateway().await;
        refreshed(&gateway).await;
        for write in 0..writes(&gateway).len() {
            let before = expires_at(&gateway).await;
            eventually("a write makes the expiry later", async || {
                let sent = now();
                let request = writes(&gateway).into_iter().nth(write).unwrap();
                // The field that is deleted may be gone already.
                let status = gateway.send(request).await.0;
                assert!(status.is_success() || status == 404, "{write}: {status}");
                if status == 404 {
                    put(&gateway, "/v1/hashes/lamp/fields/a", "1").await;
                    return None;
                }
                let (at, refresh) = expiry(&gateway).await;
                assert!(at.unwrap() >= sent + Duration::from_secs(1000), "{write}");
                assert_eq!(refresh, 1000);
                (at.unwrap() > before).then_some(())
            }).await;
        }
        // A write that changes nothing, a read, and a write to another hash.
        let before = expires_at(&gateway).await;
        put(&gateway, "/v1/hashes/other/fields/f", "x").await;
        for (expected, request) in [
            (412, gateway.request(Method::PUT, FIELD).header("if-none-match", "*").body("x")),
            (404, gateway.request(Method::DELETE, "/v1/hashes/lamp/fields/none")),
            (409, gateway.request(Method::POST, &format!("{FIELD}/increment")).json(&json!({"by": 1}))),
            (200, gateway.request(Method::GET, FIELD)),
        ] {
            assert_eq!(gateway.send(request).await.0, expected);
            assert_eq!(expires_at(&gateway).await, before);
        }
        set(&gateway, json!({"seconds": 2000})).await;
        let before = expires_at(&gateway).await;
        for request in writes(&gateway) {
            gateway.send(request).await;
            assert_eq!(expiry(&gateway).await, (Some(before), Value::Null));
        }
    }

    async fn a_hash_without_its_fields_loses_its_expiry(world) {
        let gateway = world.gateway().await;
        let removals = || [
            gateway.request(Method::DELETE, HASH),
            gateway.request(Method::DELETE, FIELD),
            gateway.request(Method::PATCH, HASH).json(&json!({"colour": null})),
            expire(&gateway, "lamp", &json!({"seconds": null})),
        ];
        for removal in removals() {
            refreshed(&gateway).await;
            assert!(gateway.send(removal).await.0.is_success());
            put(&gateway, FIELD, "green").await;
            assert_eq!(expiry(&gateway).await, (None, Value::Null));
            if let Some(server) = &world.redis {
                assert_eq!(server.cli(&["EXISTS", REFRESH]), "0");
            }
        }
    }

    async fn an_expiry_that_is_no_lifetime_is_refused_and_changes_nothing(world) {
        let gateway = world.gateway().await;
        refreshed(&gateway).await;
        let before = expiry(&gateway).await;
        let bad = [
            r#"{"seconds":0}"#, r#"{"seconds":-1}"#, r#"{"seconds":1.5}"#, r#"{"seconds":315360001}"#,
            r#"{"seconds":4294967297}"#, r#"{"seconds":99999999999999999999999}"#, r#"{"seconds":1e3}"#,
            r#"{"seconds":"60"}"#, r#"{"seconds":true}"#, r#"{"seconds":[60]}"#, "{}", "[60]", "60", "null", "",
            r#"{"seconds":60,"refresh":1}"#, r#"{"seconds":null,"refresh":true}"#, r#"{"second":60}"#,
            r#"{"seconds":60,"sliding":true}"#, r#"{"seconds":60,"seconds":70}"#, r#"{"refresh":true}"#,
        ];
        for body in bad {
            let request = gateway.request(Method::PUT, "/v1/hashes/lamp/expiry");
            let (status, problem) = gateway.send(request.header("content-type", "application/json").body(body)).await;
            assert_eq!((status.as_u16(), &problem["code"]), (400, &json!("invalid_body")), "{body}");
        }
        let (_, problem) = gateway.send(expire(&gateway, "lamp", &json!({"seconds": 0}))).await;
        assert_eq!(problem["detail"], "seconds must be a whole number from 1 to 315360000, or null for never");
        let with = |name: &str, value: &str| expire(&gateway, "lamp", &json!({"seconds": 5})).header(name, value);
        for (request, status, code) in [
            (with("if-match", "*"), 400, "invalid_header"),
            (with("idempotency-key", "a b"), 400, "invalid_header"),
            (gateway.request(Method::PUT, "/v1/hashes/lamp/expiry").body("5"), 415, "unsupported_media_type"),
            (gateway.request(Method::PUT, "/v1/hashes/lamp/expiry?seconds=5").json(&json!({"seconds": 5})), 400, "invalid_query"),
            (expire(&gateway, "none", &json!({"seconds": 5})), 404, "hash_not_found"),
            (expire(&gateway, "none", &json!({"seconds": null})), 404, "hash_not_found"),
            (gateway.request(Method::GET, "/v1/hashes/lamp/expiry"), 405, "method_not_allowed"),
        ] {
            let (answer, problem) = gateway.send(request).await;
            assert_eq!((answer.as_u16(), &problem["code"]), (status, &json!(code)), "{problem}");
        }
        assert_eq!(expiry(&gateway).await, before);
        set(&gateway, json!({"seconds": 315_360_000, "refresh": null})).await;
        assert!(expires_at(&gateway).await > SystemTime::now() + Duration::from_secs(315_359_000));
    }
}

#[tokio::test]
async fn p8_an_expiry_outlives_a_killed_process() {
    let folder = tempfile::tempdir().unwrap();
    let client = reqwest::Client::new();
    let send = async |replica: &Replica, method: Method, path: &str, body: Value| {
        let url = format!("{}/v1/hashes/{path}", replica.url());
        let answer = client.request(method, url).json(&body).send().await.unwrap();
        answer.json::<Value>().await.unwrap_or_default()
    };
    let list = async |replica: &Replica, hash: &str| send(replica, Method::GET, hash, Value::Null).await;
    let mut replica = Replica::start_on(folder.path(), &[]);
    for hash in ["kept", "persisted", "short"] {
        send(&replica, Method::PATCH, hash, json!({"colour": "green"})).await;
        send(&replica, Method::PUT, &format!("{hash}/expiry"), json!({"seconds": 1000, "refresh": true})).await;
    }
    send(&replica, Method::PUT, "persisted/expiry", json!({"seconds": null})).await;
    send(&replica, Method::PUT, "short/expiry", json!({"seconds": 1})).await;
    let kept = list(&replica, "kept").await;
    let end = humantime::parse_rfc3339(list(&replica, "short").await["expires_at"].as_str().unwrap()).unwrap();
    replica.kill();
    eventually("the hash has expired meanwhile", async || (SystemTime::now() >= end).then_some(())).await;
    let mut replica = Replica::start_on(folder.path(), &[]);
    assert_eq!(list(&replica, "short").await["fields"], json!({}));
    assert_eq!(list(&replica, "kept").await, kept);
    assert_eq!(kept["refresh_seconds"], 1000);
    let persisted = list(&replica, "persisted").await;
    assert_eq!(
        (&persisted["expires_at"], &persisted["fields"]["colour"]["value"]),
        (&Value::Null, &json!("green"))
    );
    eventually("a write makes the expiry later", async || {
        send(&replica, Method::PATCH, "kept", json!({"colour": "red"})).await;
        (list(&replica, "kept").await["expires_at"] != kept["expires_at"]).then_some(())
    })
    .await;
    send(&replica, Method::PATCH, "short", json!({"new": "x"})).await;
    let short = list(&replica, "short").await;
    replica.kill();
    let replica = Replica::start_on(folder.path(), &[]);
    assert_eq!(list(&replica, "short").await, short);
    assert_eq!((values_of(&short), &short["expires_at"]), (json!({"new": {"value": "x"}}), &Value::Null));
}

#[tokio::test]
async fn p11_an_expired_hash_leaves_the_memory_although_nobody_asks_for_it() {
    let gateway = Gateway::start(|settings| settings.embedded.max_bytes = 256 * 1024).await;
    let fill = |hash: &str| {
        let fields: serde_json::Map<_, _> = (0..100).map(|n| (format!("f{n}"), json!("x".repeat(1000)))).collect();
        gateway.request(Method::PATCH, &format!("/v1/hashes/{hash}")).json(&fields)
    };
    assert_eq!(gateway.send(fill("first")).await.0, 200);
    assert_eq!(gateway.send(expire(&gateway, "first", &json!({"seconds": 1}))).await.0, 204);
    assert_eq!(gateway.send(fill("second")).await.0, 200);
    assert_eq!(gateway.send(fill("third")).await.0, 503);
    eventually("there is room", async || (gateway.send(fill("third")).await.0 == 200).then_some(())).await;
}

fn pttl(server: &RedisServer) -> i64 {
    server.cli(&["PTTL", KEY]).parse().unwrap()
}

#[tokio::test]
async fn other_clients_of_redis_see_and_set_the_expiry() {
    let world = World::redis().await;
    let (gateway, server) = (world.gateway().await, world.server());
    server.cli(&["HSET", KEY, "colour", "green"]);
    assert_eq!(pttl(server), -1);
    set(&gateway, json!({"seconds": 1000})).await;
    assert!((990_000..=1_000_000).contains(&pttl(server)), "{}", pttl(server));
    let milliseconds = server.cli(&["PEXPIRETIME", KEY]).parse().unwrap();
    assert_eq!(expires_at(&gateway).await, SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds));
    server.cli(&["PERSIST", KEY]);
    assert_eq!(expiry(&gateway).await, (None, Value::Null));
    server.cli(&["EXPIREAT", KEY, "4102444800"]);
    assert_eq!(gateway.get(HASH).await.1["expires_at"], "2100-01-01T00:00:00.000Z");
    // A time that RFC 3339 can't show.
    server.cli(&["PEXPIREAT", KEY, "9000000000000000"]);
    assert_eq!(gateway.get(HASH).await.1["expires_at"], "9999-12-31T23:59:59.999Z");
    set(&gateway, json!({"seconds": null})).await;
    assert_eq!(pttl(server), -1);
    server.cli(&["PEXPIRE", KEY, "1"]);
    eventually("the hash is gone", async || (gateway.get(FIELD).await.0 == 404).then_some(())).await;
}

#[tokio::test]
async fn an_expiry_that_another_client_has_set_is_not_refreshed() {
    let world = World::redis().await;
    let (gateway, server) = (world.gateway().await, world.server());
    refreshed(&gateway).await;
    assert_eq!(server.cli(&["PEXPIRETIME", KEY]), server.cli(&["PEXPIRETIME", REFRESH]));
    // By another client's write neither.
    let before = expires_at(&gateway).await;
    server.cli(&["HSET", KEY, "colour", "blue"]);
    assert_eq!(expiry(&gateway).await, (Some(before), json!(1000)));
    for others in [
        &[&["EXPIREAT", KEY, "4102444800"][..]][..],
        &[&["DEL", KEY], &["HSET", KEY, "colour", "red"], &["EXPIREAT", KEY, "4102444800"]],
        &[&["PERSIST", KEY]],
    ] {
        refreshed(&gateway).await;
        for command in others {
            server.cli(command);
        }
        let before = expiry(&gateway).await;
        assert_eq!(before.1, Value::Null);
        put(&gateway, FIELD, "white").await;
        assert_eq!(expiry(&gateway).await, before);
    }
}

#[tokio::test]
async fn a_key_of_another_type_gets_no_expiry() {
    let world = World::redis().await;
    let (gateway, server) = (world.gateway().await, world.server());
    server.cli(&["SET", KEY, "text"]);
    for seconds in [json!(5), Value::Null] {
        let (status, problem) = gateway.send(expire(&gateway, "lamp", &json!({"seconds": seconds}))).await;
        assert_eq!((status.as_u16(), &problem["code"]), (409, &json!("wrong_type")));
    }
    assert_eq!(pttl(server), -1);
}
