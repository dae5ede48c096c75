//! The list of hashes.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use super::put;
use crate::auth::{claims, close, token};
use crate::support::{Gateway, World, eventually};

/// Makes hashes, few at a time: a gateway refuses what its broker can't do in time.
async fn make(gateway: &Gateway, names: impl IntoIterator<Item = String>) {
    let names: Vec<_> = names.into_iter().collect();
    for names in names.chunks(20) {
        let puts = names.iter().map(async |name| {
            assert_eq!(put(gateway, &format!("/v1/hashes/{name}/fields/f"), "x").await, 201, "{name}");
        });
        join_all(puts).await;
    }
}

/// The pages of a list, from links alone: their names, and everything that the answers said.
async fn pages(gateway: &Gateway, query: &str, token: Option<&str>) -> (Vec<Vec<String>>, String) {
    let (mut pages, mut said, mut path) = (Vec::new(), String::new(), format!("/v1/hashes?{query}"));
    loop {
        let mut request = gateway.request(Method::GET, &path);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let answer = gateway.answer(request).await;
        assert_eq!(answer.status(), 200, "{path}");
        let link = answer.headers().get("link").map(|link| link.to_str().unwrap().to_owned());
        let body = answer.text().await.unwrap();
        said += &body;
        said += link.as_deref().unwrap_or_default();
        let list: Value = serde_json::from_str(&body).unwrap();
        let hashes = list["hashes"].as_array().unwrap();
        pages.push(hashes.iter().map(|hash| hash["hash"].as_str().unwrap().to_owned()).collect::<Vec<_>>());
        assert_eq!(link.is_some(), list["next"].is_string());
        match link {
            Some(link) => link.split(['<', '>']).nth(1).unwrap().clone_into(&mut path),
            None => return (pages, said),
        }
    }
}

