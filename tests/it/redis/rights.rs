//! A gateway with the rights that docs/redis.md lists: they are enough, and it uses all of them.

use std::process::Command;

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::auth::{all, claims, close, token};
use crate::support::{Gateway, World, eventually};

const PAGE: &str = include_str!("../../../docs/redis.md");
/// Commands that the gateway does not use: other programs publish with EVAL.
const FOR_OTHER_PROGRAMS: [&str; 1] = ["eval"];

/// The page's command that creates a user with few rights.
fn acl_command() -> String {
    let start = PAGE.find("redis-cli ACL SETUSER").expect("docs/redis.md has an ACL command");
    PAGE[start..].split("\n```").next().unwrap().replace("\\\n", " ")
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
    let command = acl_command();
    let on_port = command.replacen("redis-cli", &format!("redis-cli -p {}", server.port()), 1);
    let output = Command::new("sh").args(["-c", &on_port]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "OK", "{command}");
    // A removal that is over, and a process that has died: the gateway deletes them.
    server.cli(&["XADD", "roomcast:removals", "1-1", "r", r#"{"user":"nobody","until":1}"#]);
    server.cli(&["SADD", "roomcast:replicas", "dead/00000000"]);
    server.cli(&["CONFIG", "RESETSTAT"]);
    let gateway = world.gateway_with(|settings| {
        close(settings);
        settings.redis.url = Some(url_of_user(server.port()).parse().unwrap());
    });
    let client = TokenClient { gateway: gateway.await, token: full_token() };

    rooms(&client, &world).await;
    hashes(&client).await;
    moderation(&client).await;
    client.send(200, client.request(Method::GET, "/v1/replicas")).await;
    assert_eq!(server.cli(&["SISMEMBER", "roomcast:replicas", "dead/00000000"]), "0");

    // Some commands run only in the background, and a little later.
    let granted = command.split_whitespace().filter_map(|word| word.trim_matches('\'').strip_prefix('+'));
    let granted: Vec<_> = granted.filter(|command| !FOR_OTHER_PROGRAMS.contains(command)).collect();
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
    for path in ["/v1/rooms", "/v1/rooms/lobby", "/v1/rooms/lobby/events", "/v1/rooms/lobby/subscribers"] {
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

async fn hashes(client: &TokenClient) {
    let field = |method: Method, field: &str| client.request(method, &format!("/v1/hashes/lamp/fields/{field}"));
    client.send(201, field(Method::PUT, "colour").header("if-none-match", "*").body("green")).await;
    client.send(200, field(Method::PUT, "colour").body("red")).await;
    client.send(200, field(Method::GET, "colour")).await;
    client.send(200, field(Method::POST, "count/increment").json(&json!({"by": 2}))).await;
    let patch = json!({"colour": null, "level": "3", "other": "x"});
    client.send(200, client.request(Method::PATCH, "/v1/hashes/lamp").json(&patch)).await;
    client.send(204, field(Method::DELETE, "other")).await;
    let fields = client.send(200, client.request(Method::GET, "/v1/hashes/lamp?field=level&field=count")).await;
    assert_eq!(fields["fields"], json!({"count": {"value": "2"}, "level": {"value": "3"}}));
    client.send(200, client.request(Method::GET, "/v1/hashes/lamp")).await;
    client.send(204, client.request(Method::DELETE, "/v1/hashes/lamp")).await;
}

/// Two removals: the first deletes one that is over.
async fn moderation(client: &TokenClient) {
    for (subscriber, deny) in [("watcher", 0), ("member", 600)] {
        let path = format!("/v1/rooms/lobby/subscribers/{subscriber}?deny_seconds={deny}");
        client.send(204, client.request(Method::DELETE, &path)).await;
    }
}
