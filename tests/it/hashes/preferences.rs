//! `Prefer: return=…` (RFC 7240).

use reqwest::Method;
use serde_json::json;

use crate::support::{Gateway, values_of};

const FIELD: &str = "/v1/hashes/lamp/fields/colour";

/// Sends a write with a preference. Returns the status, the body, the preference that was applied, and whether the
/// answer has an entity tag.
async fn write(
    gateway: &Gateway,
    (method, path, body): (Method, &str, &str),
    preference: &str,
) -> (u16, String, Option<String>, bool) {
    let request = gateway.request(method, path).header("content-type", "application/json");
    let answer = gateway.answer(request.header("prefer", preference).body(body.to_owned())).await;
    let applied = answer.headers().get("preference-applied").map(|value| value.to_str().unwrap().to_owned());
    let has_tag = answer.headers().contains_key("etag");
    (answer.status().as_u16(), answer.text().await.unwrap(), applied, has_tag)
}

on_both_brokers! {
    async fn a_client_that_prefers_a_minimal_answer_gets_no_body(world) {
        let gateway = world.gateway().await;
        let minimal = |status: u16, has_tag: bool| (status, String::new(), Some("return=minimal".to_owned()), has_tag);
        let set = (Method::PUT, FIELD, r#"{"value":"green"}"#);
        assert_eq!(write(&gateway, set.clone(), "return=minimal").await, minimal(201, true));
        assert_eq!(write(&gateway, set.clone(), "return=minimal").await, minimal(204, true));
        for preference in ["RETURN=minimal; x=y", "wait=10, return=minimal", r#"return="minimal""#, "return=minimal, return=representation"] {
            assert_eq!(write(&gateway, set.clone(), preference).await, minimal(204, true), "{preference}");
        }
        let patch = (Method::PATCH, "/v1/hashes/lamp", r#"{"size":"3"}"#);
        assert_eq!(write(&gateway, patch, "return=minimal").await, minimal(204, false));
        let increment = (Method::POST, "/v1/hashes/lamp/fields/size/increment", r#"{"by":2}"#);
        assert_eq!(write(&gateway, increment, "return=minimal").await, minimal(204, true));
        assert_eq!(values_of(&gateway.get("/v1/hashes/lamp").await.1), json!({"colour": {"value": "green"}, "size": {"value": "5"}}));
    }

    async fn a_client_that_prefers_a_representation_gets_it_of_a_field(world) {
        let gateway = world.gateway().await;
        let set = (Method::PUT, FIELD, r#"{"value":"1"}"#);
        let body = |value: &str| format!(r#"{{"hash":"lamp","field":"colour","value":"{value}"}}"#);
        let applied = || Some("return=representation".to_owned());
        assert_eq!(write(&gateway, set.clone(), "return=representation").await, (201, body("1"), applied(), true));
        let increment = (Method::POST, "/v1/hashes/lamp/fields/colour/increment", r#"{"by":2}"#);
        assert_eq!(write(&gateway, increment, "return=representation").await, (200, body("3"), applied(), true));
        // A patch is answered with what it did. That is no representation of the hash.
        let patch = (Method::PATCH, "/v1/hashes/lamp", r#"{"colour":"1"}"#);
        let counts = r#"{"hash":"lamp","created":0,"replaced":1,"removed":0}"#.to_owned();
        assert_eq!(write(&gateway, patch, "return=representation").await, (200, counts, None, false));
        for preference in ["", "return", "return=maximal", "return=maximal, return=minimal", "respond-async", "=", "return==minimal"] {
            assert_eq!(write(&gateway, set.clone(), preference).await, (200, body("1"), None, true), "{preference}");
        }
    }

    async fn a_refusal_has_its_document_whatever_the_client_prefers(world) {
        let gateway = world.gateway().await;
        let put = gateway.request(Method::PUT, FIELD).header("prefer", "return=minimal").header("if-match", "*");
        let (status, problem) = gateway.send(put.body("green")).await;
        assert_eq!((status.as_u16(), &problem["code"]), (412, &json!("precondition_failed")));
    }
}
