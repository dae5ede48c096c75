//! Closed by default (P10): a request may do what its token grants, until the token expires.

mod browsers;
mod key_sets;
mod secrets;

use std::time::{Duration, SystemTime};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use reqwest::{Method, StatusCode};
use roomcast::config::Settings;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::cli::{refuses, roomcast};
use crate::support::{Gateway, Replica, World};

pub const SECRET: &str = "a-secret-for-tests-that-is-long-enough";
pub const RSA: &str = include_str!("auth/keys/rsa.key.pem");
pub const RSA_PUBLIC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/auth/keys/rsa.pub.pem");
const KEYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/auth/keys");
const AUDIENCE: &str = "roomcast.example";

/// A time relative to now, in seconds since 1970.
pub fn at(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    i64::try_from(now.as_secs()).unwrap() + seconds
}

/// The claim with every permission for all names, without `admin`.
pub fn all() -> Value {
    json!({"publish": ["*"], "subscribe": ["*"], "presence": ["*"], "read": ["*"], "write": ["*"]})
}

/// The claims of a token that is valid for ten minutes.
pub fn claims(roomcast: &Value) -> Value {
    json!({"sub": "ann", "exp": at(600), "aud": AUDIENCE, "roomcast": roomcast})
}

pub fn sign(algorithm: Algorithm, key: &EncodingKey, claims: &Value) -> String {
    encode(&Header::new(algorithm), claims, key).unwrap()
}

/// A token that is signed with [`SECRET`].
pub fn token(claims: &Value) -> String {
    sign(Algorithm::HS256, &EncodingKey::from_secret(SECRET.as_bytes()), claims)
}

/// Closes the gateway: it accepts tokens for [`AUDIENCE`] that are signed with [`SECRET`] or with the RSA key.
pub fn close(settings: &mut Settings) {
    settings.access.jwt_hs256_secret = vec![SECRET.parse().unwrap()];
    settings.access.jwt_public_key = vec![RSA_PUBLIC.into()];
    settings.access.jwt_audience = vec![AUDIENCE.into()];
    settings.access.jwt_skew = Duration::ZERO;
}

async fn closed(world: &World) -> Gateway {
    world.gateway_with(close).await
}

/// Sends a request with a token. Returns the status, and the code of the problem document.
pub async fn ask(gateway: &Gateway, method: Method, path: &str, body: Option<Value>, token: &str) -> (u16, String) {
    let mut request = gateway.request(method, path).bearer_auth(token);
    if let Some(body) = body {
        request = request.json(&body);
    }
    let answer = gateway.answer(request).await;
    let status = answer.status().as_u16();
    if status < 400 {
        return (status, String::new());
    }
    let problem: Value = answer.json().await.unwrap();
    (status, problem["code"].as_str().unwrap().to_owned())
}

/// A request for a route, and the permissions that it needs.
struct Route {
    method: Method,
    path: String,
    body: Option<Value>,
    /// The claim with just the needed permissions.
    grant: Value,
    /// The claim with all other permissions.
    rest: Value,
}

