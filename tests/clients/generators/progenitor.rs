//! Uses the client that progenitor has generated from the 3.0 document, as an application would.

use std::collections::HashMap;

use futures_util::StreamExt;
use roomcast_client::types::{Publish, SetField};
use roomcast_client::{Client, Error};

fn check(what: &str, holds: bool) {
    assert!(holds, "not ok - {what}");
    println!("ok - {what}");
}

/// The status and the text of a failure.
async fn failure<T>(result: Result<T, Error<roomcast_client::ByteStream>>) -> (u16, String) {
    let Err(Error::ErrorResponse(answer)) = result else { panic!("not ok - the call fails") };
    let status = answer.status().as_u16();
    let parts: Vec<_> = answer.into_inner_stream().map(|part| part.unwrap().to_vec()).collect().await;
    (status, String::from_utf8(parts.concat()).unwrap())
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let client = Client::new(&std::env::var("ROOMCAST_URL").unwrap());
    let name = &*format!("progenitor-{}", std::process::id());

    let stream = client.stream_room().room(name).send().await.unwrap();
    let mut stream = stream.into_inner_stream();
    let mut received = String::new();
    while !received.contains("event: stream.open\n") {
        received += std::str::from_utf8(&stream.next().await.unwrap().unwrap()).unwrap();
    }
    check("the stream begins with stream.open", true);

    let event =
        Publish { event: Some("tick".parse().unwrap()), data: serde_json::json!({"n": 1}), except: Vec::new() };
    let published = client.publish_event().room(name).body(event).send().await.unwrap();
    check("a publish is 201", published.status() == 201);
    while !received.contains(&format!("id: {}\nevent: tick\ndata: {{\"n\":1}}\n\n", published.id)) {
        received += std::str::from_utf8(&stream.next().await.unwrap().unwrap()).unwrap();
    }
    check("the stream has the event", true);
    let log = client.list_events().room(name).send().await.unwrap();
    check("the log holds what was published", log.events.len() == 1 && log.events[0].id == published.id);
    check("the log has no gap", log.gap.is_none());

    let absent = client.get_field().hash(name).field("colour").send().await;
    let (status, problem) = failure(absent).await;
    check("a field that is absent is 404", status == 404);
    check("the 404 is a problem document", problem.contains("\"code\":\"field_not_found\""));

    let set = |value: &str| {
        let value = SetField { value: Some(value.into()), value_base64: None };
        client.set_field().hash(name).field("colour").body(value)
    };
    let created = set("green").send().await.unwrap();
    check("a new field is 201", created.status() == 201);
    let etag = created.headers()["etag"].to_str().unwrap();
    let replaced = set("red").if_match(etag).send().await.unwrap();
    check("a write whose condition holds is done", replaced.status() == 200);
    let (status, problem) = failure(set("blue").if_match(etag).send().await).await;
    check("a write whose condition does not hold is 412", status == 412);
    check("the 412 has the present value", problem.contains("\"present\":{\"value\":\"red\"}"));

    let body = |fields: &[(&str, Option<&str>)]| -> HashMap<String, Option<String>> {
        fields.iter().map(|(field, value)| ((*field).into(), value.map(Into::into))).collect()
    };
    client.patch_fields().hash(name).body(body(&[("a", Some("1")), ("b", Some("1"))])).send().await.unwrap();
    let patch = client.patch_fields().hash(name).body(body(&[("a", Some("2")), ("colour", None)]));
    let patched = patch.remove(vec!["b".parse().unwrap()]).send().await.unwrap();
    check("a patch sets and removes", (patched.replaced, patched.removed) == (1, 2));
    let fields = client.list_fields().hash(name).send().await.unwrap().into_inner().fields;
    check("the hash has what is left", fields.len() == 1 && fields["a"].value.as_deref() == Some("2"));
}
