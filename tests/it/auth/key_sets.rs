//! Keys that change without a restart: a JWKS in a file, and a JWKS at a URL.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use jsonwebtoken::jwk::{CommonParameters, Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use reqwest::Method;
use serde_json::{Value, json};

use super::{RSA, ask, at};
use crate::cli::refuses;
use crate::support::{Gateway, eventually, spawn};

const EC: &str = include_str!("keys/ec.key.pem");

/// A key set with the public half of one key, with this id.
fn set(id: &str, algorithm: Algorithm, key: &EncodingKey) -> String {
    let jwk = Jwk::from_encoding_key(key, algorithm).unwrap();
    let jwk = Jwk { common: CommonParameters { key_id: Some(id.into()), ..jwk.common }, ..jwk };
    serde_json::to_string(&JwkSet { keys: vec![jwk] }).unwrap()
}

/// A token that says that the key with this id has signed it.
fn token_with_kid(id: &str, algorithm: Algorithm, key: &EncodingKey) -> String {
    let header = Header { kid: Some(id.into()), ..Header::new(algorithm) };
    encode(&header, &json!({"exp": at(600), "roomcast": {"read": ["*"]}}), key).unwrap()
}

fn rsa() -> EncodingKey {
    EncodingKey::from_rsa_pem(RSA.as_bytes()).unwrap()
}

fn ec() -> EncodingKey {
    EncodingKey::from_ec_pem(EC.as_bytes()).unwrap()
}

fn ed() -> EncodingKey {
    EncodingKey::from_ed_pem(include_bytes!("keys/ed.key.pem")).unwrap()
}

/// A token of this issuer, signed with this key.
fn token_of(issuer: Option<&str>, algorithm: Algorithm, key: &EncodingKey) -> String {
    let mut claims = json!({"exp": at(600), "roomcast": {"read": ["*"]}});
    if let Some(issuer) = issuer {
        claims["iss"] = json!(issuer);
    }
    encode(&Header::new(algorithm), &claims, key).unwrap()
}

async fn read(gateway: &Gateway, token: &str) -> (u16, String) {
    ask(gateway, Method::GET, "/v1/hashes/lamp", None, token).await
}

#[tokio::test]
async fn a_file_is_read_again_when_it_changes_and_a_malformed_one_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.json");
    std::fs::write(&path, set("one", Algorithm::RS256, &rsa())).unwrap();
    let gateway = Gateway::start(|settings| settings.access.jwks_file = Some(path.clone())).await;
    let (first, second) =
        (token_with_kid("one", Algorithm::RS256, &rsa()), token_with_kid("two", Algorithm::ES256, &ec()));
    assert_eq!(read(&gateway, &first).await.0, 200);
    assert_eq!(read(&gateway, &second).await, (401, "token_invalid".into()));
    // The right key with another key's id.
    assert_eq!(read(&gateway, &token_with_kid("two", Algorithm::RS256, &rsa())).await.0, 401);
    for malformed in ["half a fi", "[]", "{}", r#"{"keys":[]}"#] {
        std::fs::write(&path, malformed).unwrap();
    }
    // The file is checked every 2 s.
    tokio::time::sleep(std::time::Duration::from_millis(2500)).await;
    assert_eq!(read(&gateway, &first).await.0, 200);
    std::fs::write(&path, set("two", Algorithm::ES256, &ec())).unwrap();
    eventually("the new key is in use", async || (read(&gateway, &second).await.0 == 200).then_some(())).await;
    assert_eq!(read(&gateway, &first).await.0, 401);
}

/// The middle one of the times of requests, each with another token.
async fn median_time(gateway: &Gateway, tokens: &[String]) -> Duration {
    let mut times = Vec::new();
    for token in tokens {
        let begin = Instant::now();
        assert_eq!(read(gateway, token).await.0, 200);
        times.push(begin.elapsed());
    }
    times.sort();
    times[times.len() / 2]
}

/// Tokens that differ, of the key with the id `one`.
fn many_tokens() -> Vec<String> {
    let header = Header { kid: Some("one".into()), ..Header::new(Algorithm::RS256) };
    let claims = |n: i64| json!({"exp": at(600 + n), "roomcast": {"read": ["*"]}});
    (0..41).map(|n| encode(&header, &claims(n), &rsa()).unwrap()).collect()
}