async fn names(gateway: &Gateway, query: &str) -> BTreeSet<String> {
    pages(gateway, query, None).await.0.into_iter().flatten().collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

on_both_brokers! {
    async fn hashes_are_listed_by_prefix_in_pages(world) {
        let gateway = world.gateway().await;
        assert_eq!(gateway.get("/v1/hashes").await.1, json!({"hashes": [], "next": null}));
        let all: BTreeSet<_> = (0..250).map(|n| format!("a.{n}")).collect();
        make(&gateway, all.iter().cloned().chain(["b".into(), "a".into(), "größe:1".into()])).await;
        let (pages, _) = pages(&gateway, "prefix=a.&limit=100", None).await;
        assert_eq!(pages.iter().flatten().cloned().collect::<BTreeSet<_>>(), all);
        assert!(pages.len() > 1 && pages.iter().all(|page| page.is_sorted()), "{pages:?}");
        if world.redis.is_none() {
            assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 50]);
            assert!(pages.concat().is_sorted());
        }
        assert_eq!(names(&gateway, "limit=1000").await.len(), 253);
        assert_eq!(names(&gateway, "prefix=b").await, set(&["b"]));
        assert_eq!(names(&gateway, "prefix=gr%C3%B6").await, set(&["größe:1"]));
        // Nothing in a prefix has a meaning of its own.
        for prefix in ["*", "a*", "?", "[ab]", "%5C", "b%5C", "%25", "{", "}", "b}", "a%20b", "%00", "b/"] {
            assert_eq!(names(&gateway, &format!("prefix={prefix}")).await, set(&[]), "{prefix}");
        }
    }

    async fn a_hash_is_listed_as_long_as_it_exists(world) {
        let gateway = world.gateway().await;
        make(&gateway, ["kept", "deleted", "emptied", "expired"].map(String::from)).await;
        gateway.send(gateway.request(Method::DELETE, "/v1/hashes/deleted")).await;
        gateway.send(gateway.request(Method::DELETE, "/v1/hashes/emptied/fields/f")).await;
        let expire = gateway.request(Method::PUT, "/v1/hashes/expired/expiry").json(&json!({"seconds": 1}));
        assert_eq!(gateway.send(expire).await.0, 204);
        eventually("the hash is gone", async || {
            let listed = names(&gateway, "").await;
            assert!(listed == set(&["expired", "kept"]) || listed == set(&["kept"]), "{listed:?}");
            let is_gone = gateway.get("/v1/hashes/expired/fields/f").await.0 == 404;
            (is_gone && names(&gateway, "").await == set(&["kept"])).then_some(())
        }).await;
    }

    async fn p10_a_list_tells_a_caller_nothing_of_hashes_that_it_may_not_read(world) {
        let gateway = world.gateway_with(close).await;
        let all = token(&claims(&json!({"read": ["*"], "write": ["*"]})));
        let puts = (0..300).flat_map(|n| [format!("hidden.{n}"), format!("open.{n}")]).map(async |name| {
            let request = gateway.request(Method::PUT, &format!("/v1/hashes/{name}/fields/f"));
            gateway.send(request.bearer_auth(&all).body("x")).await
        });
        assert!(join_all(puts).await.iter().all(|(status, _)| *status == 201));
        for grant in [json!(["open.*"]), json!(["x", "open.1*", "open.*", "{sub}"]), Value::Array(
            (0..300).map(|n| json!(format!("open.{n}"))).collect(),
        )] {
            let reader = token(&claims(&json!({"read": grant})));
            for query in ["limit=7", "limit=1000", "prefix=hidden.", "prefix=hid&limit=1", "prefix=open.1&limit=20"] {
                let (pages, said) = pages(&gateway, query, Some(&reader)).await;
                assert!(!said.replace("prefix=hidden", "").contains("hidden"), "{said}");
                let expected = match query {
                    "limit=7" | "limit=1000" => 300,
                    "prefix=open.1&limit=20" => 111,
                    _ => 0,
                };
                assert_eq!(pages.concat().into_iter().collect::<BTreeSet<_>>().len(), expected, "{query}");
            }
        }
        let writer = token(&claims(&json!({"write": ["*"]})));
        let (status, problem) = gateway.send(gateway.request(Method::GET, "/v1/hashes").bearer_auth(writer)).await;
        assert_eq!((status.as_u16(), &problem["code"]), (403, &json!("forbidden")));
    }

    async fn a_list_of_hashes_refuses_what_it_can_not_read(world) {
        let gateway = world.gateway().await;
        make(&gateway, ["a".into()]).await;
        for query in ["limit=0", "limit=1001", "limit=ten", "limit=-1", "x=1", "prefix=a&prefix=b", "after=x",
            "after=99999999999999999999999", "after=-1", "after=1.5", "after=:a", "after=x:a", "after=-1:a", "prefix"] {
            let (status, problem) = gateway.get(&format!("/v1/hashes?{query}")).await;
            assert_eq!((status.as_u16(), &problem["code"]), (400, &json!("invalid_query")), "{query}");
        }
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
            assert_eq!(gateway.send(gateway.request(method, "/v1/hashes").json(&json!({}))).await.0, 405);
        }
    }

    async fn head_answers_as_get_without_the_body(world) {
        let gateway = world.gateway().await;
        put(&gateway, "/v1/hashes/lamp/fields/colour", "green").await;
        let request = |method: Method, path: &str| gateway.request(method, path);
        for (path, status) in [
            ("/v1/hashes", 200), ("/v1/hashes/lamp", 200), ("/v1/hashes/lamp?field=colour", 200), ("/v1/hashes/none", 200),
            ("/v1/hashes/lamp/fields/colour", 200), ("/v1/hashes/lamp/fields/none", 404), ("/v1/hashes?limit=0", 400),
        ] {
            let (head, get) =
                (gateway.answer(request(Method::HEAD, path)).await, gateway.answer(request(Method::GET, path)).await);
            assert_eq!((head.status(), get.status().as_u16()), (get.status(), status), "{path}");
            for name in ["content-length", "content-type", "etag", "link"] {
                assert_eq!(head.headers().get(name), get.headers().get(name), "{path} {name}");
            }
            assert!(head.headers().contains_key("content-length"));
            assert_eq!(head.bytes().await.unwrap(), "");
        }
        let field = "/v1/hashes/lamp/fields/colour";
        let tag = gateway.answer(request(Method::HEAD, field)).await.headers()["etag"].clone();
        for (name, tag, status) in [("if-none-match", &tag, 304), ("if-match", &tag, 200)] {
            assert_eq!(gateway.answer(request(Method::HEAD, field).header(name, tag)).await.status(), status);
        }
        assert_eq!(gateway.answer(request(Method::HEAD, field).header("if-match", "\"x\"")).await.status(), 412);
        let raw = gateway.answer(request(Method::HEAD, field).header("accept", "text/plain")).await;
        assert_eq!((&raw.headers()["content-type"], &raw.headers()["content-length"]),
            (&"text/plain; charset=utf-8".parse().unwrap(), &"5".parse().unwrap()));
    }
}

