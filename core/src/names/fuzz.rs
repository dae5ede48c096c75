//! Fuzz targets: names, event ids, cursors, stored events.

use super::cursor::{Cursor, MAX_CURSOR_BYTES};
use super::event::Event;
use super::{
    Bookmark, EventId, EventName, FieldName, HashName, MAX_FIELD_BYTES, MAX_NAME_BYTES, MAX_NUMBER, RoomName,
    SubscriberId, Topic, WatchBase,
};
use crate::fuzz::{shaped, shaped_text};

const NAMES: [&str; 7] = ["lobby", "größe", "房间.7", "a:b@c+d=e-f~g_h", "stream.open", "a b/{c}", "हिन्दी"];

/// Checks what holds for every kind of name, in plain text and in JSON: an accepted name keeps its text, and a refused
/// one has an error text.
macro_rules! check_names {
    ($text:expr, $limit:expr, $($name:ident),*) => {$(
        let json = serde_json::to_string($text).unwrap();
        match $name::new($text) {
            Ok(name) => {
                assert_eq!(name.as_str(), $text);
                assert!((1..=$limit).contains(&$text.len()) && !$text.chars().any(char::is_control));
                assert_eq!(serde_json::to_string(&name).unwrap(), json);
                assert_eq!(serde_json::from_str::<$name>(&json).unwrap(), name);
            }
            Err(why) => {
                assert!(!why.to_string().is_empty());
                assert!(serde_json::from_str::<$name>(&json).is_err());
            }
        }
    )*};
}

#[test]
fn fuzz_names() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let text = &shaped_text(&NAMES, bytes);
        check_names!(text, MAX_NAME_BYTES, RoomName, HashName, EventName, SubscriberId);
        check_names!(text, MAX_FIELD_BYTES, FieldName);
        if RoomName::new(text).is_ok() {
            // These characters separate the parts of keys, channels, paths, queries and lists.
            assert!(!text.contains(|c: char| c.is_whitespace() || "{}[]*?/\\#%&,;<>\"'`|^$!()".contains(c)));
            let reserved = ["stream.", "presence.", "hash."].iter().any(|prefix| text.starts_with(prefix));
            let reserved = reserved || ["open", "error"].contains(&text.as_str());
            assert_eq!(EventName::new(text).is_err(), reserved);
        }
    });
}

#[test]
fn fuzz_event_ids() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let text = shaped_text(&["1790000000000000-42", "0-0", "9007199254740991-9007199254740991"], bytes);
        match text.parse::<EventId>() {
            Ok(id) => {
                assert_eq!(id.to_string(), text, "one spelling");
                assert!(id.epoch <= MAX_NUMBER && id.offset <= MAX_NUMBER);
                assert!(id.before() <= id);
            }
            Err(why) => assert!(!why.to_string().is_empty()),
        }
    });
}

#[test]
fn fuzz_cursors() {
    let rooms = ["a", "b"].map(|name| Topic::from(RoomName::new(name).unwrap()));
    let bookmark = |base| Bookmark { id: EventId::new(1_790_000_000_000_000, 300), base };
    let encode = |base| Cursor::from_bookmarks(rooms.iter().map(|room| (room, bookmark(base)))).encode();
    let (of_rooms, of_hashes) = (encode(None), encode(Some(WatchBase::Mirror(12345))));
    let samples = [of_rooms.as_str(), of_hashes.as_str(), "c1.", "c1.AAAA"];
    bolero::check!().for_each(|bytes: &[u8]| {
        let text = shaped_text(&samples, bytes);
        match Cursor::decode(&text) {
            Ok(cursor) => {
                let again = cursor.encode();
                assert!(text.len() <= MAX_CURSOR_BYTES && again.len() <= text.len());
                assert!(
                    again.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)),
                    "{again}"
                );
                assert_eq!(Cursor::decode(&again), Ok(cursor));
            }
            Err(why) => assert!(!why.to_string().is_empty()),
        }
    });
}

#[test]
fn fuzz_stored_events() {
    let samples = [
        r#"{"event":"chat","data":{"n":12345678901234567890.10,"t":["\u00e9\ud83e\udd80"]},"published_at":"2026-01-02T03:04:05.678Z","except":["me"]}"#,
        r#"{"text":"two\nlines","published_at":"2026-01-02T03:04:05.678Z","publish_id":"p"}"#,
        r#"{"data":null,"published_at":""}"#,
    ];
    bolero::check!().for_each(|bytes: &[u8]| {
        let stored = shaped(&samples, bytes);
        let Ok(event) = Event::decode(&stored) else { return };
        let again = event.encode();
        assert_eq!(Event::decode(&again).unwrap(), event, "a decoded event encodes to the same event");
        assert!(Event::decode(&again[..again.len() - 1]).is_err(), "a truncated event does not decode");
        serde_json::from_str::<serde::de::IgnoredAny>(event.data.as_json().get()).expect("the data is JSON");
    });
}
