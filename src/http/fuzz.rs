//! Fuzz targets: batches, and whole requests through every layer except the socket.

use std::cell::RefCell;
use std::collections::BTreeMap;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Method, Request, StatusCode, header};
use axum::response::Response;
use http_body_util::BodyExt;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::runtime::Runtime;
use tower::ServiceExt;

use super::api::batch::Batch;
use super::extract::{JsonObject, parse_json};
use super::problem::Code;
use super::test_app;
use crate::broker::entity_tag;
use crate::fuzz::{shaped, shaped_text};

const BATCHES: [&str; 2] = [
    r#"{"events":[{"room":"lobby","event":"chat","data":{"t":1},"idempotency_key":"k"},{"rooms":["a","b"],"data":42}]}"#,
    r#"{"events":[]}"#,
];

/// Every accepted batch is a list of objects with data and without unknown members.
#[test]
fn fuzz_batch_bodies() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let body = shaped(&BATCHES, bytes);
        match parse_json::<JsonObject<Batch>>(&body) {
            Ok(_) => {
                let batch: BTreeMap<String, Vec<BTreeMap<String, Box<RawValue>>>> =
                    serde_json::from_slice(&body).expect("lists of objects");
                let known = ["room", "rooms", "event", "data", "except", "idempotency_key"];
                assert!(batch.keys().eq(["events"]));
                for event in &batch["events"] {
                    assert!(event.contains_key("data"));
                    assert!(event.keys().all(|name| known.contains(&name.as_str())));
                }
            }
            Err(problem) => assert!(problem.code() == Code::InvalidBody && !problem.detail().is_empty()),
        }
    });
}

thread_local! {
    static GATEWAY: RefCell<Option<(Runtime, Router)>> = const { RefCell::new(None) };
}

/// Sends a request through the whole router. Returns the head and the body of the response; of a stream, the first
/// bytes.
fn answer(request: Request<Body>) -> (Response<()>, Option<Bytes>) {
    GATEWAY.with_borrow_mut(|gateway| {
        let (runtime, router) = gateway.get_or_insert_with(start);
        runtime.block_on(async {
            let Ok(response) = router.clone().oneshot(request).await;
            let (head, body) = response.into_parts();
            let is_stream = head.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "text/event-stream");
            // A stream does not end.
            let body = if is_stream {
                let mut body = body;
                body.frame().await.map(|frame| frame.unwrap().into_data().unwrap())
            } else {
                Some(body.collect().await.unwrap().to_bytes())
            };
            (Response::from_parts(head, ()), body)
        })
    })
}

fn start() -> (Runtime, Router) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let inside = runtime.enter();
    let router = super::router(&test_app());
    drop(inside);
    (runtime, router)
}

/// Checks what holds for every answer: it is a success or a complete problem document, and never an internal error.
fn check((head, body): &(Response<()>, Option<Bytes>)) {
    let status = head.status();
    assert!(status != StatusCode::INTERNAL_SERVER_ERROR, "{head:?}");
    assert!(head.headers().contains_key("x-request-id"));
    if status.is_client_error() || status.is_server_error() {
        assert_eq!(head.headers()[header::CONTENT_TYPE], super::problem::MEDIA_TYPE, "{head:?}");
        let document: Value = serde_json::from_slice(body.as_ref().unwrap()).unwrap();
        assert_eq!(document["status"], status.as_u16());
        for part in ["code", "title", "detail", "request_id"] {
            assert!(document[part].as_str().is_some_and(|text| !text.is_empty()), "{document}");
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            assert_eq!(document["code"], "out_of_memory");
            assert!(head.headers().contains_key(header::RETRY_AFTER));
        }
    }
}

const METHODS: [Method; 7] =
    [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::HEAD, Method::OPTIONS];
