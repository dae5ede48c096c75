//! A gateway with the rights that docs/redis.md lists: they are enough, and it uses all of them.

use std::process::Command;

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::auth::{all, claims, close, token};
use crate::support::{Gateway, RedisServer, World, eventually, values_of};

const PAGE: &str = include_str!("../../../docs/redis.md");
/// Commands that the gateway does not use: other programs publish with EVAL.
const FOR_OTHER_PROGRAMS: [&str; 1] = ["eval"];

/// The page's command that creates a user with few rights.
fn acl_command() -> String {
    let start = PAGE.find("redis-cli ACL SETUSER").expect("docs/redis.md has an ACL command");
    PAGE[start..].split("\n```").next().unwrap().replace("\\\n", " ")
}

/// Creates that user. Returns the page's command.
fn create_user(server: &RedisServer) -> String {
    let command = acl_command();
    let on_port = command.replacen("redis-cli", &format!("redis-cli -p {}", server.port()), 1);
    let output = Command::new("sh").args(["-c", &on_port]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "OK", "{command}");
    command
}

/// The commands that the user may run.
fn granted(command: &str) -> impl Iterator<Item = &str> {
    command.split_whitespace().filter_map(|word| word.trim_matches('\'').strip_prefix('+'))
}

/// Stores a removal with this id, that is in force until this time in milliseconds since 1970.
fn add_removal(server: &RedisServer, id: &str, until: u64) {
    let removal = json!({"user": "nobody", "until": until}).to_string();
    server.cli(&["XADD", "roomcast:removals", id, "r", &removal]);
    server.cli(&["ZADD", "roomcast:removals:ends", &until.to_string(), id]);
}

/// The page's URL for that user, on another port.
fn url_of_user(port: u16) -> String {
    let (_, rest) = PAGE.split_once("ROOMCAST_REDIS_URL=").expect("docs/redis.md has the user's URL");
    let (url, _) = rest.split_once(":6379").unwrap();
    format!("{url}:{port}")
}

/// A token that allows everything.
fn full_token() -> String {
    let mut grants = all();
    grants["admin"] = json!(true);
    token(&claims(&grants))
}

/// A gateway, and a token for its requests.
struct TokenClient {
    gateway: Gateway,
    token: String,
}

impl TokenClient {
    /// A closed gateway that connects to Redis as that user.
    async fn start(world: &World) -> Self {
        let gateway = world.gateway_with(|settings| {
            close(settings);
            settings.redis.url = Some(url_of_user(world.server().port()).parse().unwrap());
        });
        Self { gateway: gateway.await, token: full_token() }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.gateway.request(method, path).bearer_auth(&self.token)
    }

    async fn send(&self, status: u16, request: RequestBuilder) -> Value {
        let (answer, body) = self.gateway.send(request).await;
        assert_eq!(answer.as_u16(), status, "{body}");
        body
    }

    async fn publish(&self, text: &str) -> String {
        let request = self.request(Method::POST, "/v1/rooms/lobby/events").body(text.to_owned());
        self.send(201, request).await["id"].as_str().unwrap().to_owned()
    }

    fn stream_path(&self, query: &str) -> String {
        format!("/v1/rooms/lobby/stream?access_token={}&{query}", self.token)
    }
}

