//! Fuzz target: the body of a publish.

use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::value::RawValue;

use super::{Publish, json_data};
use crate::fuzz::shaped;
use crate::http::extract::{JsonObject, parse_json};
use crate::http::problem::Code;
use crate::names::MAX_JSON_DEPTH;

const PUBLISHES: [&str; 4] = [
    r#"{"event":"chat","data":{"n":12345678901234567890.10,"t":["\u00e9",null]},"except":["me"]}"#,
    r#"{"data":null}"#,
    r#"{"data":[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]}"#,
    r#"{"event":"stream.open","data":1,"data":2}"#,
];

/// Every accepted body is an object with data and without unknown members, and its data is the caller's own text.
#[test]
fn fuzz_publish_bodies() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let body = shaped(&PUBLISHES, bytes);
        match parse_json::<JsonObject<Publish>>(&body) {
            Ok(JsonObject(publish)) => {
                let members: BTreeMap<String, Box<RawValue>> =
                    serde_json::from_slice(&body).expect("it is an object");
                assert!(members.contains_key("data"));
                assert!(members.keys().all(|name| ["event", "data", "except"].contains(&name.as_str())));
                let text = std::str::from_utf8(&body).unwrap();
                let data = publish.data.get();
                assert!(text.contains(data), "the data is passed on unchanged");
                // Data may have numbers that `Value` can't hold. The nesting of such data is not known here.
                let depth = serde_json::from_str::<Value>(data).map(|value| depth(&value));
                match (json_data(&publish.data), depth) {
                    (Ok(data), depth) => {
                        assert_eq!(data.as_text(), publish.data.get());
                        assert!(depth.is_ok_and(|depth| depth <= MAX_JSON_DEPTH) || data.as_text().contains('e'));
                    }
                    (Err(why), depth) => {
                        assert!(!depth.is_ok_and(|depth| depth <= MAX_JSON_DEPTH) && !why.detail().is_empty());
                    }
                }
            }
            Err(problem) => assert!(problem.code() == Code::InvalidBody && !problem.detail().is_empty()),
        }
    });
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}
