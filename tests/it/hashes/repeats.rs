//! Safe repeats of writes to hashes: a repeated write with the same `Idempotency-Key` gets the same answer and has no
//! second effect.

use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use super::put;
use crate::auth::{all, claims, close, token};
use crate::support::{Gateway, Replica, World, eventually, values_of};

const HASH: &str = "/v1/hashes/lamp";
const EXPIRY: &str = "/v1/hashes/lamp/expiry";
const FIELD: &str = "/v1/hashes/lamp/fields/colour";

/// An answer: status, entity tag, body, and whether it is a replay.
type Answer = (u16, Option<String>, Value, bool);

async fn send(gateway: &Gateway, request: RequestBuilder) -> Answer {
    let answer = gateway.answer(request).await;
    let text = |headers: &HeaderMap, name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let tag = text(answer.headers(), "etag");
    let is_replayed = text(answer.headers(), "idempotency-replayed").is_some_and(|value| value == "true");
    let status = answer.status().as_u16();
    (status, tag, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or_default(), is_replayed)
}

/// Every kind of write, each with a key of its own.
fn writes(gateway: &Gateway) -> [RequestBuilder; 9] {
    let request =
        |method: Method, path: &str, key: &str| gateway.request(method, path).header("idempotency-key", key);
    [
        request(Method::PUT, FIELD, "put").body("green"),
        request(Method::PUT, "/v1/hashes/lamp/fields/size", "put-size").header("if-none-match", "*").body("3"),
        request(Method::POST, "/v1/hashes/lamp/fields/size/increment", "add").json(&json!({"by": 2})),
        request(Method::PATCH, HASH, "merge").json(&json!({"colour": "red", "size": null, "new": "x"})),
        request(Method::PATCH, HASH, "patch")
            .header("content-type", "application/json-patch+json")
            .body(r#"[{"op":"test","path":"/new","value":"x"},{"op":"move","from":"/new","path":"/moved"}]"#),
        request(Method::PUT, EXPIRY, "expire").json(&json!({"seconds": 100, "refresh": true})),
        request(Method::DELETE, FIELD, "delete").header("if-match", "*"),
        request(Method::PUT, EXPIRY, "persist").json(&json!({"seconds": null})),
        request(Method::DELETE, HASH, "clear"),
    ]
}

on_both_brokers! {
    async fn p6_a_repeated_write_has_the_same_answer_and_no_second_effect(world) {
        let gateway = world.gateway().await;
        let mut answers = Vec::new();
        for write in writes(&gateway) {
            let repeated = write.try_clone().unwrap();
            let (status, tag, body, replayed) = send(&gateway, write).await;
            assert!((200..300).contains(&status) && !replayed, "{status} {body}");
            let before = gateway.get(HASH).await.1;
            assert_eq!(send(&gateway, repeated).await, (status, tag.clone(), body.clone(), true));
            assert_eq!(gateway.get(HASH).await.1, before);
            answers.push((status, tag, body, true));
        }
        let statuses: Vec<_> = answers.iter().map(|answer| answer.0).collect();
        assert_eq!(statuses, [201, 201, 200, 200, 200, 204, 204, 204, 204]);
        assert_eq!(answers[2].2["value"], "5");
        assert_eq!(answers[3].2, json!({"hash": "lamp", "created": 1, "replaced": 1, "removed": 1}));
        // Whatever the hash has become since, and whether or not the condition would hold now.
        put(&gateway, "/v1/hashes/lamp/fields/other", "y").await;
        let before = gateway.get(HASH).await.1;
        for (write, answer) in writes(&gateway).into_iter().zip(answers) {
            assert_eq!(send(&gateway, write).await, answer);
        }
        assert_eq!(gateway.get(HASH).await.1, before);
    }

    async fn p6_the_same_key_for_another_write_is_refused(world) {
        let gateway = world.gateway().await;
        let request = |method: Method, path: &str| gateway.request(method, path).header("idempotency-key", "key");
        let put = || request(Method::PUT, FIELD).header("if-none-match", "*").body("5");
        assert_eq!(send(&gateway, put()).await.0, 201);
        for other in [
            request(Method::PUT, FIELD).header("if-none-match", "*").body("6"),
            request(Method::PUT, FIELD).body("5"),
            request(Method::PUT, FIELD).header("if-match", "\"5\"").body("5"),
            request(Method::PUT, "/v1/hashes/lamp/fields/other").header("if-none-match", "*").body("5"),
            request(Method::POST, &format!("{FIELD}/increment")).header("if-none-match", "*").json(&json!({"by": 5})),
            request(Method::PATCH, HASH).json(&json!({"colour": "5"})),
            request(Method::DELETE, FIELD),
            request(Method::DELETE, HASH),
            request(Method::PUT, EXPIRY).json(&json!({"seconds": 5})),
        ] {
            let (status, _, problem, replayed) = send(&gateway, other).await;
            assert_eq!((status, &problem["code"], replayed), (422, &json!("idempotency_key_reused"), false));
        }
        let expire = |expiry: Value| gateway.request(Method::PUT, EXPIRY).header("idempotency-key", "expiry").json(&expiry);
        assert_eq!(send(&gateway, expire(json!({"seconds": 50}))).await.0, 204);
        for other in [json!({"seconds": 5}), json!({"seconds": null}), json!({"seconds": 50, "refresh": true})] {
            assert_eq!(send(&gateway, expire(other)).await.0, 422);
        }
        assert!(send(&gateway, expire(json!({"seconds": 50, "refresh": false}))).await.3);
        // The same value in another form is the same content.
        let same = request(Method::PUT, FIELD).header("if-none-match", "*").json(&json!({"value_base64": "NQ=="}));
        assert!(send(&gateway, same).await.3);
        assert_eq!(gateway.get(FIELD).await.1["value"], "5");
    }

    async fn p6_a_refused_write_does_not_use_up_its_key(world) {
        let gateway = world.gateway().await;
        let request = |method: Method, path: &str, key: &str| gateway.request(method, path).header("idempotency-key", key);
        let increment = format!("{FIELD}/increment");
        let refused = || [
            (412, request(Method::PUT, FIELD, "put").header("if-match", "*").body("7")),
            (404, request(Method::DELETE, FIELD, "delete")),
            (404, request(Method::DELETE, HASH, "clear")),
            (404, request(Method::PUT, EXPIRY, "expire").json(&json!({"seconds": 60}))),
            (412, request(Method::POST, &increment, "add").header("if-match", "*").json(&json!({"by": 1}))),
            (409, request(Method::PATCH, HASH, "patch").header("content-type", "application/json-patch+json")
                .body(r#"[{"op":"replace","path":"/colour","value":"8"}]"#)),
        ];
        for (expected, write) in refused() {
            assert_eq!(send(&gateway, write).await.0, expected);
        }
        for (_, write) in refused() {
            put(&gateway, FIELD, "1").await;
            let repeated = write.try_clone().unwrap();
            let (status, .., replayed) = send(&gateway, write).await;
            assert!((200..300).contains(&status) && !replayed, "{status}");
            assert!(send(&gateway, repeated).await.3);
        }
        put(&gateway, FIELD, "green").await;
        let add = || request(Method::POST, &increment, "number").json(&json!({"by": 1}));
        assert_eq!(send(&gateway, add()).await.0, 409);
        put(&gateway, FIELD, "41").await;
        assert_eq!(send(&gateway, add()).await.2["value"], "42");
    }

    async fn p6_a_key_stands_for_one_hash_and_one_caller(world) {
        let gateway = world.gateway_with(close).await;
        let user = |name: &str| {
            let mut claims = claims(&all());
            claims["sub"] = json!(name);
            token(&claims)
        };
        let add = |hash: &str, user: String| {
            let request = gateway.request(Method::POST, &format!("/v1/hashes/{hash}/fields/n/increment")).bearer_auth(user);
            send(&gateway, request.header("idempotency-key", "key").json(&json!({"by": 1})))
        };
        // A room of the same name has keys of its own.
        let publish = gateway.request(Method::POST, "/v1/rooms/a/events").bearer_auth(user("ann"));
        assert_eq!(send(&gateway, publish.header("idempotency-key", "key").body("x")).await.0, 201);
        for (hash, name, sum) in [("a", "ann", "1"), ("b", "ann", "1"), ("a", "bob", "2")] {
            let (status, _, body, replayed) = add(hash, user(name)).await;
            assert_eq!((status, &body["value"], replayed), (200, &json!(sum), false));
        }
        let (_, _, body, replayed) = add("a", user("ann")).await;
        assert_eq!((&body["value"], replayed), (&json!("1"), true));
    }

    async fn p6_simultaneous_increments_with_one_key_add_once(world) {
        let gateway = world.gateway().await;
        let add = || {
            let request = gateway.request(Method::POST, "/v1/hashes/met/fields/n/increment").header("idempotency-key", "k");
            send(&gateway, request.json(&json!({"by": 1})))
        };
        let answers = futures_util::future::join_all((0..30).map(|_| add())).await;
        assert!(answers.iter().all(|(status, _, body, _)| *status == 200 && body["value"] == "1"));
        assert_eq!(answers.iter().filter(|(.., replayed)| !replayed).count(), 1);
        assert_eq!(gateway.get("/v1/hashes/met/fields/n").await.1["value"], "1");
    }

    async fn p6_the_key_of_a_write_is_forgotten_after_the_window(world) {
        let gateway = world.gateway_with(|settings| settings.retention.idempotency_window = Duration::from_secs(1)).await;
        let add = || {
            let request = gateway.request(Method::POST, "/v1/hashes/window/fields/n/increment").header("idempotency-key", "k");
            send(&gateway, request.json(&json!({"by": 1})))
        };
        assert_eq!(add().await.2["value"], "1");
        eventually("the key is forgotten", async || {
            let (_, _, body, replayed) = add().await;
            assert_eq!(body["value"], if replayed { "1" } else { "2" });
            (!replayed).then_some(())
        }).await;
    }

    async fn p6_a_replayed_answer_is_as_long_as_the_client_prefers(world) {
        let gateway = world.gateway().await;
        let put = || gateway.request(Method::PUT, FIELD).header("idempotency-key", "k").body("green");
        let (_, tag, ..) = send(&gateway, put()).await;
        assert_eq!(send(&gateway, put().header("prefer", "return=minimal")).await, (201, tag, Value::Null, true));
    }
}

#[tokio::test]
async fn p6_the_key_of_a_write_holds_on_another_replica_and_has_no_value() {
    let world = World::redis().await;
    let (one, two) = (world.gateway().await, world.gateway().await);
    let put = |gateway: &Gateway| {
        gateway.request(Method::PUT, FIELD).header("idempotency-key", "my-secret-key").body("my-value")
    };
    let first = send(&one, put(&one)).await;
    let (status, tag, body, replayed) = send(&two, put(&two)).await;
    assert_eq!(((status, tag, body), replayed), ((first.0, first.1, first.2), true));
    let server = world.server();
    let keys = server.cli(&["KEYS", "*"]);
    let stored = keys.lines().find(|key| key.starts_with("roomcast:hash:{lamp}:once:")).expect("a key of the hash");
    let content = server.cli(&["GET", stored]);
    assert!(!keys.contains("my-secret-key") && !content.contains("my-value") && content.len() < 60, "{content}");
    let lifetime: i64 = server.cli(&["PTTL", stored]).parse().unwrap();
    assert!((1..=300_000).contains(&lifetime), "{lifetime}");
}

#[tokio::test]
async fn p6_the_key_of_a_write_survives_a_restart_with_a_data_folder() {
    let folder = tempfile::tempdir().unwrap();
    let client = reqwest::Client::new();
    let add = async |replica: &Replica| {
        let request = client.post(format!("{}/v1/hashes/h/fields/n/increment", replica.url()));
        let answer = request.header("idempotency-key", "k").json(&json!({"by": 1.5})).send().await.unwrap();
        let replayed = answer.headers().contains_key("idempotency-replayed");
        (answer.json::<Value>().await.unwrap()["value"].clone(), replayed)
    };
    let mut replica = Replica::start_on(folder.path(), &[]);
    assert_eq!(add(&replica).await, (json!("1.5"), false));
    replica.kill();
    let replica = Replica::start_on(folder.path(), &[]);
    assert_eq!(add(&replica).await, (json!("1.5"), true));
}

#[tokio::test]
async fn p8_a_broker_that_holds_too_much_still_deletes_fields_and_hashes() {
    let folder = tempfile::tempdir().unwrap();
    let client = reqwest::Client::new();
    let request =
        |method: Method, replica: &Replica, path: &str| client.request(method, format!("{}{path}", replica.url()));
    let status = async |request: RequestBuilder| request.send().await.unwrap().status().as_u16();
    let value = "x".repeat(1000);
    let mut replica = Replica::start_on(folder.path(), &[]);
    let fields: Value = (0..200).map(|n| (format!("f{n}"), json!(value))).collect();
    for path in ["/v1/hashes/a", "/v1/hashes/b", "/v1/hashes/c"] {
        assert_eq!(status(request(Method::PATCH, &replica, path).json(&fields)).await, 200);
    }
    replica.kill();
    let replica = Replica::start_on(folder.path(), &["--embedded-max-bytes", "65536"]);
    let put = request(Method::PUT, &replica, "/v1/hashes/a/fields/f0");
    assert_eq!(status(put.body("y")).await, 503);
    let merge = request(Method::PATCH, &replica, "/v1/hashes/a").json(&json!({"f1": null}));
    assert_eq!(status(merge).await, 200);
    for (n, path) in ["/v1/hashes/a/fields/f2", "/v1/hashes/a"].into_iter().enumerate() {
        let delete = || request(Method::DELETE, &replica, path).header("idempotency-key", format!("key-{n}"));
        assert_eq!(status(delete()).await, 204);
        assert_eq!(status(delete()).await, 204);
    }
    assert_eq!(status(request(Method::DELETE, &replica, "/v1/hashes/b/fields/f0")).await, 204);
    assert_eq!(status(request(Method::DELETE, &replica, "/v1/hashes/b")).await, 204);
}

#[tokio::test]
async fn p6_a_full_redis_remembers_no_write_that_it_refuses() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    let server = world.server();
    put(&gateway, FIELD, "1").await;
    server.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let writes = || {
        let request =
            |method: Method, path: &str, key: &str| gateway.request(method, path).header("idempotency-key", key);
        [
            request(Method::PUT, FIELD, "put").body("2"),
            request(Method::POST, &format!("{FIELD}/increment"), "add").json(&json!({"by": 1})),
            request(Method::PATCH, HASH, "patch").json(&json!({"colour": null, "new": "x"})),
        ]
    };
    for write in writes() {
        let (status, _, problem, _) = send(&gateway, write).await;
        assert_eq!((status, &problem["code"]), (503, &json!("out_of_memory")));
    }
    assert_eq!(values_of(&gateway.get(HASH).await.1), json!({"colour": {"value": "1"}}));
    server.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    for write in writes() {
        let (status, .., replayed) = send(&gateway, write).await;
        assert_eq!((status, replayed), (200, false));
    }
}
