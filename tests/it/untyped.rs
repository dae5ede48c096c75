//! Bodies whose `Content-Type` says nothing about them: without one, and with the one that `curl -d` sends.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::Gateway;

const FORM: &str = "application/x-www-form-urlencoded";
/// Each way in which a body has no type of its own.
const UNTYPED: [Option<&str>; 4] =
    [None, Some(""), Some(FORM), Some("Application/X-WWW-Form-urlencoded; charset=UTF-8")];
const PUBLISH: (Method, &str) = (Method::POST, "/v1/rooms/untyped/events");
const SET: (Method, &str) = (Method::PUT, "/v1/hashes/untyped/fields/state");

async fn send(
    gateway: &Gateway,
    (method, path): &(Method, &str),
    content_type: Option<&str>,
    body: &str,
) -> (StatusCode, Value) {
    let mut request = gateway.request(method.clone(), path).body(body.to_owned());
    if let Some(content_type) = content_type {
        request = request.header("content-type", content_type);
    }
    gateway.send(request).await
}

async fn assert_told_the_type(gateway: &Gateway, route: (Method, &str), bodies: &[&str]) {
    for content_type in UNTYPED {
        for body in bodies {
            let (status, problem) = send(gateway, &route, content_type, body).await;
            assert_eq!((status.as_u16(), &problem["code"]), (415, &json!("unsupported_media_type")), "{body}");
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.contains("add -H 'Content-Type: application/json'"), "{detail}");
            assert!(!detail.contains('\n'), "{detail}");
        }
    }
}

on_both_brokers! {
    async fn a_json_object_or_a_form_of_members_is_refused_by_a_publish(world) {
        let bodies = [
            r#"{"event":"chat","data":{"text":"hello"}}"#,
            r#"{"data":1}"#,
            " \r\n\t{\"no\": \"event\"}\n",
            "{}",
            "\u{feff}{\"data\":1}",
            "event=alert&data=hi",
            "data=hi",
        ];
        let gateway = world.gateway().await;
        assert_told_the_type(&gateway, PUBLISH, &bodies).await;
        assert_eq!(gateway.get(PUBLISH.1).await.1["events"], json!([]));
    }

    async fn a_json_object_or_a_form_of_members_is_refused_by_a_set(world) {
        let gateway = world.gateway().await;
        assert_told_the_type(&gateway, SET, &[r#"{"value":"green"}"#, r#"{"on":true}"#, "\n{}", "value=green", "value_base64=YQ%3D%3D"]).await;
        assert_eq!(gateway.get(SET.1).await.0, 404);
    }

    async fn routes_that_take_only_json_say_how_to_send_it(world) {
        let gateway = world.gateway().await;
        let batch = r#"{"events":[{"room":"lobby","data":1}]}"#;
        for (route, body) in [
            ((Method::POST, "/v1/events"), batch),
            ((Method::PATCH, "/v1/hashes/lamp"), r#"{"a":"1"}"#),
            ((Method::POST, "/v1/hashes/lamp/fields/n/increment"), r#"{"by":1}"#),
        ] {
            let others = ["text/plain", "application/octet-stream", "application/x-ndjson", "application/xml"];
            for content_type in UNTYPED.into_iter().chain(others.map(Some)) {
                let (status, problem) = send(&gateway, &route, content_type, body).await;
                assert_eq!((status.as_u16(), &problem["code"]), (415, &json!("unsupported_media_type")), "{route:?}");
                let detail = problem["detail"].as_str().unwrap();
                assert!(detail.contains("add -H 'Content-Type: application/json'"), "{detail}");
            }
        }
    }

    async fn the_older_name_of_the_json_type_means_json(world) {
        let gateway = world.gateway().await;
        assert_eq!(send(&gateway, &PUBLISH, Some("text/json"), r#"{"data":{"n":1}}"#).await.0, 201);
        assert_eq!(gateway.get(PUBLISH.1).await.1["events"][0]["data"], json!({"n": 1}));
        assert_eq!(send(&gateway, &SET, Some("text/json; charset=utf-8"), r#"{"value":"green"}"#).await.0, 201);
        assert_eq!(gateway.get(SET.1).await.1["value"], "green");
        let (status, _) = send(&gateway, &(Method::PATCH, "/v1/hashes/untyped"), Some("text/json"), r#"{"a":"1"}"#).await;
        assert_eq!(status, 200);
    }

    async fn text_without_a_type_and_a_json_object_as_text_are_stored_as_they_came(world) {
        let gateway = world.gateway().await;
        let text = r#"{"event":"chat","data":1}"#;
        let mut sent = Vec::new();
        for (content_type, body) in [
            (None, "hello"),
            (Some(FORM), "a=1&b={}"),
            (Some(FORM), "data"),
            (Some(FORM), "mydata=1&data=2"),
            (Some("text/plain"), "event=alert&data=hi"),
            (Some(FORM), "[1,2]"),
            (Some(FORM), "42"),
            (Some(FORM), "{curly} words"),
            (Some("text/plain"), text),
            (Some("text/plain;charset=UTF-8"), text),
        ] {
            assert_eq!(send(&gateway, &PUBLISH, content_type, body).await.0, 201, "{body}");
            assert!(send(&gateway, &SET, content_type, body).await.0.is_success(), "{body}");
            assert_eq!(gateway.get(SET.1).await.1["value"], body);
            sent.push(json!(body));
        }
        let log = gateway.get(PUBLISH.1).await.1;
        let stored: Vec<_> = log["events"].as_array().unwrap().iter().map(|event| event["data"].clone()).collect();
        assert_eq!(stored, sent);
    }
}
