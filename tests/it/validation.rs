//! Bad input is harmless (P11): every malformed, oversized or hostile request gets a problem document.

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::support::Gateway;

/// Sends a request that must be refused. Checks the problem document, and returns it.
async fn refused(gateway: &Gateway, request: RequestBuilder, status: u16, code: &str) -> Value {
    let answer = gateway.answer(request).await;
    let request_id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let answered = answer.status();
    let problem: Value = answer.json().await.unwrap();
    assert_eq!((answered.as_u16(), problem["code"].as_str()), (status, Some(code)), "{problem}");
    assert_eq!(problem["status"], status);
    assert_eq!(problem["request_id"], request_id);
    assert_eq!(problem["type"], format!("urn:roomcast:problem:{code}"));
    for member in ["title", "detail"] {
        assert!(!problem[member].as_str().unwrap().is_empty(), "{problem}");
    }
    problem
}

on_both_brokers! {
    async fn p11_names_that_are_not_allowed_are_refused_wherever_they_stand(world) {
        let gateway = world.gateway().await;
        let long = "x".repeat(129);
        for name in ["a%20b", "a%2Fb", "%7Ba%7D", "a%0Ab", "a%00b", "a%25", "%252F", "a*", "..%2F..", "%C2%85", "%E3%85%A4", "a%E3%85%A4", "%CC%81", &long] {
            for path in [
                format!("/v1/rooms/{name}/events"), format!("/v1/rooms/{name}"), format!("/v1/rooms/{name}/stream"),
                format!("/v1/stream?room={name}"), format!("/v1/hashes/{name}"), format!("/v1/hashes/{name}/fields/f"),
            ] {
                refused(&gateway, gateway.request(Method::GET, &path), 400, "invalid_name").await;
            }
        }
        // Percent-encoded bytes that are not UTF-8.
        refused(&gateway, gateway.request(Method::GET, "/v1/rooms/%FF"), 400, "invalid_name").await;
        let long = "x".repeat(257);
        for name in ["a%0Db", "a%00", &long] {
            let path = format!("/v1/hashes/h/fields/{name}");
            refused(&gateway, gateway.request(Method::PUT, &path).body("v"), 400, "invalid_name").await;
        }
        for path in ["/v1/rooms//events", "/v1/hashes//fields/f"] {
            refused(&gateway, gateway.request(Method::GET, path), 400, "invalid_name").await;
        }
        // Without its last segment, the path is another route.
        for path in ["/v1/rooms/", "/v1/hashes/h/fields/"] {
            refused(&gateway, gateway.request(Method::GET, path), 404, "route_not_found").await;
        }
        refused(&gateway, gateway.request(Method::GET, "/v1/stream?room="), 400, "invalid_query").await;
        // In a path, clients would leave these names out.
        for name in [".", ".."] {
            refused(&gateway, gateway.request(Method::GET, &format!("/v1/stream?room={name}")), 400, "invalid_name").await;
            let batch = json!({"events": [{"room": name, "data": 1}]});
            refused(&gateway, gateway.request(Method::POST, "/v1/events").json(&batch), 400, "invalid_body").await;
            let patch = gateway.request(Method::PATCH, "/v1/hashes/h").json(&json!({name: "v"}));
            refused(&gateway, patch, 400, "invalid_body").await;
        }
    }

    async fn p11_event_names_that_call_handlers_of_a_page_are_refused_wherever_they_stand(world) {
        let gateway = world.gateway().await;
        let post = |path: &str| gateway.request(Method::POST, path);
        for name in ["open", "error"] {
            let event = json!({"event": name, "data": 1});
            let batch = json!({"events": [{"room": "r", "data": 1}, {"rooms": ["r"], "event": name, "data": 1}]});
            for (request, code) in [
                (post("/v1/rooms/r/events").json(&event), "invalid_body"),
                (post("/v1/events").json(&batch), "invalid_body"),
                (post(&format!("/v1/rooms/r/events?event={name}")).body("text"), "invalid_name"),
                (gateway.request(Method::GET, &format!("/v1/rooms/r/stream?event={name}")), "invalid_name"),
                (gateway.request(Method::GET, &format!("/v1/stream?room=r&event=chat&event={name}")), "invalid_name"),
            ] {
                let detail = refused(&gateway, request, 400, code).await["detail"].to_string();
                assert!(detail.contains("a page's handlers onopen and onerror"), "{detail}");
            }
        }
        assert_eq!(gateway.get("/v1/rooms/r").await.1["retained"], 0);
        // The name of an event without a name, and names that are only similar.
        let mut stream = gateway.room("r").await;
        for name in ["message", "Error", "error.", "opened"] {
            gateway.publish_json("r", name, json!(1)).await;
            assert_eq!(stream.event().await.event, name);
        }
    }

    async fn a_refused_parameter_is_named_with_what_it_may_be(world) {
        let gateway = world.gateway().await;
        let number = "it must be a whole number, 0 or above";
        for (path, expected) in [
            ("/v1/rooms?limit=x", format!("limit: {number}")),
            ("/v1/rooms/r/events?limit=-1", format!("limit: {number}")),
            ("/v1/rooms/r/subscribers?limit=1.5", format!("limit: {number}")),
            ("/v1/hashes/h?limit=ten", format!("limit: {number}")),
            ("/v1/rooms/r/stream?recent=1e3", format!("recent: {number}")),
            ("/v1/stream?room=r&recent=all", format!("recent: {number}")),
            ("/v1/stream?room=r&heartbeat=5s", format!("heartbeat: {number}")),
            ("/v1/rooms/r/stream?heartbeat=4", "heartbeat must be between 5 and 300".into()),
            ("/v1/stream?room=r&heartbeat=301", "heartbeat must be between 5 and 300".into()),
            ("/v1/hashes/h/stream?heartbeat=0", "heartbeat must be between 5 and 300".into()),
            ("/v1/hashes/h/stream?heartbeat_event=yes", "heartbeat_event: it must be true or false".into()),
            ("/v1/rooms?limit=99999999999999999999", "limit: the number is too large".into()),
            ("/v1/rooms?limit=1&limit=2", "limit: it must be given only once".into()),
            ("/v1/rooms/r/stream?from=latest", "from: it must be earliest".into()),
            ("/v1/rooms/r/stream?presence=yes", "presence: it must be true or false".into()),
            ("/v1/rooms?size=1", "there is no parameter \"size\" here; this route has after, skip, limit".into()),
            ("/v1/stream?rooms=a,b", "there is no parameter \"rooms\" here; this route has room, ".into()),
        ] {
            let problem = refused(&gateway, gateway.request(Method::GET, path), 400, "invalid_query").await;
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.starts_with(&expected), "{path}: {detail}");
            // The names of parameters are no words of a parser.
            let detail = detail.replace(" hash, field,", "");
            for word in ["field", "string", "digit", "variant", "type"] {
                assert!(!detail.contains(word), "{path}: {detail}");
            }
        }
        let remove = gateway.request(Method::DELETE, "/v1/rooms/r/subscribers/ann?for=1h");
        let problem = refused(&gateway, remove, 400, "invalid_query").await;
        assert_eq!(problem["detail"], "there is no parameter \"for\" here; this route has deny_seconds");
    }

    async fn a_refused_body_is_told_what_it_lacks_in_the_words_of_json(world) {
        let gateway = world.gateway().await;
        let (events, batch) = ("/v1/rooms/r/events", "/v1/events");
        let (patch, increment) = ("/v1/hashes/h", "/v1/hashes/h/fields/f/increment");
        for (path, body, expected) in [
            (events, "", "the body is empty"),
            (batch, " ", "the body is empty"),
            (events, "{", "the body ends within an object"),
            (batch, r#"{"events":["#, "the body ends within an array"),
            (events, "{}", "the member `data` is missing"),
            (batch, "{}", "the member `events` is missing"),
            (increment, "{}", "the member `by` is missing"),
            (events, r#"{"data":1,"to":2}"#, "unknown member `to`, expected one of `event`, `data`, `except`"),
            (events, r#"{"data":1,"data":2}"#, "the member `data` is there twice"),
            (events, r#"{"data":1,"except":"ann"}"#, "expected an array"),
            (events, "[]", "invalid type: array, expected an object"),
            (patch, "[]", "invalid type: array, expected an object"),
            (patch, r#"{"e":"1","f":1}"#, "the member `f`: invalid type: number `1`, expected a string"),
            (increment, r#"{"by":"1"}"#, "by: expected a 64-bit whole number, or a decimal of at most 15 digits"),
            (increment, r#"{"by":1e19}"#, "by: expected a 64-bit whole number, or a decimal of at most 15 digits"),
        ] {
            let method = if path == patch { Method::PATCH } else { Method::POST };
            let request = gateway.request(method, path).header("content-type", "application/json").body(body);
            let problem = refused(&gateway, request, 400, "invalid_body").await;
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.contains(expected), "{path} {body}: {detail}");
            for word in ["field", "EOF", "i64", "sequence", "map", "floating"] {
                assert!(!detail.contains(word), "{path} {body}: {detail}");
            }
        }
    }

    async fn names_of_scripts_with_combining_marks_serve_everywhere(world) {
        let gateway = world.gateway().await;
        for name in ["हिन्दी", "தமிழ்", "ที่", "ශ්‍රී"] {
            let mut stream = gateway.stream(&format!("/v1/rooms/{name}/stream?subscriber={name}")).await;
            let id = gateway.publish_json(name, name, json!(name)).await;
            let event = stream.event().await;
            assert_eq!((event.id, event.event.as_str(), event.data), (id, name, json!(name).to_string()));
            let put = gateway.request(Method::PUT, &format!("/v1/hashes/{name}/fields/{name}")).body(name);
            assert_eq!(gateway.send(put).await.0, 201);
            assert_eq!(gateway.get(&format!("/v1/hashes/{name}/fields/{name}")).await.1["value"], name);
            let list = gateway.get(&format!("/v1/rooms/{name}/subscribers")).await.1;
            assert_eq!(list["subscribers"][0]["subscriber"], name);
        }
    }

    async fn p11_bodies_that_are_not_events_are_refused_and_store_nothing(world) {
        let gateway = world.gateway_with(|settings| {
            settings.requests.max_body_bytes = 10_000;
            settings.requests.max_event_bytes = 5_000;
        }).await;
        let deep = format!(r#"{{"data":{}{}}}"#, "[".repeat(65), "]".repeat(65));
        let very_deep = format!(r#"{{"data":{}"#, "[".repeat(9_000));
        let large = format!(r#"{{"data":"{}"}}"#, "x".repeat(6_000));
        let huge = "x".repeat(10_001);
        let json_type = "application/json";
        for (content_type, body, status, code) in [
            (json_type, "", 400, "invalid_body"),
            (json_type, "{", 400, "invalid_body"),
            (json_type, "null", 400, "invalid_body"),
            (json_type, "[1]", 400, "invalid_body"),
            (json_type, r#"["name", 1]"#, 400, "invalid_body"),
            (json_type, r#"["name", {"n": 1}, []]"#, 400, "invalid_body"),
            (json_type, "{}", 400, "invalid_body"),
            (json_type, r#"{"data":1}x"#, 400, "invalid_body"),
            (json_type, r#"{"data":01}"#, 400, "invalid_body"),
            (json_type, r#"{"data":1,"data":2}"#, 400, "invalid_body"),
            (json_type, r#"{"data":1,"evnet":"slip"}"#, 400, "invalid_body"),
            (json_type, r#"{"data":1,"event":"stream.open"}"#, 400, "invalid_body"),
            (json_type, r#"{"data":1,"event":"presence.join"}"#, 400, "invalid_body"),
            (json_type, r#"{"data":1,"event":"hash.set"}"#, 400, "invalid_body"),
            (json_type, r#"{"data":1,"event":"a\nb"}"#, 400, "invalid_body"),
            (json_type, r#"{"data":1,"event":""}"#, 400, "invalid_body"),
            (json_type, r#"{"data":1,"event":7}"#, 400, "invalid_body"),
            (json_type, r#"{"data":1,"except":["a b"]}"#, 400, "invalid_body"),
            (json_type, &deep, 400, "invalid_body"),
            (json_type, &very_deep, 400, "invalid_body"),
            (json_type, &large, 413, "body_too_large"),
            (json_type, &huge, 413, "body_too_large"),
            ("text/plain", "", 400, "invalid_body"),
            ("text/plain", &large, 413, "body_too_large"),
            ("text/plain", &huge, 413, "body_too_large"),
            ("application/octet-stream", "x", 415, "unsupported_media_type"),
            ("image/png", "x", 415, "unsupported_media_type"),
            ("application/xml", "<x/>", 415, "unsupported_media_type"),
        ] {
            let request = gateway.request(Method::POST, "/v1/rooms/bad/events").header("content-type", content_type);
            refused(&gateway, request.body(body.to_owned()), status, code).await;
        }
        for content_type in ["text/plain", json_type] {
            let request = gateway.request(Method::POST, "/v1/rooms/bad/events").header("content-type", content_type);
            refused(&gateway, request.body(b"{\"data\":\"\xff\xfe\"}".to_vec()), 400, "invalid_body").await;
        }
        for name in ["stream.x", "a%0Ab", "a%20b"] {
            let request = gateway.request(Method::POST, &format!("/v1/rooms/bad/events?event={name}")).body("x");
            refused(&gateway, request, 400, "invalid_name").await;
        }
        let request = gateway.request(Method::POST, "/v1/rooms/bad/events?event=a").json(&json!({"data": 1}));
        refused(&gateway, request, 400, "invalid_query").await;
        assert_eq!(gateway.get("/v1/rooms/bad").await.1["retained"], 0);
        // The gateway still works.
        gateway.publish("bad", "good").await;
    }

    async fn p11_bodies_that_are_not_values_are_refused(world) {
        let gateway = world.gateway_with(|settings| settings.requests.max_value_bytes = 1000).await;
        let path = "/v1/hashes/h/fields/f";
        for (content_type, body, status, code) in [
            ("application/json", "", 400, "invalid_body"),
            ("application/json", r#"{"value":1}"#, 400, "invalid_body"),
            ("application/json", r#"{"value":null}"#, 400, "invalid_body"),
            ("application/json", r#"{"value":"a","x":1}"#, 400, "invalid_body"),
            ("application/json", r#""a""#, 400, "invalid_body"),
            ("application/json", r#"["a"]"#, 400, "invalid_body"),
            ("text/plain", &"x".repeat(1001), 413, "body_too_large"),
            ("image/png", &"x".repeat(1001), 413, "body_too_large"),
        ] {
            let request = gateway.request(Method::PUT, path).header("content-type", content_type).body(body.to_owned());
            refused(&gateway, request, status, code).await;
        }
        for (name, value) in [("if-match", "x"), ("if-match", "\"a"), ("if-none-match", "\"a\""), ("if-match", "")] {
            let request = gateway.request(Method::PUT, path).header(name, value).body("x");
            refused(&gateway, request, 400, "invalid_header").await;
        }
        let both = gateway.request(Method::PUT, path).header("if-match", "*").header("if-none-match", "*").body("x");
        refused(&gateway, both, 400, "invalid_header").await;
        assert_eq!(gateway.get(path).await.0, StatusCode::NOT_FOUND);
    }

    async fn p11_headers_that_a_route_would_ignore_are_refused(world) {
        let gateway = world.gateway().await;
        let path = "/v1/hashes/h";
        gateway.send(gateway.request(Method::PATCH, path).json(&json!({"n": "1"}))).await;
        let increment = format!("{path}/fields/n/increment");
        let writes = || [
            gateway.request(Method::PATCH, path).json(&json!({"n": "7"})),
            gateway.request(Method::DELETE, path),
            gateway.request(Method::POST, &increment).json(&json!({"by": 1})),
            gateway.request(Method::PUT, "/v1/hashes/h/fields/n").body("7"),
            gateway.request(Method::DELETE, "/v1/hashes/h/fields/n"),
        ];
        for write in writes() {
            refused(&gateway, write.header("idempotency-key", "a b"), 400, "invalid_header").await;
        }
        for write in writes().into_iter().take(2) {
            refused(&gateway, write.header("if-match", "\"x\""), 400, "invalid_header").await;
        }
        let delete = gateway.request(Method::DELETE, "/v1/hashes/h/fields/n").header("if-none-match", "*");
        refused(&gateway, delete, 400, "invalid_header").await;
        assert_eq!(gateway.get("/v1/hashes/h/fields/n").await.1["value"], "1");
    }

    async fn p11_positions_that_can_not_be_read_are_refused(world) {
        let gateway = world.gateway().await;
        for bad in ["x", "1", "1-", "-1", "1-1-1", "01-1", "1-99999999999999999", "c1.AAAA", "1790000000000000:1"] {
            let path = "/v1/rooms/a/stream";
            let header = gateway.request(Method::GET, path).header("last-event-id", bad);
            refused(&gateway, header, 400, "invalid_position").await;
            let query = gateway.request(Method::GET, &format!("{path}?after={bad}"));
            refused(&gateway, query, 400, "invalid_position").await;
            let log = gateway.request(Method::GET, &format!("/v1/rooms/a/events?after={bad}"));
            refused(&gateway, log, 400, "invalid_position").await;
        }
        for bad in ["x", "1790000000000000-1", "c1.", "c1.A", "c1.!!!!", "c2.AAAA", &format!("c1.{}", "A".repeat(9000))] {
            // A cursor without rooms is valid.
            let status = if bad == "c1." { continue } else { 400 };
            let header = gateway.request(Method::GET, "/v1/stream?room=a").header("last-event-id", bad);
            refused(&gateway, header, status, "invalid_position").await;
        }
        let request = gateway.request(Method::GET, "/v1/rooms/a/stream").header("last-event-id", b"\xff".as_slice());
        refused(&gateway, request, 400, "invalid_header").await;
    }

    async fn p11_a_cursor_of_other_rooms_joins_afresh(world) {
        let gateway = world.gateway().await;
        let cursor = gateway.stream("/v1/stream?room=x&room=y").await.last_event_id.clone();
        let mut stream = gateway.resume("/v1/stream?room=z", Some(&cursor)).await;
        assert_eq!(stream.opened["rooms"]["z"]["resume"], "fresh");
        gateway.publish("z", "event").await;
        assert_eq!(stream.event().await.json()["data"], "event");
    }

    async fn p11_queries_that_can_not_be_read_are_refused(world) {
        let gateway = world.gateway().await;
        let rooms: Vec<_> = (0..21).map(|n| format!("room=r{n}")).collect();
        refused(&gateway, gateway.request(Method::GET, &format!("/v1/stream?{}", rooms.join("&"))), 400, "too_many_rooms").await;
        for path in [
            "/v1/stream", "/v1/stream?room=a&room=a", "/v1/stream?rooms=a", "/v1/rooms/a/stream?unknown=1",
            "/v1/rooms/a/stream?recent=x", "/v1/rooms/a/stream?recent=-1", "/v1/rooms/a/stream?recent=1001",
            "/v1/rooms/a/stream?from=latest", "/v1/rooms/a/stream?from=earliest&recent=1",
            "/v1/rooms/a/stream?after=1-1&after=1-2", "/v1/rooms/a/events?limit=0", "/v1/rooms/a/events?limit=1001",
            "/v1/rooms/a/events?limit=x", "/v1/rooms/a/events?x=1", "/v1/rooms?limit=0", "/v1/rooms?x=1",
            "/v1/hashes/h?limit=0", "/v1/hashes/h?x=1",
        ] {
            refused(&gateway, gateway.request(Method::GET, path), 400, "invalid_query").await;
        }
        refused(&gateway, gateway.request(Method::GET, "/v1/rooms/a/stream?event=a%0A"), 400, "invalid_name").await;
        refused(&gateway, gateway.request(Method::GET, "/v1/rooms/a/stream?subscriber=a%20b"), 400, "invalid_name").await;
    }
}

#[tokio::test]
async fn unknown_routes_and_methods_get_problem_documents() {
    let gateway = Gateway::start(|_| {}).await;
    for path in ["/console", "/v1", "/v2/rooms", "/v1/rooms/a/b", "/index.php", "/v1/rooms/a/"] {
        refused(&gateway, gateway.request(Method::GET, path), 404, "route_not_found").await;
    }
    for (method, path, allow) in [
        (Method::DELETE, "/v1/rooms", "GET,HEAD"),
        (Method::PUT, "/v1/rooms/a/events", "POST,GET,HEAD,DELETE"),
        (Method::POST, "/livez", "GET,HEAD"),
        (Method::GET, "/v1/events", "POST"),
    ] {
        let answer = gateway.answer(gateway.request(method.clone(), path)).await;
        let allowed = answer.headers()["allow"].to_str().unwrap();
        let sorted = |text: &str| {
            let mut methods: Vec<_> = text.split(',').map(str::to_owned).collect();
            methods.sort();
            methods
        };
        assert_eq!(sorted(allowed), sorted(allow));
        refused(&gateway, gateway.request(method, path), 405, "method_not_allowed").await;
    }
}

#[tokio::test]
async fn an_open_gateway_on_loopback_answers_no_foreign_page() {
    let gateway = Gateway::start(|_| {}).await;
    let get = || gateway.request(Method::GET, "/v1/rooms");
    let publish = || gateway.request(Method::POST, "/v1/rooms/guarded/events").body("x");
    refused(&gateway, get().header("host", "rebound.example"), 403, "foreign_host").await;
    for request in [&get as &dyn Fn() -> RequestBuilder, &publish] {
        for (name, value) in [
            ("sec-fetch-site", "cross-site"),
            ("origin", "https://evil.example"),
            ("origin", "null"),
            ("origin", "http://localhost.evil.example"),
        ] {
            refused(&gateway, request().header(name, value), 403, "cross_site").await;
        }
    }
    assert_eq!(gateway.get("/v1/rooms/guarded").await.1["retained"], 0);
    let own = publish().header("sec-fetch-site", "same-origin").header("origin", &gateway.url);
    assert_eq!(gateway.send(own).await.0, 201);
    // With --insecure-allow-anonymous, every request is answered.
    let open = Gateway::start(|settings| settings.access.insecure_allow_anonymous = true).await;
    let request = open.request(Method::GET, "/v1/rooms").header("host", "roomcast.example");
    assert_eq!(open.send(request.header("origin", "https://app.example")).await.0, 200);
}

#[tokio::test]
async fn a_callers_request_id_is_kept_if_it_is_harmless() {
    let gateway = Gateway::start(|_| {}).await;
    let answered_id = async |id: &str| {
        let request = gateway.request(Method::GET, "/livez").header("x-request-id", id);
        gateway.answer(request).await.headers()["x-request-id"].to_str().unwrap().to_owned()
    };
    assert_eq!(answered_id("trace-7").await, "trace-7");
    for hostile in [" ", "a b", &"x".repeat(129)] {
        let id = answered_id(hostile).await;
        assert!(id != hostile && id.len() == 36, "{id}");
    }
}
