//! Publish once (P6): repeating a publish with the same key gives the same answer and has no second effect.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Gateway, eventually};

/// Publishes with a key. Returns the status, the body, and whether the answer was a replay.
async fn publish(gateway: &Gateway, room: &str, key: &str, body: &Value) -> (StatusCode, Value, bool) {
    let request = gateway.request(Method::POST, &format!("/v1/rooms/{room}/events")).header("idempotency-key", key);
    let answer = gateway.answer(request.json(body)).await;
    let replayed = answer.headers().get("idempotency-replayed").is_some_and(|value| value == "true");
    (answer.status(), answer.json().await.unwrap(), replayed)
}

on_both_brokers! {
    async fn p6_the_same_key_and_content_has_the_same_answer_and_no_second_effect(world) {
        let gateway = world.gateway().await;
        let mut stream = gateway.room("once").await;
        let body = json!({"event": "pay", "data": {"amount": 5}});
        let (status, first, replayed) = publish(&gateway, "once", "key-1", &body).await;
        assert_eq!((status.as_u16(), replayed), (201, false));
        let (status, second, replayed) = publish(&gateway, "once", "key-1", &body).await;
        assert_eq!((status.as_u16(), replayed), (201, true));
        assert_eq!(first, second);
        gateway.publish("once", "next").await;
        assert_eq!(stream.event().await.event, "pay");
        assert_eq!(stream.data().await, "next");
    }

    async fn p6_the_same_key_with_other_content_is_refused(world) {
        let gateway = world.gateway().await;
        let body = json!({"event": "pay", "data": 5});
        assert_eq!(publish(&gateway, "once", "key", &body).await.0, 201);
        for other in [
            json!({"event": "pay", "data": 6}), json!({"event": "refund", "data": 5}), json!({"data": 5}),
            json!({"event": "pay", "data": 5, "except": ["me"]}), json!({"event": "pay", "data": "5"}),
        ] {
            let (status, problem, _) = publish(&gateway, "once", "key", &other).await;
            assert_eq!((status.as_u16(), &problem["code"]), (422, &json!("idempotency_key_reused")), "{other}");
        }
        let text = gateway.request(Method::POST, "/v1/rooms/once/events?event=pay").header("idempotency-key", "key");
        assert_eq!(gateway.send(text.body("5")).await.0, 422);
        assert_eq!(gateway.get("/v1/rooms/once").await.1["retained"], 1);
    }

    async fn p6_a_key_stands_for_one_room_and_for_one_publish(world) {
        let gateway = world.gateway().await;
        let body = json!({"data": 1});
        assert!(!publish(&gateway, "a", "key", &body).await.2);
        assert!(!publish(&gateway, "b", "key", &body).await.2);
        assert!(!publish(&gateway, "a", "other", &body).await.2);
        assert_eq!(gateway.get("/v1/rooms/a").await.1["retained"], 2);
    }

    async fn p6_simultaneous_requests_with_one_key_store_one_event(world) {
        let gateway = world.gateway().await;
        let body = json!({"data": "met"});
        let together = (0..30).map(|_| publish(&gateway, "met", "key", &body));
        let answers = futures_util::future::join_all(together).await;
        assert!(answers.iter().all(|(status, answer, _)| *status == 201 && *answer == answers[0].1));
        assert_eq!(answers.iter().filter(|(.., replayed)| !replayed).count(), 1);
        assert_eq!(gateway.get("/v1/rooms/met").await.1["retained"], 1);
    }

    async fn p6_a_key_is_forgotten_after_the_window(world) {
        let gateway = world.gateway_with(|settings| settings.retention.idempotency_window = Duration::from_secs(1)).await;
        let body = json!({"data": 1});
        let (_, first, _) = publish(&gateway, "window", "key", &body).await;
        eventually("the key is forgotten", async || {
            let (_, answer, replayed) = publish(&gateway, "window", "key", &body).await;
            assert_eq!(replayed, answer == first);
            (!replayed).then_some(())
        }).await;
    }

    async fn p6_repeating_any_part_of_a_batch_stores_nothing_twice(world) {
        let gateway = world.gateway().await;
        let batch = json!({"events": [
            {"room": "a", "data": 1},
            {"rooms": ["a", "b"], "data": 2},
            {"room": "b", "data": 3, "idempotency_key": "own"},
        ]});
        let send = async |batch: &Value| {
            let request = gateway.request(Method::POST, "/v1/events").header("idempotency-key", "batch");
            gateway.send(request.json(batch)).await
        };
        let (status, first) = send(&batch).await;
        assert_eq!(status, 200, "{first}");
        let (status, second) = send(&batch).await;
        assert_eq!(status, 200);
        for (first, second) in first["results"].as_array().unwrap().iter().zip(second["results"].as_array().unwrap()) {
            assert_eq!((&first["replayed"], &second["replayed"]), (&json!(false), &json!(true)));
            assert_eq!((&first["published"], &first["publish_id"]), (&second["published"], &second["publish_id"]));
        }
        // An item's own key also holds in another batch, and without the header.
        let again = json!({"events": [{"room": "b", "data": 3, "idempotency_key": "own"}]});
        assert_eq!(gateway.post("/v1/events", &again).await.1["results"][0]["replayed"], true);
        let other = json!({"events": [{"room": "a", "data": 1}, {"room": "a", "data": "other"}]});
        let (status, answer) = send(&other).await;
        assert_eq!(status, 207);
        assert_eq!(answer["results"][0]["replayed"], true);
        assert_eq!(answer["results"][1]["status"], 422);
        assert_eq!(answer["results"][1]["problem"]["code"], "idempotency_key_reused");
        assert_eq!(gateway.get("/v1/rooms/a").await.1["retained"], 2);
        assert_eq!(gateway.get("/v1/rooms/b").await.1["retained"], 2);
    }

    async fn p6_invalid_keys_are_refused(world) {
        let gateway = world.gateway().await;
        for key in ["", "a b", &"x".repeat(256)] {
            let (status, problem, _) = publish(&gateway, "bad", key, &json!({"data": 1})).await;
            assert_eq!((status.as_u16(), &problem["code"]), (400, &json!("invalid_header")), "{key:?}");
            let batch = json!({"events": [{"room": "bad", "data": 1, "idempotency_key": key}]});
            assert_eq!(gateway.post("/v1/events", &batch).await.0, 400, "{key:?}");
        }
        assert_eq!(gateway.get("/v1/rooms/bad").await.1["retained"], 0);
    }
}

#[tokio::test]
async fn p6_a_key_holds_on_another_replica_and_is_stored_hashed() {
    let world = crate::support::World::redis().await;
    let (one, two) = (world.gateway().await, world.gateway().await);
    let body = json!({"data": 1});
    let (_, first, _) = publish(&one, "shared", "my-secret-key", &body).await;
    let (_, second, replayed) = publish(&two, "shared", "my-secret-key", &body).await;
    assert!(replayed);
    assert_eq!(first, second);
    let keys = world.redis.as_ref().unwrap().cli(&["KEYS", "*"]);
    assert!(keys.contains("roomcast:{shared}:once:") && !keys.contains("my-secret-key"), "{keys}");
    let stored = keys.lines().find(|key| key.contains(":once:")).unwrap();
    let lifetime: i64 = world.redis.as_ref().unwrap().cli(&["PTTL", stored]).parse().unwrap();
    assert!((1..=300_000).contains(&lifetime), "{lifetime}");
}
