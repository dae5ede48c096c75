//! For all data, a client's parser returns each event as it was published.

use proptest::prelude::*;
use serde_json::Value;
use serde_json::value::RawValue;

use super::super::sse::Block;
use super::super::sse::tests::{Dispatched, hostile_text, parse, with_line_feeds};
use super::{event_block, event_envelope};
use crate::broker::LogEntry;
use crate::live::LiveEvent;
use crate::names::{Data, Event, EventId, EventName, RoomName, SubscriberId, Topic};

/// JSON with every kind of white space between its tokens, and with hostile text in its strings.
fn json_text() -> impl Strategy<Value = String> {
    let space = "[ \t\r\n]{0,3}";
    let string = hostile_text().prop_map(|text| Value::from(text).to_string()).boxed();
    let leaf = prop_oneof![string.clone(), Just("null".into()), "-?[1-9][0-9]{0,30}(\\.[0-9]{1,20})?"];
    leaf.prop_recursive(4, 20, 4, move |inner| {
        let array = (proptest::collection::vec(inner.clone(), 0..4), space)
            .prop_map(|(parts, space)| format!("[{space}{}{space}]", parts.join(&format!("{space},"))));
        let object =
            (proptest::collection::vec((string.clone(), inner), 0..4), space).prop_map(|(parts, space)| {
                let members: Vec<_> =
                    parts.iter().map(|(name, value)| format!("{name}{space}:{space}{value}")).collect();
                format!("{{{space}{}{space}}}", members.join(&format!(",{space}")))
            });
        prop_oneof![array, object]
    })
}

fn data() -> impl Strategy<Value = Data> {
    let json = json_text().prop_map(|text| {
        let raw: &RawValue = serde_json::from_str(&text).unwrap();
        Data::json(raw).unwrap()
    });
    prop_oneof![json, hostile_text().prop_map(|text| Data::Text(text.into()))]
}

proptest! {
    #[test]
    fn a_client_reads_an_event_back_from_either_format(
        name in proptest::option::of("[A-Za-z0-9ß房._~:@+=-]{1,20}".prop_filter("reserved", |name| EventName::new(name).is_ok())),
        data in data(),
        room in "[a-zß._~:@+=-]{1,20}".prop_filter("dots", |room| RoomName::new(room).is_ok()),
        publish_id in proptest::option::of("[0-9a-f]{8}"),
        (epoch, offset) in (1..1u64 << 53, 0..1u64 << 53),
    ) {
        let (id, room) = (EventId::new(epoch, offset), RoomName::new(&room).unwrap());
        let event = Event {
            name: name.as_deref().map(|name| EventName::new(name).unwrap()),
            data: data.clone(),
            published_at: "2026-01-02T03:04:05.678Z".into(),
            except: vec![SubscriberId::new("left-out").unwrap()],
            publish_id: publish_id.clone(),
            traceparent: None,
            is_final: false,
            last_message: None,
        };
        let topic = Topic::from(room.clone());
        let encoded = LiveEvent::new(&topic, &LogEntry { id, stored: event.encode() }).unwrap();
        prop_assert_eq!(encoded.event(), &event);
        let kind = name.as_deref().unwrap_or("message");

        let block = event_block(&encoded);
        let single = std::str::from_utf8(&block).unwrap();
        let expected = Dispatched::new(kind, &with_line_feeds(data.as_text()), &id.to_string());
        prop_assert_eq!(parse(single).events, vec![expected]);

        let enveloped = std::str::from_utf8(event_envelope(&encoded, &room)).unwrap();
        let stream = format!("{}{enveloped}", Block::new().id("c1.AAAA").into_lines());
        let mut events = parse(&stream).events;
        prop_assert_eq!(events.len(), 1);
        let event = events.remove(0);
        prop_assert_eq!((event.kind.as_str(), event.id.as_str()), (kind, "c1.AAAA"));
        let envelope: Value = serde_json::from_str(&event.data).unwrap();
        let mut expected = serde_json::json!({
            "room": room.as_str(), "id": id.to_string(), "event": name, "published_at": "2026-01-02T03:04:05.678Z",
        });
        // Parsed like the envelope, so that both have lost the same digits.
        expected["data"] = serde_json::from_str(data.as_json().get()).unwrap();
        if let Some(publish_id) = publish_id {
            expected["publish_id"] = publish_id.into();
        }
        prop_assert_eq!(envelope, expected);
        prop_assert!(event.data.contains(with_line_feeds(data.as_json().get()).as_str()), "all digits are kept");
    }
}
