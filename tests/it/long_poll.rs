//! Reads of a room's log that wait for events (long-poll): what they answer, and that they are limited and ended as streams
//! are.

mod script;

use futures_util::future::try_join_all;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::auth::{all, at, claims, close, token};
use crate::support::{Gateway, World, eventually, spawn, within};

const EVENTS: &str = "/v1/rooms/job/events";
/// Longer than any wait of a test.
const LONG: u64 = 60;

/// A user's token with every permission.
fn as_user(user: &str) -> String {
    let mut claims = claims(&all());
    claims["sub"] = json!(user);
    token(&claims)
}

fn admin() -> String {
    token(&claims(&json!({"admin": true})))
}

fn reading(gateway: &Gateway, query: &str) -> RequestBuilder {
    gateway.request(Method::GET, &format!("{EVENTS}?{query}"))
}

/// Reads the log. Returns the page.
async fn read(gateway: &Gateway, query: &str) -> Value {
    let (status, page) = gateway.send(reading(gateway, query)).await;
    assert_eq!(status, 200, "{query}: {page}");
    page
}

/// A read that goes on beside the test.
type Waiting = JoinHandle<Value>;

/// Begins a read that waits.
fn begin(request: RequestBuilder) -> Waiting {
    spawn(async {
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/json");
        response.json().await.unwrap()
    })
}

/// Waits until so many streams are open, which are reads that wait or others.
async fn until_open(gateway: &Gateway, count: usize) {
    let line = format!("roomcast_streams {count}");
    eventually(&line, async || {
        let metrics = gateway.answer(gateway.request(Method::GET, "/metrics").bearer_auth(admin())).await;
        metrics.text().await.unwrap().lines().any(|other| other == line).then_some(())
    })
    .await;
}

/// Begins a read that waits for what follows a position, and waits until it waits.
async fn waiting(gateway: &Gateway, after: &str) -> Waiting {
    let waiting = begin(reading(gateway, &format!("after={after}&wait={LONG}")));
    until_open(gateway, 1).await;
    waiting
}

async fn answer(waiting: Waiting) -> Value {
    within("an answer to a read that waits", waiting).await.unwrap()
}

fn datas(page: &Value) -> Vec<&str> {
    page["events"].as_array().unwrap().iter().map(|event| event["data"].as_str().unwrap()).collect()
}