/// Every route that needs a permission, from the OpenAPI document. A new route has to be added to this list.
fn routes(document: &Value) -> Vec<Route> {
    let mut routes = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if !path.starts_with("/v1/") && path != "/metrics" {
                continue;
            }
            let (permissions, body): (&[&str], _) = match operation["operationId"].as_str().unwrap() {
                "publishEvent" => (&["publish"], Some(json!({"data": 1}))),
                "publishEvents" => (&["publish"], Some(json!({"events": [{"room": "lobby", "data": 1}]}))),
                "listEvents" | "streamRoom" | "streamRooms" | "listRooms" | "getRoom" => (&["subscribe"], None),
                "listFields" | "getField" | "listHashes" | "streamHash" => (&["read"], None),
                "setField" => (&["write"], Some(json!({"value": "1"}))),
                "patchFields" => (&["write"], Some(json!({"field": "1"}))),
                "setExpiry" => (&["write"], Some(json!({"seconds": 1000}))),
                "deleteField" | "deleteHash" => (&["write"], None),
                "incrementField" => (&["write", "read"], Some(json!({"by": 1}))),
                "listSubscribers" => (&["presence"], None),
                "deleteEvents" | "getMetrics" | "removeSubscriber" | "removeUser" | "revokeToken"
                | "listReplicas" => (&["admin"], None),
                other => panic!("which permission does {other} need?"),
            };
            let path = path.replace("{room}", "lobby").replace("{hash}", "lamp").replace("{field}", "field");
            let path = path.replace("{subscriber}", "nobody").replace("{user}", "nobody").replace("{jti}", "none");
            let query = if path == "/v1/stream" { "?room=lobby" } else { "" };
            let mut grant = json!({});
            let mut rest = all();
            for permission in permissions {
                let names = if path.contains("lamp") { "la*p" } else { "lobb*" };
                grant[*permission] = if *permission == "admin" { json!(true) } else { json!([names, "x"]) };
                rest[*permission] =
                    if *permission == "admin" { json!(false) } else { json!(["other.*", "lob", "amp"]) };
            }
            if operation["operationId"] == "listRooms" {
                // The route lists the rooms that the caller may subscribe to, and refuses only callers without any.
                rest["subscribe"] = json!([]);
            }
            if operation["operationId"] == "listHashes" {
                rest["read"] = json!([]);
            }
            let method = method.to_uppercase().parse().unwrap();
            routes.push(Route { method, path: format!("{path}{query}"), body, grant, rest });
        }
    }
    assert!(routes.len() >= 15);
    routes
}