#[tokio::test]
async fn a_gateway_needs_the_documented_rights_and_no_others() {
    let world = World::redis().await;
    let server = world.server();
    let command = create_user(server);
    // A removal that is over, and a process that has died: the gateway deletes them.
    add_removal(server, "1-1", 1);
    server.cli(&["SADD", "roomcast:replicas", "dead/00000000"]);
    server.cli(&["CONFIG", "RESETSTAT"]);
    let client = TokenClient::start(&world).await;

    rooms(&client, &world).await;
    hashes(&client, server).await;
    moderation(&client).await;
    client.send(200, client.request(Method::GET, "/v1/replicas")).await;
    assert_eq!(server.cli(&["SISMEMBER", "roomcast:replicas", "dead/00000000"]), "0");

    // Some commands run only in the background, and a little later.
    let granted: Vec<_> = granted(&command).filter(|command| !FOR_OTHER_PROGRAMS.contains(command)).collect();
    assert!(granted.len() > 30, "{granted:?}");
    eventually("all granted commands have run", async || {
        let statistics = server.cli(&["INFO", "commandstats"]);
        let has_run = |command: &&str| {
            let lines = statistics.lines().filter_map(|line| line.strip_prefix("cmdstat_")?.strip_prefix(*command));
            lines.into_iter().any(|rest| rest.starts_with([':', '|']))
        };
        granted.iter().all(has_run).then_some(())
    })
    .await;
    assert_eq!(client.gateway.get("/healthz").await.0.as_u16(), 200);
    assert_eq!(server.cli(&["ACL", "LOG"]), "", "refused commands");
}

/// Publishes, reads, streams, presence, and what repairs a log.
async fn rooms(client: &TokenClient, world: &World) {
    let server = world.server();
    let publish = || {
        let request = client.request(Method::POST, "/v1/rooms/lobby/events").header("idempotency-key", "once");
        client.send(201, request.body("first"))
    };
    let first = publish().await["id"].as_str().unwrap().to_owned();
    assert_eq!(publish().await["id"], first.as_str());
    let mut watcher = client.gateway.stream(&client.stream_path("subscriber=watcher&presence=true")).await;
    assert_eq!(watcher.event().await.event, "presence.join");
    client.publish("second").await;
    assert_eq!(watcher.data().await, "second");
    let mut resumed = client.gateway.resume(&client.stream_path("subscriber=member"), Some(&first)).await;
    assert_eq!(resumed.opened["rooms"]["lobby"]["resume"], "complete");
    while resumed.data().await != "second" {}
    for path in [
        "/v1/rooms",
        "/v1/rooms/unwritten",
        "/v1/rooms/unwritten/events?after=1790000000000000-0",
        "/v1/rooms/lobby",
        "/v1/rooms/lobby/events",
        "/v1/rooms/lobby/subscribers",
    ] {
        client.send(200, client.request(Method::GET, path)).await;
    }
    // Another client's entry: the next event begins an epoch above it. Without a head, the log is emptied.
    let taken = first.replace("-1", "-99");
    server.cli(&["XADD", "roomcast:{lobby}:log", &taken, "e", "x"]);
    client.publish("above").await;
    server.cli(&["DEL", "roomcast:{lobby}:head"]);
    // Bytes and age are checked with every sixteenth event.
    for count in 0..16 {
        client.publish(&count.to_string()).await;
    }
    client.send(204, client.request(Method::DELETE, "/v1/rooms/lobby/events")).await;
}