#[tokio::test]
async fn a_key_set_that_is_fetched_again_unchanged_keeps_the_cache_of_verified_tokens() {
    let issuer = Issuer::start(set("one", Algorithm::RS256, &rsa())).await;
    let gateway = Gateway::start(|settings| {
        settings.access.jwks_url = Some(issuer.url.parse().unwrap());
        settings.access.jwks_refresh = Duration::ZERO;
    })
    .await;
    let tokens = many_tokens();
    eventually("the set is fetched", async || (read(&gateway, &tokens[0]).await.0 == 200).then_some(())).await;
    let verified = median_time(&gateway, &tokens).await;
    let fetches = issuer.fetches.load(Ordering::SeqCst);
    // Whitespace is no change.
    issuer.set.lock().unwrap().push('\n');
    eventually("it is fetched again", async || (issuer.fetches.load(Ordering::SeqCst) > fetches).then_some(()))
        .await;
    let cached = median_time(&gateway, &tokens).await;
    assert!(cached * 2 < verified, "{cached:?} for cached tokens, {verified:?} for new ones");
}

/// A server with a key set.
struct Issuer {
    url: String,
    set: Arc<Mutex<String>>,
    is_away: Arc<AtomicBool>,
    fetches: Arc<AtomicUsize>,
}

impl Issuer {
    async fn start(first: String) -> Self {
        let set = Arc::new(Mutex::new(first));
        let (is_away, fetches) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let state = (set.clone(), is_away.clone(), fetches.clone());
        let answer = move || {
            let (set, is_away, fetches) = state.clone();
            async move {
                fetches.fetch_add(1, Ordering::SeqCst);
                if is_away.load(Ordering::SeqCst) {
                    return Err(StatusCode::BAD_GATEWAY);
                }
                Ok(set.lock().unwrap().clone())
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        spawn(async move { axum::serve(listener, Router::new().route("/keys", get(answer))).await });
        Self { url, set, is_away, fetches }
    }

    async fn gateway(&self) -> Gateway {
        Gateway::start(|settings| settings.access.jwks_url = Some(self.url.parse().unwrap())).await
    }
}

#[tokio::test]
async fn a_new_key_is_fetched_when_a_token_names_it_and_the_last_keys_outlive_an_outage() {
    let issuer = Issuer::start(set("one", Algorithm::RS256, &rsa())).await;
    let gateway = issuer.gateway().await;
    let (first, second) =
        (token_with_kid("one", Algorithm::RS256, &rsa()), token_with_kid("two", Algorithm::ES256, &ec()));
    eventually("the set is fetched", async || (read(&gateway, &first).await.0 == 200).then_some(())).await;
    issuer.set.lock().unwrap().clone_from(&set("two", Algorithm::ES256, &ec()));
    // Tokens with unknown keys cause fetches, but at most one every 10 s.
    let before = issuer.fetches.load(Ordering::SeqCst);
    for _ in 0..50 {
        assert!(matches!(read(&gateway, &second).await.0, 200 | 401));
    }
    assert!(issuer.fetches.load(Ordering::SeqCst) <= before + 1);
    eventually("the new key is fetched", async || (read(&gateway, &second).await.0 == 200).then_some(())).await;
    assert_eq!(read(&gateway, &first).await.0, 401);
    issuer.is_away.store(true, Ordering::SeqCst);
    let before = issuer.fetches.load(Ordering::SeqCst);
    let unknown = token_with_kid("three", Algorithm::RS256, &rsa());
    eventually("a fetch fails", async || {
        read(&gateway, &unknown).await;
        (issuer.fetches.load(Ordering::SeqCst) > before).then_some(())
    })
    .await;
    assert_eq!(read(&gateway, &second).await.0, 200);
}

#[tokio::test]
async fn until_keys_are_fetched_tokens_are_neither_accepted_nor_rejected() {
    let issuer = Issuer::start("no keys".into()).await;
    let gateway = issuer.gateway().await;
    let token = token_with_kid("one", Algorithm::RS256, &rsa());
    assert_eq!(read(&gateway, &token).await, (503, "keys_unavailable".into()));
    // EventSource gives up at a 503. It gets a stream that tells it to reconnect, with its own position.
    let path = format!("/v1/rooms/lobby/stream?access_token={token}");
    let stream = gateway.resume(&path, Some("1790000000000000-5")).await;
    assert_eq!(stream.opened, json!({"reason": "unavailable", "reconnect": "later"}));
    assert_eq!(stream.last_event_id, "1790000000000000-5");
    // A request without a token is refused in any case.
    let (status, problem) = gateway.get("/v1/hashes/lamp").await;
    assert_eq!((status.as_u16(), &problem["code"]), (401, &Value::from("token_missing")));
}

#[tokio::test]
async fn a_key_without_an_id_does_not_prevent_the_fetch_of_a_new_one() {
    let issuer = Issuer::start("[]".into()).await;
    let gateway = Gateway::start(|settings| {
        settings.access.jwks_url = Some(issuer.url.parse().unwrap());
        settings.access.jwt_public_key = vec![super::RSA_PUBLIC.into()];
    })
    .await;
    assert_eq!(read(&gateway, &token_with_kid("any", Algorithm::RS256, &rsa())).await.0, 200);
    let other = EncodingKey::from_rsa_pem(include_bytes!("keys/other.key.pem")).unwrap();
    let new = token_with_kid("new", Algorithm::RS256, &other);
    assert_eq!(read(&gateway, &new).await, (503, "keys_unavailable".into()));
    issuer.set.lock().unwrap().clone_from(&set("new", Algorithm::RS256, &other));
    eventually("the new key is fetched", async || (read(&gateway, &new).await.0 == 200).then_some(())).await;
}

#[tokio::test]
async fn p10_a_key_of_one_issuer_signs_for_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.json");
    std::fs::write(&path, set("ec", Algorithm::ES256, &ec())).unwrap();
    let issuer = Issuer::start(set("rsa", Algorithm::RS256, &rsa())).await;
    let gateway = Gateway::start(|settings| {
        // The secret is for every issuer that has no keys of its own.
        settings.access.jwt_hs256_secret = vec![super::SECRET.parse().unwrap()];
        settings.access.jwt_public_key = vec![format!("{}/ed.pub.pem", super::KEYS).into()];
        settings.access.jwks_of_issuer = vec![
            format!("https://a.example/={}", issuer.url).parse().unwrap(),
            format!("https://b.example/={}", path.display()).parse().unwrap(),
            // Two tenants of one provider have the same keys.
            format!("https://c.example/={}", path.display()).parse().unwrap(),
        ];
    });
    let gateway = gateway.await;
    let secret = EncodingKey::from_secret(super::SECRET.as_bytes());
    let keys =
        [(Algorithm::RS256, rsa()), (Algorithm::ES256, ec()), (Algorithm::EdDSA, ed()), (Algorithm::HS256, secret)];
    let fetched = token_of(Some("https://a.example/"), Algorithm::RS256, &rsa());
    eventually("the set is fetched", async || (read(&gateway, &fetched).await.0 == 200).then_some(())).await;
    for (issuer, accepted) in [
        (Some("https://a.example/"), [true, false, false, false]),
        (Some("https://b.example/"), [false, true, false, false]),
        (Some("https://c.example/"), [false, true, false, false]),
        (Some("https://a.example"), [false, false, true, true]),
        (None, [false, false, true, true]),
    ] {
        for ((algorithm, key), accepted) in keys.iter().zip(accepted) {
            let (status, code) = read(&gateway, &token_of(issuer, *algorithm, key)).await;
            let expected = if accepted { (200, "") } else { (401, "token_invalid") };
            assert_eq!((status, code.as_str()), expected, "{issuer:?} {algorithm:?}");
        }
    }
    // A list with the issuer of another key does not help.
    let listed =
        json!({"exp": at(600), "iss": ["https://x.example", "https://a.example/"], "roomcast": {"read": ["*"]}});
    let listed = encode(&Header::new(Algorithm::EdDSA), &listed, &ed()).unwrap();
    assert_eq!(read(&gateway, &listed).await.0, 401);
    // The key is replaced in the file: the new one is bound to the same issuers.
    std::fs::write(&path, set("ed", Algorithm::EdDSA, &ed())).unwrap();
    let new = token_of(Some("https://b.example/"), Algorithm::EdDSA, &ed());
    eventually("the new key is in use", async || (read(&gateway, &new).await.0 == 200).then_some(())).await;
    assert_eq!(read(&gateway, &token_of(Some("https://a.example/"), Algorithm::EdDSA, &ed())).await.0, 401);
    refuses(&["--jwks-of-issuer", "https://a.example"], &["--jwks-of-issuer", "https://id.example=https"]);
    refuses(&["--jwks-of-issuer", "a=http://b.example/keys"], &["--jwks-of-issuer", "https"]);
    refuses(&["--listen", "127.0.0.1:0", "--jwks-of-issuer", "a=/missing"], &["--jwks-of-issuer a"]);
}