fn id(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// The position of the room's log.
async fn head(gateway: &Gateway) -> String {
    id(&read(gateway, "").await["head"]).to_owned()
}

async fn finish(gateway: &Gateway) -> String {
    let request = gateway.request(Method::POST, &format!("{EVENTS}?final=true")).body("last");
    id(&gateway.send(request).await.1["id"]).to_owned()
}

on_both_brokers! {
    async fn what_follows_already_is_answered_at_once_as_without_a_wait(world) {
        let gateway = world.gateway().await;
        let start = head(&gateway).await;
        for text in ["a", "b", "c"] {
            gateway.publish("job", text).await;
        }
        for query in [format!("after={start}"), format!("after={start}&limit=2"), "after=1-5".into()] {
            let plain = gateway.answer(reading(&gateway, &query)).await;
            let waited = gateway.answer(reading(&gateway, &format!("{query}&wait={LONG}"))).await;
            for name in ["etag", "link"] {
                assert_eq!(plain.headers().get(name), waited.headers().get(name), "{query}");
            }
            assert!(!waited.headers().contains_key("connection"));
            assert_eq!(plain.json::<Value>().await.unwrap(), waited.json::<Value>().await.unwrap(), "{query}");
        }
        let page = read(&gateway, &format!("after={start}&limit=2&wait={LONG}")).await;
        assert_eq!((datas(&page), &page["finished"]), (vec!["a", "b"], &json!(false)));
        let page = read(&gateway, &format!("after={}&wait={LONG}", id(&page["next"]))).await;
        assert_eq!((datas(&page), &page["next"]), (vec!["c"], &page["head"]));
    }

    async fn an_event_that_comes_meanwhile_answers_every_read_that_waits(world) {
        let gateway = world.gateway().await;
        let before = gateway.publish("job", "before").await;
        let others = [begin(reading(&gateway, &format!("wait={LONG}"))), begin(reading(&gateway, &format!("wait={LONG}&limit=1&after={before}")))];
        let mut stream = gateway.room("job").await;
        until_open(&gateway, 3).await;
        let published = gateway.publish("job", "news").await;
        for waiting in others {
            let page = answer(waiting).await;
            let event = &page["events"][0];
            assert_eq!((&event["id"], &event["event"], &event["data"]), (&json!(published), &Value::Null, &json!("news")));
            assert!(event["published_at"].as_str().unwrap().ends_with('Z'));
            let rest = (&page["room"], &page["oldest"], &page["head"], &page["gap"], &page["next"], &page["finished"]);
            assert_eq!(rest, (&json!("job"), &Value::Null, &json!(published), &Value::Null, &json!(published), &json!(false)));
            // The page without a wait has the same event.
            assert_eq!(read(&gateway, &format!("after={before}")).await["events"], page["events"]);
        }
        assert_eq!(stream.data().await, "news");
    }

    async fn a_read_whose_time_is_up_is_empty_and_the_next_one_goes_on(world) {
        let gateway = world.gateway().await;
        // In a room that nothing was ever published to, too.
        for _ in 0..2 {
            let start = head(&gateway).await;
            let page = read(&gateway, "wait=1").await;
            assert_eq!((&page["events"], &page["next"], &page["finished"]), (&json!([]), &page["head"], &json!(false)));
            let page = read(&gateway, &format!("after={start}&wait=1")).await;
            assert_eq!((&page["events"], &page["gap"]), (&json!([]), &Value::Null));
            gateway.publish("job", "between").await;
            let page = read(&gateway, &format!("after={}&wait={LONG}", id(&page["next"]))).await;
            assert_eq!((datas(&page), &page["gap"]), (vec!["between"], &Value::Null));
        }
    }

    async fn p2_a_client_that_polls_gets_each_event_once_in_order_while_others_publish(world) {
        const EVENTS_EACH: usize = 100;
        let gateway = world.gateway().await;
        let mut next = head(&gateway).await;
        let publishing = async {
            for number in 0..EVENTS_EACH {
                gateway.publish("job", &number.to_string()).await;
            }
        };
        let polling = async {
            let mut got: Vec<String> = Vec::new();
            while got.len() < EVENTS_EACH {
                let page = read(&gateway, &format!("after={next}&wait={LONG}&limit=3")).await;
                assert_eq!(page["gap"], Value::Null);
                assert!((1..=3).contains(&datas(&page).len()), "{page}");
                got.extend(datas(&page).into_iter().map(str::to_owned));
                id(&page["next"]).clone_into(&mut next);
            }
            got
        };
        let ((), got) = tokio::join!(publishing, polling);
        assert_eq!(got, (0..EVENTS_EACH).map(|number| number.to_string()).collect::<Vec<_>>());
    }

    async fn a_page_has_no_more_events_than_asked_for_however_many_come_at_once(world) {
        let gateway = world.gateway().await;
        let waiting = begin(reading(&gateway, &format!("wait={LONG}&limit=2")));
        until_open(&gateway, 1).await;
        let events: Vec<_> = (0..5).map(|number| json!({"room": "job", "data": number.to_string()})).collect();
        gateway.post("/v1/events", &json!({"events": events})).await;
        let mut page = answer(waiting).await;
        let mut got = Vec::new();
        while got.len() < 5 {
            assert!(datas(&page).len() <= 2, "{page}");
            got.extend(datas(&page).into_iter().map(str::to_owned));
            page = read(&gateway, &format!("after={}&wait=1&limit=2", id(&page["next"]))).await;
        }
        assert_eq!(got, ["0", "1", "2", "3", "4"]);
        assert_eq!(page["events"], json!([]));
    }

    async fn p4_a_gap_is_answered_at_once(world) {
        let gateway = world.gateway().await;
        let first = gateway.publish("job", "first").await;
        gateway.publish("job", "second").await;
        let deleted = gateway.answer(gateway.request(Method::DELETE, EVENTS)).await;
        assert_eq!(deleted.status(), 204);
        for (after, reason) in [(first.as_str(), "expired"), ("1-5", "unknown_position")] {
            let page = read(&gateway, &format!("after={after}&wait={LONG}")).await;
            assert_eq!((&page["events"], &page["gap"]["from"], &page["gap"]["reason"]), (&json!([]), &json!(after), &json!(reason)));
            assert_eq!(page["next"], page["gap"]["to"]);
            let waiting = waiting(&gateway, id(&page["head"])).await;
            gateway.publish("job", "after").await;
            let page = answer(waiting).await;
            assert_eq!((datas(&page), &page["gap"]), (vec!["after"], &Value::Null));
            assert_eq!(gateway.answer(gateway.request(Method::DELETE, EVENTS)).await.status(), 204);
        }
    }

    async fn a_finished_room_is_told_at_once(world) {
        let gateway = world.gateway().await;
        let before = gateway.publish("job", "before").await;
        let waiting = waiting(&gateway, &before).await;
        let last = finish(&gateway).await;
        let page = answer(waiting).await;
        assert_eq!((datas(&page), &page["events"][0]["final"], &page["next"]), (vec!["last"], &json!(true), &json!(last)));
        for query in [format!("after={last}&wait={LONG}"), format!("wait={LONG}"), format!("after={last}")] {
            let page = read(&gateway, &query).await;
            assert_eq!((&page["events"], &page["next"], &page["finished"]), (&json!([]), &json!(last), &json!(true)), "{query}");
        }
        let page = read(&gateway, &format!("after={before}&wait={LONG}")).await;
        assert_eq!((datas(&page), &page["finished"]), (vec!["last"], &json!(true)));
        // A page that does not reach the end, and one that does not lead there.
        assert_eq!(read(&gateway, "limit=1").await["finished"], false);
        let page = read(&gateway, &format!("before={last}")).await;
        assert_eq!((&page["finished"], &page["next"]), (&json!(false), &Value::Null));
    }

    async fn a_read_that_waits_makes_nobody_a_member(world) {
        let gateway = world.gateway().await;
        let mut watcher = gateway.stream("/v1/rooms/job/stream?subscriber=ann&presence=true").await;
        assert_eq!(watcher.event().await.event, "presence.join");
        let before = head(&gateway).await;
        let waiting = begin(reading(&gateway, &format!("after={before}&wait={LONG}")));
        until_open(&gateway, 2).await;
        let (_, list) = gateway.get("/v1/rooms/job/subscribers").await;
        let names: Vec<_> = list["subscribers"].as_array().unwrap().iter().map(|member| id(&member["subscriber"])).collect();
        assert_eq!(names, ["ann"]);
        // A client that may read the presence events of the log waits for them, too.
        let _other = gateway.stream("/v1/rooms/job/stream?subscriber=bob").await;
        let page = answer(waiting).await;
        assert_eq!(page["events"][0]["event"], "presence.join", "{page}");
    }

    async fn a_caller_who_may_not_see_presence_waits_on_until_there_is_a_message(world) {
        let gateway = world.gateway_with(close).await;
        let (ann, reader) = (as_user("ann"), token(&claims(&json!({"subscribe": ["*"]}))));
        let member = |name: &str| format!("/v1/rooms/job/stream?subscriber={name}&access_token={ann}");
        let mut watcher = gateway.stream(&format!("/v1/rooms/job/stream?presence=true&access_token={ann}")).await;
        let waiting = begin(reading(&gateway, &format!("wait={LONG}")).bearer_auth(&reader));
        until_open(&gateway, 2).await;
        let _member = gateway.stream(&member("one")).await;
        assert_eq!(watcher.event().await.event, "presence.join");
        publish_as(&gateway, &ann, "news").await;
        assert_eq!(datas(&answer(waiting).await), ["news"]);
    }

    async fn p12_a_read_that_waits_is_answered_when_the_replica_shuts_down(world) {
        let gateway = world.gateway().await;
        let before = gateway.publish("job", "before").await;
        let waiting = waiting(&gateway, &before).await;
        gateway.stop().await.unwrap();
        let page = answer(waiting).await;
        assert_eq!((&page["events"], &page["next"], &page["finished"]), (&json!([]), &json!(before), &json!(false)));
    }

    async fn a_client_that_goes_away_frees_what_its_read_holds(world) {
        let gateway = world.gateway_with(|settings| {
            close(settings);
            settings.limits.max_streams_per_subject = 1;
        }).await;
        let before = head_of(&gateway, &as_user("ann")).await;
        let query = format!("after={before}&wait={LONG}");
        let waiting = begin(reading(&gateway, &query).bearer_auth(as_user("ann")));
        until_open(&gateway, 1).await;
        waiting.abort();
        until_open(&gateway, 0).await;
        let again = begin(reading(&gateway, &query).bearer_auth(as_user("ann")));
        until_open(&gateway, 1).await;
        again.abort();
    }

    async fn reads_that_wait_count_as_streams(world) {
        let gateway = world.gateway_with(|settings| {
            close(settings);
            settings.limits.max_streams_per_subject = 1;
        }).await;
        let (ann, bob) = (as_user("ann"), as_user("bob"));
        let before = head_of(&gateway, &ann).await;
        let query = format!("after={before}&wait={LONG}");
        let waiting = begin(reading(&gateway, &query).bearer_auth(&ann));
        until_open(&gateway, 1).await;
        let refused = gateway.answer(reading(&gateway, &query).bearer_auth(&ann)).await;
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        assert!(refused.headers().contains_key("retry-after"));
        assert_eq!(refused.json::<Value>().await.unwrap()["code"], "too_many_requests");
        let stream = gateway.stream(&format!("/v1/rooms/job/stream?access_token={ann}")).await;
        assert_eq!(stream.opened["reason"], "too_many_streams");
        publish_as(&gateway, &bob, "news").await;
        assert_eq!(datas(&answer(waiting).await), ["news"]);
        // What is answered at once holds no stream, and the stream that is open now does not keep it from its answer.
        until_open(&gateway, 0).await;
        let _stream = gateway.stream(&format!("/v1/rooms/job/stream?access_token={ann}")).await;
        assert_eq!(gateway.answer(reading(&gateway, &query).bearer_auth(&ann)).await.status(), 429);
        assert_eq!(gateway.answer(reading(&gateway, &format!("after={before}")).bearer_auth(&ann)).await.status(), 200);
    }

    async fn reads_that_wait_are_counted_as_requests(world) {
        let gateway = world.gateway_with(|settings| {
            close(settings);
            settings.limits.rate_per_subject = 1;
        }).await;
        let before = publish_as(&gateway, &as_user("bob"), "before").await;
        // More than are accepted within the deadline.
        let reads = (0..40).map(|_| {
            reading(&gateway, &format!("after={before}&wait={LONG}")).bearer_auth(as_user("ann")).send()
        });
        // The heads of those that wait come at once.
        let answers = within("the heads", try_join_all(reads)).await.unwrap();
        let refused = answers.into_iter().find(|answer| answer.status() == StatusCode::TOO_MANY_REQUESTS);
        let problem: Value = refused.expect("one is refused").json().await.unwrap();
        assert_eq!(problem["code"], "too_many_requests");
    }

    async fn p10_a_read_that_waits_ends_with_its_token(world) {
        let gateway = world.gateway_with(close).await;
        let mut claims = claims(&all());
        claims["exp"] = json!(at(3));
        let token = token(&claims);
        let before = publish_as(&gateway, &token, "before").await;
        let query = format!("after={before}&wait={LONG}");
        let waiting = begin(reading(&gateway, &query).bearer_auth(&token));
        let page = answer(waiting).await;
        assert!(at(0) >= claims["exp"].as_i64().unwrap(), "not before the token expires");
        assert_eq!((&page["events"], &page["next"]), (&json!([]), &json!(before)));
        let (status, problem) = gateway.send(reading(&gateway, &query).bearer_auth(&token)).await;
        assert_eq!((status.as_u16(), &problem["code"]), (401, &json!("token_expired")));
    }

    async fn a_removed_users_read_is_answered_without_events_and_the_next_one_is_refused(world) {
        let gateway = world.gateway_with(close).await;
        let (ann, bob) = (as_user("ann"), as_user("bob"));
        let before = publish_as(&gateway, &ann, "before").await;
        let query = format!("after={before}&wait={LONG}");
        let waiting = begin(reading(&gateway, &query).bearer_auth(&ann));
        let other = begin(reading(&gateway, &query).bearer_auth(&bob));
        until_open(&gateway, 2).await;
        let path = "/v1/users/ann/streams?deny_seconds=600";
        let removal = gateway.request(Method::DELETE, path).bearer_auth(admin());
        assert_eq!(gateway.answer(removal).await.status(), 204);
        let page = answer(waiting).await;
        assert_eq!((&page["events"], &page["next"]), (&json!([]), &json!(before)));
        let (status, problem) = gateway.send(reading(&gateway, &query).bearer_auth(&ann)).await;
        assert_eq!((status.as_u16(), &problem["code"]), (403, &json!("forbidden")));
        publish_as(&gateway, &bob, "news").await;
        assert_eq!(datas(&answer(other).await), ["news"]);
    }

    async fn p11_a_wait_that_can_not_be_is_refused(world) {
        let gateway = world.gateway().await;
        for (query, detail) in [
            ("wait=0", "wait must be between 1 and 60"),
            ("wait=61", "wait must be between 1 and 60"),
            ("wait=1.5", "wait: it must be a whole number, 0 or above"),
            ("wait=5&before=1-1", "a read with before can't wait; leave out wait"),
        ] {
            let (status, problem) = gateway.send(reading(&gateway, query)).await;
            assert_eq!((status.as_u16(), &problem["code"]), (400, &json!("invalid_query")), "{query}");
            assert_eq!(problem["detail"], detail);
        }
        let (status, problem) = gateway.send(reading(&gateway, "wait=5&after=x")).await;
        assert_eq!((status.as_u16(), &problem["code"]), (400, &json!("invalid_position")));
        // HEAD does not wait.
        let head = gateway.answer(gateway.request(Method::HEAD, &format!("{EVENTS}?wait={LONG}"))).await;
        assert_eq!(head.status(), 200);
    }

    async fn the_answer_is_whole_on_the_wire_and_the_connection_ends(world) {
        let gateway = world.gateway().await;
        for version in ["1.1", "1.0"] {
            let before = gateway.publish("job", "before").await;
            let mut socket = TcpStream::connect(gateway.address()).await.unwrap();
            let head = format!("GET {EVENTS}?after={before}&wait={LONG} HTTP/{version}\r\nhost: localhost\r\n\r\n");
            socket.write_all(head.as_bytes()).await.unwrap();
            until_open(&gateway, 1).await;
            gateway.publish("job", "news").await;
            let mut answer = String::new();
            within("the answer", socket.read_to_string(&mut answer)).await.unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with("HTTP/1.1 200 ") || head.starts_with("HTTP/1.0 200 "), "{head}");
            let is_chunked = head.to_lowercase().contains("transfer-encoding: chunked");
            assert_eq!(is_chunked, version == "1.1", "{head}");
            assert!(!is_chunked || body.ends_with("}\r\n0\r\n\r\n"), "{body}");
            assert!(body.contains("\"data\":\"news\""), "{body}");
            until_open(&gateway, 0).await;
        }
    }
}