async fn hashes(client: &TokenClient, server: &RedisServer) {
    let field = |method: Method, field: &str| client.request(method, &format!("/v1/hashes/lamp/fields/{field}"));
    client.send(201, field(Method::PUT, "colour").header("if-none-match", "*").body("green")).await;
    client.send(200, field(Method::PUT, "colour").body("red")).await;
    client.send(200, field(Method::GET, "colour")).await;
    client.send(200, field(Method::POST, "count/increment").json(&json!({"by": 2}))).await;
    let patch = json!({"colour": null, "level": "3", "other": "x"});
    client.send(200, client.request(Method::PATCH, "/v1/hashes/lamp").json(&patch)).await;
    let patch =
        client.request(Method::PATCH, "/v1/hashes/lamp").header("content-type", "application/json-patch+json");
    let operations = json!([
        {"op": "test", "path": "/other", "value": "x"}, {"op": "copy", "from": "/other", "path": "/copied"},
        {"op": "remove", "path": "/copied"},
    ]);
    client.send(200, patch.header("idempotency-key", "patch").body(operations.to_string())).await;
    client.send(204, field(Method::DELETE, "other").header("idempotency-key", "delete")).await;
    let fields = client.send(200, client.request(Method::GET, "/v1/hashes/lamp?field=level&field=count")).await;
    assert_eq!(values_of(&fields), json!({"count": {"value": "2"}, "level": {"value": "3"}}));
    client.send(200, client.request(Method::GET, "/v1/hashes/lamp")).await;
    client.send(200, client.request(Method::GET, "/v1/hashes")).await;
    for expiry in [json!({"seconds": 60, "refresh": true}), json!({"seconds": null})] {
        client.send(204, client.request(Method::PUT, "/v1/hashes/lamp/expiry").json(&expiry)).await;
    }
    client.send(204, client.request(Method::DELETE, "/v1/hashes/lamp")).await;
    // A hash that is watched, in which another client writes.
    let stream = format!("/v1/hashes/watched/stream?access_token={}", client.token);
    let mut watcher = client.gateway.stream(&stream).await;
    assert_eq!(watcher.event().await.event, "hash.snapshot");
    let colour = |method: Method| client.request(method, "/v1/hashes/watched/fields/colour");
    client.send(201, colour(Method::PUT).body("green")).await;
    client.send(204, colour(Method::DELETE)).await;
    server.cli(&["HSET", "roomcast:hash:{watched}", "colour", "red"]);
    for event in ["hash.set", "hash.delete", "hash.set"] {
        assert_eq!(watcher.event().await.event, event);
    }
    // A hash that is full.
    let fill = "for n = 1, 100000 do redis.call('HSET', KEYS[1], n, '') end";
    server.cli(&["EVAL", fill, "1", "roomcast:hash:{lamp}"]);
    client.send(409, field(Method::PUT, "colour").body("green")).await;
    client.send(204, client.request(Method::DELETE, "/v1/hashes/lamp")).await;
}

/// Two removals: the first deletes one that is over.
async fn moderation(client: &TokenClient) {
    for (subscriber, deny) in [("watcher", 0), ("member", 600)] {
        let path = format!("/v1/rooms/lobby/subscribers/{subscriber}?deny_seconds={deny}");
        client.send(204, client.request(Method::DELETE, &path)).await;
    }
}

/// Digests of all keys but those that the gateway writes in the background, and rate limits.
const SNAPSHOT: &str = "
    local found = {}
    for _, key in ipairs(redis.call('KEYS', 'roomcast:*')) do
      local kind = string.match(key, '^roomcast:(%l+)')
      if kind ~= 'probe' and kind ~= 'rate' and kind ~= 'replica' and kind ~= 'replicas' then
        table.insert(found, key .. ' ' .. redis.sha1hex(redis.call('DUMP', key)))
      end
    end
    table.sort(found)
    return table.concat(found, '\\n')";