#[tokio::test]
async fn hashes_of_other_clients_are_listed_and_other_keys_are_not() {
    let world = World::redis().await;
    let (gateway, server) = (world.gateway().await, world.server());
    // Keys of the gateway: a room's, with members, and what belongs to a hash.
    let mut stream = gateway.stream("/v1/rooms/room/stream?subscriber=ann&presence=true").await;
    gateway.publish("room", "x").await;
    while stream.event().await.event != "presence.join" {}
    let put = gateway.request(Method::PUT, "/v1/hashes/own/fields/f").header("idempotency-key", "key").body("x");
    assert_eq!(gateway.send(put).await.0, 201);
    let expire =
        gateway.request(Method::PUT, "/v1/hashes/own/expiry").json(&json!({"seconds": 60, "refresh": true}));
    assert_eq!(gateway.send(expire).await.0, 204);
    server.cli(&["HSET", "roomcast:hash:{theirs}", "f", "x"]);
    for other in [
        "roomcast:hash:{a b}",
        "roomcast:hash:{}",
        "roomcast:hash:{a}}",
        "roomcast:hash:a",
        "other:hash:{a}",
        "roomcast:hash:{a}:x",
        "xroomcast:hash:{a}",
    ] {
        server.cli(&["HSET", other, "f", "x"]);
    }
    server.cli(&["SET", "roomcast:hash:{text}", "x"]);
    assert_eq!(names(&gateway, "").await, set(&["own", "theirs"]));
}

#[tokio::test]
async fn p11_a_list_looks_at_a_bounded_number_of_keys() {
    let world = World::redis().await;
    let (gateway, server) = (world.gateway().await, world.server());
    server.eval("for n = 1, 50000 do redis.call('SET', 'x:' .. n, '') end", &[], &[]);
    server.cli(&["HSET", "roomcast:hash:{rare}", "f", "x"]);
    let calls = || {
        let statistics = server.cli(&["INFO", "commandstats"]);
        let scan = statistics.lines().find_map(|line| line.strip_prefix("cmdstat_scan:calls="));
        scan.map_or(0, |rest| rest.split(',').next().unwrap().parse::<usize>().unwrap())
    };
    let (mut found, mut path, mut count) = (Vec::new(), "/v1/hashes?limit=1000".to_owned(), 0);
    loop {
        let before = calls();
        let list = gateway.get(&path).await.1;
        // Each looks at 1,000 keys.
        assert!(calls() - before <= 10, "{}", calls() - before);
        found.extend(list["hashes"].as_array().unwrap().clone());
        count += 1;
        match list["next"].as_str() {
            Some(next) => path = format!("/v1/hashes?limit=1000&after={next}"),
            None => break,
        }
    }
    assert_eq!((found, count > 3), (vec![json!({"hash": "rare"})], true), "{count} pages");
}