on_both_brokers! {
    async fn p10_a_route_is_served_with_a_token_that_grants_it_and_with_no_other(world) {
        let gateway = closed(&world).await;
        let document = gateway.get("/openapi.json").await.1;
        let ours = EncodingKey::from_secret(SECRET.as_bytes());
        let rsa = EncodingKey::from_rsa_pem(RSA.as_bytes()).unwrap();
        let other = EncodingKey::from_rsa_pem(include_bytes!("auth/keys/other.key.pem")).unwrap();
        // A public key is known to everyone, so it must not verify as a secret.
        let public = EncodingKey::from_secret(std::fs::read_to_string(RSA_PUBLIC).unwrap().as_bytes());
        for Route { method, path, body, grant, rest } in routes(&document) {
            let with = |name: &str, value: Value| {
                let mut claims = claims(&grant);
                claims[name] = value;
                token(&claims)
            };
            let right = token(&claims(&grant));
            let (head, signature) = (right.split('.').next().unwrap(), right.split('.').next_back().unwrap());
            let mut forged_claims = claims(&json!({"admin": true}));
            forged_claims["sub"] = json!("eve");
            let forged = format!("{head}.{}.{signature}", token(&forged_claims).split('.').nth(1).unwrap());
            let none = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{}.", right.split('.').nth(1).unwrap());
            let mut without_exp = claims(&grant);
            without_exp.as_object_mut().unwrap().remove("exp");
            let cases = [
                ("no token", String::new(), 401, "token_missing"),
                ("not a token", "x.y.z".into(), 401, "token_invalid"),
                ("a token that is too long", "x".repeat(9000), 401, "token_invalid"),
                ("another secret", sign(Algorithm::HS256, &EncodingKey::from_secret(&[7; 32]), &claims(&grant)), 401, "token_invalid"),
                ("another key", sign(Algorithm::RS256, &other, &claims(&grant)), 401, "token_invalid"),
                ("other claims with a valid signature", forged, 401, "token_invalid"),
                ("no algorithm", none.clone(), 401, "token_invalid"),
                ("no algorithm, with a signature", format!("{none}{signature}"), 401, "token_invalid"),
                ("the public key used as a secret", sign(Algorithm::HS256, &public, &claims(&grant)), 401, "token_invalid"),
                ("an algorithm without a key", sign(Algorithm::HS512, &ours, &claims(&grant)), 401, "token_invalid"),
                ("expired", with("exp", json!(at(-2))), 401, "token_expired"),
                ("without an expiry", token(&without_exp), 401, "token_invalid"),
                ("an expiry that is not a time", with("exp", json!("never")), 401, "token_invalid"),
                ("not yet valid", with("nbf", json!(at(60))), 401, "token_invalid"),
                ("another audience", with("aud", json!("elsewhere.example")), 401, "token_invalid"),
                ("no audience", with("aud", Value::Null), 401, "token_invalid"),
                ("claims of another form", with("roomcast", json!({"publish": "*", "subscribe": "*"})), 401, "token_invalid"),
                ("every other permission", token(&claims(&rest)), 403, "forbidden"),
                ("no permissions", token(&claims(&json!({}))), 403, "forbidden"),
            ];
            for (case, token, status, code) in cases {
                let mut request = gateway.request(method.clone(), &path);
                if !token.is_empty() {
                    request = request.bearer_auth(&token);
                }
                if let Some(body) = &body {
                    request = request.json(body);
                }
                let answer = gateway.answer(request).await;
                let challenge = answer.headers().get("www-authenticate").map(|value| value.to_str().unwrap().to_owned());
                let got = answer.status().as_u16();
                let problem: Value = answer.json().await.unwrap_or_default();
                // The response to a batch has a status for each item.
                let refused = problem["results"][0]["status"].as_u64().map_or(got, |status| u16::try_from(status).unwrap());
                let got_code = problem["results"][0]["problem"]["code"].as_str().or(problem["code"].as_str());
                assert_eq!((refused, got_code), (status, Some(code)), "{method} {path} with {case}: {problem}");
                if got != 207 {
                    assert!(challenge.is_some_and(|challenge| challenge.starts_with("Bearer realm=")), "{case}");
                }
                assert!(token.is_empty() || !problem.to_string().contains(&token), "{problem}");
            }
            for right in [right, sign(Algorithm::RS256, &rsa, &claims(&grant)), token(&claims(&json!({"admin": true})))] {
                let (status, code) = ask(&gateway, method.clone(), &path, body.clone(), &right).await;
                assert!(status < 300 || code == "field_not_found" || code == "hash_not_found", "{method} {path}: {status} {code}");
            }
        }
        // The routes about the gateway itself need no token.
        for path in ["/livez", "/readyz", "/healthz", "/openapi.json"] {
            assert_eq!(gateway.get(path).await.0, StatusCode::OK, "{path}");
        }
    }

    async fn null_in_a_token_counts_as_a_claim_that_is_left_out(world) {
        let gateway = closed(&world).await;
        let mut claims = claims(&json!({"publish": ["lobby"], "subscribe": null, "presence": null, "read": null, "write": null, "admin": null, "info": null}));
        (claims["sub"], claims["jti"]) = (Value::Null, Value::Null);
        let publish = async |token: &str| ask(&gateway, Method::POST, "/v1/rooms/lobby/events", Some(json!({"data": 1})), token).await;
        assert_eq!(publish(&token(&claims)).await.0, 201);
        let list = ask(&gateway, Method::GET, "/v1/rooms/lobby/events", None, &token(&claims)).await;
        assert_eq!(list, (403, "forbidden".into()));
        claims["roomcast"] = Value::Null;
        assert_eq!(publish(&token(&claims)).await, (403, "forbidden".into()));
        claims["exp"] = Value::Null;
        assert_eq!(publish(&token(&claims)).await, (401, "token_invalid".into()));
    }

    async fn a_refused_token_is_told_which_claim_is_wrong_and_is_not_repeated(world) {
        let gateway = world.gateway_with(|settings| {
            close(settings);
            settings.access.jwt_issuer = vec!["ours".into()];
        }).await;
        let ours = |roomcast: Value| {
            let mut claims = claims(&roomcast);
            claims["iss"] = json!("ours");
            claims
        };
        let with = |claim: &str, value: Value| {
            let mut claims = ours(json!({"publish": ["*"]}));
            match value {
                Value::Null => drop(claims.as_object_mut().unwrap().remove(claim)),
                value => claims[claim] = value,
            }
            token(&claims)
        };
        let signed = |claims: &str| {
            let claims = RawValue::from_string(claims.into()).unwrap();
            encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
        };
        for (claim, token) in [
            ("claim exp", with("exp", json!(at(-60)))),
            ("claim exp", with("exp", Value::Null)),
            ("claim exp", with("exp", json!("never-secret"))),
            ("claim nbf", with("nbf", json!(at(60)))),
            ("claim nbf", with("nbf", json!("soon-secret"))),
            ("claim aud", with("aud", json!("elsewhere-secret"))),
            ("claim aud", with("aud", Value::Null)),
            ("claim iss", with("iss", json!("other-secret"))),
            ("claim iss", with("iss", Value::Null)),
            ("claim sub is malformed", with("sub", json!(7))),
            ("claim jti is malformed", with("jti", json!(["secret"]))),
            ("claim roomcast is malformed", with("roomcast", json!("secret"))),
            ("claim roomcast.publish is malformed", with("roomcast", json!({"publish": "secret"}))),
            ("claim roomcast.admin is malformed", with("roomcast", json!({"admin": "secret"}))),
            ("claim roomcast.info is malformed", with("roomcast", json!({"info": "secret".repeat(300)}))),
            ("not a JWT", "secret".into()),
            // {"alg":"none"} and {"alg":"ES512K"}
            ("alg that is not supported", "eyJhbGciOiJub25lIn0.e30.secret".into()),
            ("alg that is not supported", "eyJhbGciOiJFUzUxMksifQ.e30.secret".into()),
            ("each member once", signed(r#"{"exp":1,"exp":"secret"}"#)),
            ("each member once", signed(r#"["secret"]"#)),
            ("too long", "secret".repeat(2000)),
        ] {
            let request = gateway.request(Method::POST, "/v1/rooms/lobby/events").bearer_auth(&token).body("x");
            let answer = gateway.answer(request).await;
            assert_eq!(answer.status().as_u16(), 401, "{claim}");
            let challenge = answer.headers()["www-authenticate"].to_str().unwrap().to_owned();
            let problem: Value = answer.json().await.unwrap();
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.contains(claim), "{claim}: {detail}");
            assert!(challenge.contains(&format!("error=\"invalid_token\", error_description=\"{detail}\"")), "{challenge}");
            assert!(!detail.contains("secret"), "{detail}");
        }
        let mut anybody = ours(json!({"publish": ["user.{sub}"]}));
        anybody.as_object_mut().unwrap().remove("sub");
        let request = gateway.request(Method::POST, "/v1/rooms/lobby/events").bearer_auth(token(&anybody)).body("x");
        let (status, problem) = gateway.send(request).await;
        assert_eq!(status.as_u16(), 403);
        assert!(problem["detail"].as_str().unwrap().contains("{sub} need the claim sub"), "{problem}");
    }

    async fn p10_a_stream_ends_when_its_token_does(world) {
        let gateway = closed(&world).await;
        for path in ["/v1/rooms/lobby/stream?", "/v1/stream?room=lobby&room=news&"] {
            let mut claims = claims(&json!({"subscribe": ["lobby", "news"], "publish": ["*"]}));
            claims["exp"] = json!(at(3));
            let token = token(&claims);
            let mut stream = gateway.stream(&format!("{path}access_token={token}")).await;
            let expires: String = stream.opened["expires_at"].as_str().unwrap().into();
            let expires = humantime::parse_rfc3339(&expires).unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap();
            assert_eq!(expires.as_secs(), claims["exp"].as_u64().unwrap());
            let (status, _) = ask(&gateway, Method::POST, "/v1/rooms/lobby/events", Some(json!({"data": 1})), &token).await;
            assert_eq!(status, 201);
            stream.event().await;
            let end = stream.event().await;
            assert_eq!((end.event.as_str(), end.json()), ("stream.end", json!({"reason": "token_expired", "reconnect": "never"})));
            assert!(at(0).unsigned_abs() >= expires.as_secs(), "not before the token expires");
            assert_eq!(end.id, stream.last_event_id);
            assert!(stream.next().await.is_none());
            let (status, code) = ask(&gateway, Method::GET, "/v1/rooms/lobby/stream", None, &token).await;
            assert_eq!((status, code.as_str()), (401, "token_expired"));
        }
    }

    async fn p10_the_permissions_of_callers_without_a_token_are_a_setting(world) {
        let gateway = world.gateway_with(|settings| {
            close(settings);
            settings.access.anonymous = vec!["subscribe=public.*".parse().unwrap(), "read=*".parse().unwrap()];
        }).await;
        gateway.room("public.news").await;
        assert_eq!(gateway.get("/v1/hashes/lamp").await.0, StatusCode::OK);
        let (status, problem) = gateway.get("/v1/rooms/private/events").await;
        assert_eq!((status.as_u16(), &problem["code"]), (401, &json!("token_missing")));
        let (status, problem) = gateway.post("/v1/rooms/public.news/events", &json!({"data": 1})).await;
        assert_eq!((status.as_u16(), &problem["code"]), (401, &json!("token_missing")));
        // A token does not include the permissions of callers without one.
        let token = token(&claims(&json!({"publish": ["public.*"]})));
        assert_eq!(ask(&gateway, Method::GET, "/v1/rooms/public.news/events", None, &token).await.0, 403);
    }

    async fn p10_a_room_is_listed_for_callers_that_may_subscribe_to_it(world) {
        let gateway = closed(&world).await;
        let admin = token(&claims(&json!({"admin": true})));
        let mut streams = Vec::new();
        for room in ["a.one", "b.two", "c.three"] {
            streams.push(gateway.stream(&format!("/v1/rooms/{room}/stream?access_token={admin}")).await);
        }
        let listed = async |token: &str| -> Vec<String> {
            let answer = gateway.send(gateway.request(Method::GET, "/v1/rooms").bearer_auth(token)).await.1;
            answer["rooms"].as_array().unwrap().iter().map(|room| room["room"].as_str().unwrap().to_owned()).collect()
        };
        crate::support::eventually("all rooms are listed", async || (listed(&admin).await.len() == 3).then_some(())).await;
        assert_eq!(listed(&token(&claims(&json!({"subscribe": ["a.*", "c.*"]})))).await, ["a.one", "c.three"]);
        assert!(listed(&token(&claims(&json!({"subscribe": ["d.*"]})))).await.is_empty());
    }

    async fn p10_a_batch_stores_the_events_that_its_token_grants_and_refuses_the_others(world) {
        let gateway = closed(&world).await;
        let token = token(&claims(&json!({"publish": ["a"], "subscribe": ["a"]})));
        let batch = json!({"events": [{"room": "a", "data": 1}, {"room": "b", "data": 2}, {"rooms": ["a", "b"], "data": 3}]});
        let request = gateway.request(Method::POST, "/v1/events").bearer_auth(&token).json(&batch);
        let (status, answer) = gateway.send(request).await;
        assert_eq!(status.as_u16(), 207);
        let statuses: Vec<_> = answer["results"].as_array().unwrap().iter().map(|result| result["status"].clone()).collect();
        assert_eq!(statuses, [json!(201), json!(403), json!(403)]);
        assert_eq!(answer["results"][2]["problem"]["rooms"], json!(["b"]));
        assert_eq!(answer["results"][2]["published"].as_array().unwrap().len(), 1);
    }

    async fn p10_a_failed_condition_shows_the_value_to_callers_that_may_read_it(world) {
        let gateway = closed(&world).await;
        for (grant, shown) in [(json!({"write": ["lamp"]}), Value::Null), (json!({"write": ["lamp"], "read": ["lamp"]}), json!("green"))] {
            let token = token(&claims(&grant));
            let put = |condition: Option<&str>| {
                let request = gateway.request(Method::PUT, "/v1/hashes/lamp/fields/colour").bearer_auth(&token).body("green");
                match condition {
                    Some(condition) => request.header("if-none-match", condition),
                    None => request,
                }
            };
            gateway.send(put(None)).await;
            let (status, problem) = gateway.send(put(Some("*"))).await;
            assert_eq!((status.as_u16(), &problem["present"]["value"]), (412, &shown));
        }
    }

    async fn p10_an_idempotency_key_is_its_callers_own(world) {
        let gateway = closed(&world).await;
        let publish = async |subject: &str, text: &str| {
            let mut claims = claims(&json!({"publish": ["*"]}));
            claims["sub"] = json!(subject);
            let request = gateway.request(Method::POST, "/v1/rooms/lobby/events").bearer_auth(token(&claims));
            gateway.send(request.header("idempotency-key", "one").body(text.to_owned())).await
        };
        let ann = publish("ann", "hello").await;
        let bob = publish("bob", "world").await;
        assert_eq!((ann.0.as_u16(), bob.0.as_u16()), (201, 201));
        assert_eq!(publish("ann", "hello").await.1, ann.1);
        assert_eq!(publish("ann", "world").await.0.as_u16(), 422);
    }
}

#[tokio::test]
async fn each_kind_of_key_is_for_its_algorithm() {
    let path = |name: &str| format!("{KEYS}/{name}.pub.pem").into();
    let gateway = Gateway::start(|settings| {
        settings.access.jwt_public_key = vec![path("rsa"), path("ec"), path("ed")];
        settings.access.jwt_hs256_secret = vec![SECRET.parse().unwrap(), "a".repeat(40).parse().unwrap()];
    });
    let gateway = gateway.await;
    let keys = [
        (Algorithm::RS256, EncodingKey::from_rsa_pem(RSA.as_bytes()).unwrap()),
        (Algorithm::ES256, EncodingKey::from_ec_pem(include_bytes!("auth/keys/ec.key.pem")).unwrap()),
        (Algorithm::EdDSA, EncodingKey::from_ed_pem(include_bytes!("auth/keys/ed.key.pem")).unwrap()),
        (Algorithm::HS256, EncodingKey::from_secret(SECRET.as_bytes())),
        // The newer of two secrets, as during a rotation.
        (Algorithm::HS256, EncodingKey::from_secret("a".repeat(40).as_bytes())),
    ];
    for (algorithm, key) in keys {
        let token = sign(algorithm, &key, &json!({"exp": at(60), "roomcast": {"read": ["*"]}}));
        assert_eq!(ask(&gateway, Method::GET, "/v1/hashes/lamp", None, &token).await.0, 200, "{algorithm:?}");
        // No audience is set, so none is checked. A critical header is refused, because none is supported.
        let mut header = Header::new(algorithm);
        header.crit = Some(vec!["b64".into()]);
        let token = encode(&header, &json!({"exp": at(60), "roomcast": {"read": ["*"]}}), &key).unwrap();
        assert_eq!(ask(&gateway, Method::GET, "/v1/hashes/lamp", None, &token).await.0, 401, "{algorithm:?}");
    }
}

#[tokio::test]
async fn a_subject_in_a_pattern_is_never_a_wildcard() {
    let gateway = Gateway::start(close).await;
    for (subject, room, expected) in
        [("ann", "user.ann", 200), ("ann", "user.bob", 403), ("*", "user.ann", 403), ("a b", "user.ann", 403)]
    {
        let mut claims = claims(&json!({"subscribe": ["user.{sub}"]}));
        claims["sub"] = json!(subject);
        let got = ask(&gateway, Method::GET, &format!("/v1/rooms/{room}/events"), None, &token(&claims)).await;
        assert_eq!(got.0, expected, "{subject} {room}");
    }
}

/// A removal names a subject or a token's id in its path.
#[tokio::test]
async fn p10_a_token_whose_subject_or_id_no_removal_can_name_is_refused() {
    let gateway = Gateway::start(close).await;
    for claim in ["sub", "jti"] {
        for (id, expected) in [("", 401), ("x", 200), (&"x".repeat(256), 200), (&"x".repeat(257), 401)] {
            let mut claims = claims(&all());
            claims[claim] = json!(id);
            let request = gateway.request(Method::GET, "/v1/rooms").bearer_auth(token(&claims));
            let (status, problem) = gateway.send(request).await;
            assert_eq!(status, expected, "{claim} {id:?}");
            if expected == 401 {
                assert_eq!(problem["code"], "token_invalid");
                assert!(problem["detail"].as_str().unwrap().contains(&format!("claim {claim} ")), "{problem}");
            }
        }
    }
}

/// The gateway accepts the tokens that `roomcast token` makes.
#[tokio::test]
async fn a_token_from_the_command_line_grants_its_permissions() {
    let replica =
        Replica::start_with(&["--jwt-hs256-secret", SECRET, "--jwt-audience", AUDIENCE, "--jwt-issuer", "tests"]);
    let made = roomcast(&["token", "--audience", AUDIENCE, "--issuer", "tests", "--sub", "ann"])
        .args(["--publish", "chat.*", "--subscribe", "user.{sub}", "--lifetime", "5m"])
        // Of several secrets, the last one signs.
        .env("ROOMCAST_JWT_HS256_SECRET", format!("{} {SECRET}", "b".repeat(32)))
        .output()
        .unwrap();
    assert_eq!(made.status.code(), Some(0));
    let token = String::from_utf8(made.stdout).unwrap().trim().to_owned();
    let status = async |method: Method, path: &str| {
        let request = reqwest::Client::new().request(method, format!("{}{path}", replica.url()));
        request.bearer_auth(&token).body("hello").send().await.unwrap().status().as_u16()
    };
    assert_eq!(status(Method::POST, "/v1/rooms/chat.a/events").await, 201);
    assert_eq!(status(Method::POST, "/v1/rooms/news/events").await, 403);
    assert_eq!(status(Method::GET, "/v1/rooms/user.ann/events").await, 200);
    assert_eq!(status(Method::GET, "/v1/rooms/user.bob/events").await, 403);
    refuses(&["token", "--jwt-hs256-secret", "short", "--admin"], &["32 bytes"]);
}

#[tokio::test]
async fn an_issuer_is_checked_if_one_is_set_and_clocks_may_differ_a_little() {
    let gateway = Gateway::start(|settings| {
        close(settings);
        settings.access.jwt_issuer = vec!["https://id.example".into(), "https://other.example".into()];
        settings.access.jwt_skew = Duration::from_mins(1);
    })
    .await;
    for (issuer, exp, nbf, expected) in [
        (json!("https://id.example"), 600, -1, 200),
        (json!("https://other.example"), 600, -1, 200),
        (json!("https://id.example.evil"), 600, -1, 401),
        (Value::Null, 600, -1, 401),
        (json!("https://id.example"), -30, -600, 200),
        (json!("https://id.example"), -61, -600, 401),
        (json!("https://id.example"), 600, 30, 200),
        (json!("https://id.example"), 600, 90, 401),
    ] {
        let mut claims = claims(&all());
        (claims["iss"], claims["exp"], claims["nbf"]) = (issuer.clone(), json!(at(exp)), json!(at(nbf)));
        let got = ask(&gateway, Method::GET, "/v1/hashes/lamp", None, &token(&claims)).await;
        assert_eq!(got.0, expected, "{issuer} {exp} {nbf}: {}", got.1);
    }
}

#[test]
fn keys_that_can_not_verify_tokens_are_refused_at_the_start() {
    let key = |name: &str| format!("{KEYS}/{name}.pem");
    refuses(&["--listen", "127.0.0.1:0", "--jwt-hs256-secret", "short"], &["--jwt-hs256-secret", "32 bytes"]);
    for name in ["p384.pub", "rsa.key", "ec.key"] {
        refuses(&["--listen", "127.0.0.1:0", "--jwt-public-key", &key(name)], &["--jwt-public-key", name]);
    }
    refuses(&["--jwt-public-key", &key("missing")], &["--jwt-public-key", "No such file"]);
    refuses(&["--listen", "127.0.0.1:0", "--jwks-file", &key("rsa.pub")], &["--jwks-file", "JWKS"]);
    refuses(&["--jwks-url", "http://id.example/keys"], &["--jwks-url", "https"]);
    refuses(&["--anonymous", "subscribe=*"], &["--anonymous"]);
    refuses(&["--anonymous", "admin=*"], &["--anonymous", "subscribe"]);
    refuses(&["--cors-origin", "*"], &["--cors-origin", "https://app.example"]);
}