#[tokio::test]
async fn a_write_that_is_refused_for_a_missing_right_has_changed_nothing() {
    let world = World::redis().await;
    let server = world.server();
    let command = create_user(server);
    let client = TokenClient::start(&world).await;
    let (post, put, patch, delete) = (Method::POST, Method::PUT, Method::PATCH, Method::DELETE);
    let request = |method: &Method, path: &str| client.request(method.clone(), path);
    let mut refusals = 0;
    let stream = format!("/v1/hashes/watched/stream?access_token={}", client.token);
    let _watcher = client.gateway.stream(&stream).await;
    for right in granted(&command).filter(|right| !right.contains('|')) {
        add_removal(server, &format!("{}-1", refusals + 1), 1);
        client.publish("before").await;
        for hash in ["lamp", "watched"] {
            let route = format!("/v1/hashes/{hash}");
            client.send(200, request(&patch, &route).json(&json!({"colour": "green", "old": "x"}))).await;
        }
        for (n, write) in [
            request(&post, "/v1/rooms/lobby/events").header("idempotency-key", right).body("hello"),
            request(&delete, "/v1/rooms/lobby/events"),
            request(&patch, "/v1/hashes/lamp").json(&json!({"colour": "red", "old": null})),
            request(&patch, "/v1/hashes/watched").json(&json!({"colour": "red", "old": null})),
            request(&put, "/v1/hashes/watched/fields/colour").header("if-match", "*").body("blue"),
            request(&post, "/v1/hashes/watched/fields/count/increment").json(&json!({"by": 1})),
            request(&delete, "/v1/hashes/watched/fields/colour"),
            request(&delete, "/v1/hashes/watched"),
            request(&put, "/v1/hashes/lamp/fields/colour").header("if-match", "*").body("blue"),
            request(&post, "/v1/hashes/lamp/fields/count/increment").json(&json!({"by": 1})),
            request(&post, "/v1/hashes/lamp/fields/count/increment")
                .header("idempotency-key", right)
                .json(&json!({"by": 0.5})),
            request(&patch, "/v1/hashes/lamp")
                .header("content-type", "application/json-patch+json")
                .header("idempotency-key", &format!("{right}-patch"))
                .body(r#"[{"op":"copy","from":"/colour","path":"/new"},{"op":"remove","path":"/colour"}]"#),
            request(&put, "/v1/hashes/lamp/fields/colour")
                .header("idempotency-key", &format!("{right}-put"))
                .body("black"),
            request(&delete, "/v1/hashes/lamp/fields/colour").header("idempotency-key", &format!("{right}-delete")),
            request(&delete, "/v1/hashes/lamp").header("idempotency-key", &format!("{right}-clear")),
            request(&patch, "/v1/hashes/lamp").json(&json!({"colour": "green", "old": "x"})),
            request(&put, "/v1/hashes/lamp/fields/new").header("if-none-match", "*").body("x"),
            request(&put, "/v1/hashes/lamp/expiry").json(&json!({"seconds": 60})),
            request(&put, "/v1/hashes/lamp/expiry")
                .header("idempotency-key", &format!("{right}-expire"))
                .json(&json!({"seconds": 60, "refresh": true})),
            request(&delete, "/v1/hashes/lamp/fields/old"),
            request(&put, "/v1/hashes/lamp/expiry").json(&json!({"seconds": null})),
            request(&patch, "/v1/hashes/lamp").json(&json!({"colour": "green"})),
            request(&delete, "/v1/hashes/lamp/fields/colour"),
            request(&delete, "/v1/hashes/lamp"),
            request(&delete, "/v1/users/nobody/streams"),
        ]
        .into_iter()
        .enumerate()
        {
            let before = server.eval(SNAPSHOT, &[], &[]);
            server.cli(&["ACL", "SETUSER", "roomcast", &format!("-{right}")]);
            let (status, body) = client.gateway.send(write).await;
            server.cli(&["ACL", "SETUSER", "roomcast", &format!("+{right}")]);
            if status.is_server_error() {
                refusals += 1;
                assert_eq!((status.as_u16(), &body["code"]), (503, &json!("unavailable")), "{right}, {n}: {body}");
                assert_eq!(server.eval(SNAPSHOT, &[], &[]), before, "{right}, {n}");
            }
        }
        client.gateway.until_well().await;
    }
    assert!(refusals > 20, "{refusals} refusals");
}

#[tokio::test]
async fn removals_that_are_over_are_deleted_behind_many_that_are_in_force() {
    let world = World::redis().await;
    let server = world.server();
    for n in 1..=150 {
        add_removal(server, &format!("{n}-1"), 99_999_999_999_999);
    }
    for n in 151..=170 {
        add_removal(server, &format!("{n}-1"), n);
    }
    let gateway = world.gateway().await;
    for stored in 151..=153 {
        let request = gateway.request(Method::DELETE, "/v1/users/ann/streams?deny_seconds=600");
        assert_eq!(gateway.send(request).await.0.as_u16(), 204);
        assert_eq!(server.cli(&["XLEN", "roomcast:removals"]), stored.to_string());
    }
}
