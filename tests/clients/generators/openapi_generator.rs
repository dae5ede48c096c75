//! Uses the client that openapi-generator has generated for Rust, as an application would.

use std::collections::HashMap;

use openapi::apis::configuration::Configuration;
use openapi::apis::hashes_api::{get_field, list_fields, patch_fields, set_field};
use openapi::apis::rooms_api::{list_events, publish_event};
use openapi::apis::{Error, ResponseContent};
use openapi::models::{Problem, ProblemCode, Publish, SetField};

fn check(what: &str, holds: bool) {
    assert!(holds, "not ok - {what}");
    println!("ok - {what}");
}

/// The status and the problem of a failure. The generated enum has a variant for each status, but always takes the first.
fn failure<T, E>(result: Result<T, Error<E>>) -> (u16, Problem) {
    let Err(Error::ResponseError(ResponseContent { status, content, .. })) = result else { panic!("the call fails") };
    (status.as_u16(), serde_json::from_str(&content).unwrap())
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let base_path = std::env::var("ROOMCAST_URL").unwrap();
    let client = Configuration { base_path: base_path.clone(), ..Configuration::default() };
    let name = format!("openapi-generator-rust-{}", std::process::id());

    let event = Publish { event: Some(Some("tick".into())), ..Publish::new(Some(serde_json::json!({"n": 1}))) };
    let published = publish_event(&client, &name, event, None, None).await.unwrap();
    let log = list_events(&client, &name, None, None, None).await.unwrap();
    check("the log holds what was published", log.events.len() == 1 && log.events[0].id == published.id);
    check("the log has no gap", log.gap.flatten().is_none());

    let (status, problem) = failure(get_field(&client, &name, "colour", None, None).await);
    check("a field that is absent is 404", status == 404);
    check("the 404 is a problem document", problem.code == ProblemCode::FieldNotFound);

    let value = |text: &str| SetField { value: Some(text.into()), ..SetField::new() };
    set_field(&client, &name, "colour", value("green"), None, None).await.unwrap();
    // The generated functions do not return the headers.
    let url = format!("{base_path}/v1/hashes/{name}/fields/colour");
    let etag = client.client.get(url).send().await.unwrap().headers()["etag"].to_str().unwrap().to_owned();
    set_field(&client, &name, "colour", value("red"), Some(&etag), None).await.unwrap();
    let refused = set_field(&client, &name, "colour", value("blue"), Some(&etag), None).await;
    let (status, problem) = failure(refused);
    check("a write whose condition does not hold is 412", status == 412);
    check("the 412 has the present value", problem.present.unwrap().value.as_deref() == Some("red"));

    let body = |fields: &[(&str, &str)]| -> HashMap<String, String> {
        fields.iter().map(|(field, value)| ((*field).into(), (*value).into())).collect()
    };
    patch_fields(&client, &name, body(&[("a", "1"), ("b", "1")]), None).await.unwrap();
    let remove = vec!["b".into(), "colour".into()];
    let patched = patch_fields(&client, &name, body(&[("a", "2")]), Some(remove)).await.unwrap();
    check("a patch sets and removes", (patched.replaced, patched.removed) == (1, 2));
    let fields = list_fields(&client, &name, None, None, None).await.unwrap().fields;
    check("the hash has what is left", fields.len() == 1 && fields["a"].value.as_deref() == Some("2"));
}
