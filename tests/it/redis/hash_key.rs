//! Hashes under keys of another form, which other programs use.

use reqwest::Method;
use roomcast::config::Settings;
use serde_json::json;

use crate::support::{Watcher, World};

fn with_key(template: &str) -> impl Fn(&mut Settings) {
    move |settings| settings.redis.hash_key = template.parse().unwrap()
}

#[tokio::test]
async fn hashes_of_other_programs_are_shared_under_their_own_keys() {
    let world = World::redis().await;
    let server = world.server();
    server.cli(&["HSET", "user:42", "name", "ann", "visits", "1"]);
    let gateway = world.gateway_with(with_key("user:{hash}")).await;
    let send = async |method: Method, path: &str, body| {
        let request = gateway
            .request(method, &format!("/v1/hashes/42{path}"))
            .header("idempotency-key", format!("key{path}"));
        gateway.send(request.json(&body)).await
    };
    assert_eq!(gateway.get("/v1/hashes/42/fields/name").await.1["value"], "ann");
    assert_eq!(send(Method::POST, "/fields/visits/increment", json!({"by": 2})).await.1["value"], "3");
    assert_eq!(send(Method::PATCH, "", json!({"city": "Bonn"})).await.0, 200);
    assert_eq!(send(Method::PUT, "/expiry", json!({"seconds": 100, "refresh": true})).await.0, 204);
    assert_eq!(server.cli(&["HMGET", "user:42", "name", "visits", "city"]), "ann\n3\nBonn");
    assert_eq!(gateway.get("/v1/hashes").await.1["hashes"], json!([{"hash": "42"}]));
    assert_eq!(gateway.get("/v1/hashes?prefix=4").await.1["hashes"], json!([{"hash": "42"}]));
    assert_eq!(gateway.get("/v1/hashes?prefix=5").await.1["hashes"], json!([]));
    // All else that belongs to the hash is under the prefix, in the slot of the hash's key.
    let keys = server.cli(&["KEYS", "*42*"]);
    let mut keys: Vec<_> = keys.lines().map(|key| key.split(":once:").next().unwrap()).collect();
    keys.sort_unstable();
    let own = "roomcast:hash:{user:42}";
    assert_eq!(keys, [own, own, own, &format!("{own}:refresh"), "user:42"]);
    assert_eq!(server.cli(&["EXPIRETIME", "user:42"]), server.cli(&["EXPIRETIME", &format!("{own}:refresh")]));
    assert_eq!(gateway.send(gateway.request(Method::DELETE, "/v1/hashes/42")).await.0, 204);
    assert_eq!(server.cli(&["EXISTS", "user:42", &format!("{own}:refresh")]), "0");
}

#[tokio::test]
async fn a_user_without_the_right_to_notifications_compares_hashes_and_serves_rooms() {
    let world = World::redis().await;
    let server = world.server();
    server.cli(&["CONFIG", "SET", "notify-keyspace-events", "KA"]);
    // The rights to the channels of the prefix do not extend to the keys of other programs.
    server.cli(&["ACL", "SETUSER", "default", "resetchannels", "&roomcast:*", "&__keyspace@*__:roomcast:*"]);
    let gateway = world.gateway_with(with_key("user:{hash}")).await;
    let mut watcher = Watcher::new("42");
    watcher.open(&gateway.url).await;
    let mut room = gateway.room("a").await;
    server.cli(&["HSET", "user:42", "name", "ann"]);
    watcher.until_value("name", "ann").await;
    gateway.publish("a", "x").await;
    assert_eq!(room.data().await, "x");
    assert_eq!(gateway.get("/healthz").await.1["keyspace_notifications"], false);
}

#[tokio::test]
async fn names_of_hashes_reach_no_other_key_of_the_gateway() {
    const HOSTILE: [&str; 9] = [
        "roomcast:replicas",
        "roomcast:data-set",
        "roomcast:removals",
        "replicas",
        "data-set",
        "hash:a",
        "a:log",
        ":replicas",
        "..:roomcast:control",
    ];
    let world = World::redis().await;
    let server = world.server();
    for template in
        ["x{hash}", "{prefix}:hash:{hash}", "{prefix}:hash:{{hash}}", "{{hash}}:x", "{prefix}:hash:x{hash}"]
    {
        assert_eq!(check(template), Ok(()));
        let gateway = world.gateway_with(with_key(template)).await;
        gateway.publish("a", "x").await;
        for name in HOSTILE {
            let put = gateway.request(Method::PUT, &format!("/v1/hashes/{name}/fields/f")).body("x");
            assert_eq!(gateway.send(put).await.0, 201, "{template} {name}");
            assert_eq!(gateway.send(gateway.request(Method::DELETE, &format!("/v1/hashes/{name}"))).await.0, 204);
        }
        gateway.until_well().await;
        assert_eq!(gateway.get("/v1/rooms/a/events").await.0, 200);
        assert_eq!(server.cli(&["TYPE", "roomcast:replicas"]), "set");
    }
}

fn check(template: &str) -> Result<(), String> {
    let mut settings = Settings::defaults();
    with_key(template)(&mut settings);
    settings.check().map_err(|error| error.to_string())
}

#[test]
fn a_key_that_could_be_another_key_of_the_gateway_is_refused_at_the_start() {
    for template in ["{prefix}:hash:{{hash}}", "{prefix}:hash:{hash}", "{prefix}-user:{hash}", "user:{hash}:v1"] {
        assert_eq!(check(template), Ok(()), "{template}");
    }
    for template in [
        "{hash}",
        "{hash}:x",
        "room{hash}",
        "{prefix}{hash}",
        "{prefix}:{hash}",
        "{prefix}:{{hash}}:log",
        "roomcast:replica:{hash}",
        "roomcast:{hash}",
        "{prefix}:hash:{{hash}}:once:x",
        "{prefix}:has{hash}",
    ] {
        let error = check(template).unwrap_err();
        assert!(error.contains("--hash-key") && error.contains("\"roomcast:\""), "{template}: {error}");
    }
}