const TARGETS: [&str; 12] = [
    "/v1/rooms/lobby/events?event=chat",
    "/v1/rooms/lobby/events?after=1790000000000000-1&before=9007199254740991-1&limit=10",
    "/v1/rooms/lobby/stream?after=1790000000000000-1&event=a&event=b&subscriber=me",
    "/v1/rooms/gr%C3%B6%C3%9Fe/stream?recent=10",
    "/v1/stream?room=a&room=b&from=earliest&after=c1.AAAA",
    "/v1/events",
    "/v1/rooms?prefix=a&limit=10",
    "/v1/rooms/lobby",
    "/v1/hashes/lamp?field=colour&limit=10&after=0",
    "/v1/hashes/lamp/fields/colour",
    "/v1/hashes/lamp/fields/count/increment",
    "/healthz",
];
const HEADERS: [(&str, &str); 8] = [
    ("content-type", "application/json"),
    ("content-type", "text/plain; charset=utf-8"),
    ("last-event-id", "1790000000000000-1"),
    ("idempotency-key", "5f0c3a1e"),
    ("if-match", "\"da39a3ee5e6b4b0d3255bfef95601890afd80709\", *"),
    ("if-none-match", "*"),
    ("accept", "text/plain"),
    ("host", "localhost:8080"),
];
const BODIES: [&str; 6] = [
    r#"{"event":"chat","data":{"n":12345678901234567890.10},"except":["me"]}"#,
    BATCHES[0],
    r#"{"value":"green"}"#,
    r#"{"colour":"green","size":null}"#,
    r#"{"by":-9223372036854775808}"#,
    "some text",
];

/// Every method, target, headers and body get a valid answer.
#[test]
fn fuzz_requests() {
    type RequestInput = (u8, Vec<u8>, Vec<(u8, Vec<u8>)>, Vec<u8>);
    bolero::check!().with_type::<RequestInput>().for_each(|(method, target, headers, body): &RequestInput| {
        let method = METHODS[usize::from(*method) % METHODS.len()].clone();
        let mut request = Request::builder().method(method).uri(shaped_text(&TARGETS, target));
        request = request.header("host", "localhost");
        for (which, value) in headers.iter().take(4) {
            let (name, sample) = HEADERS[usize::from(*which) % HEADERS.len()];
            request = request.header(name, shaped(&[sample], value));
        }
        // An input that is not a request at all does not get through hyper either.
        let Ok(request) = request.body(Body::from(shaped(&BODIES, body))) else { return };
        let is_head = request.method() == Method::HEAD;
        let answered = answer(request);
        // The answer to HEAD has no body to check.
        if is_head { assert!(answered.0.status().as_u16() != 500) } else { check(&answered) }
    });
}

/// `If-Match` holds if it is `*` or has the value's entity tag. Any other header does not hold, or is refused as
/// invalid.
#[test]
fn fuzz_conditions() {
    let value = "green";
    let tag = format!("\"{}\"", entity_tag(value.as_bytes()));
    let both = format!("\"other\", {tag}");
    let samples = [tag.as_str(), &both, "*", "W/\"weak\"", "\"other\""];
    let put = || Request::put("/v1/hashes/lamp/fields/colour").header("host", "localhost");
    bolero::check!().for_each(|bytes: &[u8]| {
        let given = shaped(&samples, bytes);
        let Ok(request) = put().header("if-match", &given[..]).body(Body::from(value)) else { return };
        assert!(answer(put().body(Body::from(value)).unwrap()).0.status().is_success());
        let answered = answer(request);
        check(&answered);
        let text = String::from_utf8_lossy(&given);
        match answered.0.status() {
            StatusCode::OK => {
                assert!(text.trim_matches([',', ' ', '\t']) == "*" || text.contains(&tag), "{text:?} holds");
            }
            StatusCode::PRECONDITION_FAILED => assert!(!text.split(',').any(|one| one.trim() == tag), "{text:?}"),
            status => assert_eq!(status, StatusCode::BAD_REQUEST),
        }
    });
}

/// A key is accepted if it is short, visible ASCII. Then the same request gets the same answer.
#[test]
fn fuzz_idempotency_keys() {
    let publish = |key: &[u8]| {
        let request = Request::post("/v1/rooms/keys/events").header("host", "localhost");
        request.header("idempotency-key", key).body(Body::from("x")).ok()
    };
    bolero::check!().for_each(|bytes: &[u8]| {
        let key = shaped(&["5f0c3a1e-1b2c", "a", "a b"], bytes);
        let Some(first) = publish(&key) else { return };
        let (first, second) = (answer(first), answer(publish(&key).unwrap()));
        check(&first);
        let is_valid = (1..=255).contains(&key.len()) && key.iter().all(u8::is_ascii_graphic);
        match first.0.status() {
            StatusCode::CREATED => {
                assert!(is_valid);
                assert_eq!(first.1, second.1);
                assert_eq!(second.0.headers()["idempotency-replayed"], "true");
            }
            StatusCode::SERVICE_UNAVAILABLE => assert!(is_valid),
            status => assert!(status == StatusCode::BAD_REQUEST && !is_valid, "{status}"),
        }
    });
}