/// Publishes as a caller with a token. Returns the id.
async fn publish_as(gateway: &Gateway, token: &str, text: &str) -> String {
    let request = gateway.request(Method::POST, EVENTS).bearer_auth(token).body(text.to_owned());
    let (status, published) = gateway.send(request).await;
    assert_eq!(status, 201, "{published}");
    id(&published["id"]).to_owned()
}

/// The position of the room's log, for a caller with a token.
async fn head_of(gateway: &Gateway, token: &str) -> String {
    let (_, page) = gateway.send(reading(gateway, "").bearer_auth(token)).await;
    id(&page["head"]).to_owned()
}

#[tokio::test]
async fn a_read_that_waits_gets_what_is_published_on_another_replica() {
    let world = World::redis().await;
    let (one, other) = (world.gateway().await, world.gateway().await);
    let before = one.publish("job", "before").await;
    let waiting = waiting(&other, &before).await;
    one.publish("job", "news").await;
    assert_eq!(datas(&answer(waiting).await), ["news"]);
}

#[tokio::test]
async fn p4_a_read_that_waits_is_told_of_a_loss_in_redis() {
    let mut world = World::redis().await;
    let gateway = world.gateway().await;
    let before = gateway.publish("job", "before").await;
    let waiting = waiting(&gateway, &before).await;
    let redis = world.redis.as_mut().unwrap();
    redis.kill();
    redis.come_back().await;
    let page = answer(waiting).await;
    assert_eq!((&page["events"], &page["gap"]["reason"]), (&json!([]), &json!("log_lost")), "{page}");
    assert_eq!(page["next"], page["gap"]["to"]);
}

#[tokio::test]
async fn p8_a_read_that_waits_is_refused_while_redis_is_away() {
    let mut world = World::redis().await;
    let gateway = world.gateway().await;
    world.redis.as_mut().unwrap().kill();
    eventually("the read is refused", async || {
        let (status, problem) = gateway.send(reading(&gateway, &format!("wait={LONG}"))).await;
        (status == 503 && problem["code"] == "unavailable").then_some(())
    })
    .await;
}
