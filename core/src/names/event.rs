//! An event: what a publisher sent, and the form in which logs store it and announcements carry it.

use std::borrow::Cow;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{EventId, EventName, SubscriberId};

/// Deepest nesting of arrays and objects in an event's JSON. A client with a recursive parser has to survive it.
pub const MAX_JSON_DEPTH: usize = 64;

/// Bytes that a further line of data takes in a stream, apart from its text: in Server-Sent Events, `data: `.
pub const LINE_BYTES: usize = 6;

/// The data of an event.
#[derive(Clone, Debug)]
pub enum Data {
    /// JSON text exactly as the publisher sent it: numbers keep their digits, a string keeps its quotes.
    Json(Box<RawValue>),
    /// The text of a body that is not JSON.
    Text(Box<str>),
}

/// Why data is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DataError {
    /// Nested too deeply.
    #[error("it nests arrays and objects deeper than {MAX_JSON_DEPTH}")]
    TooDeep,
    /// A string with half of a surrogate pair, as `"\ud800"`.
    #[error("it has a lone surrogate, such as \\ud800, which is no character")]
    LoneSurrogate,
}

impl Data {
    /// Data of JSON that a parser has accepted. Fails if it is nested too deeply, or not Unicode.
    pub fn json(raw: &RawValue) -> Result<Self, DataError> {
        if nesting(raw.get()) > MAX_JSON_DEPTH {
            return Err(DataError::TooDeep);
        }
        // `RawValue` lets it pass, and many parsers do not.
        if has_lone_surrogate(raw.get()) {
            return Err(DataError::LoneSurrogate);
        }
        Ok(Self::Json(raw.to_owned()))
    }

    /// The text that a single-room stream sends.
    pub fn as_text(&self) -> &str {
        match self {
            Self::Json(raw) => raw.get(),
            Self::Text(text) => text,
        }
    }

    /// The most bytes that the data takes in any format: as lines of a stream, or as JSON.
    pub fn most_encoded_bytes(&self) -> usize {
        let as_lines = self.as_text().len() + LINE_BYTES * self.line_breaks();
        as_lines.max(self.as_json().get().len())
    }

    /// How many line breaks the text has; a CR with its LF counts as two.
    pub fn line_breaks(&self) -> usize {
        self.as_text().bytes().filter(|byte| matches!(byte, b'\n' | b'\r')).count()
    }

    /// The data as JSON; a text body becomes a JSON string.
    pub fn as_json(&self) -> Cow<'_, RawValue> {
        match self {
            Self::Json(raw) => Cow::Borrowed(raw),
            Self::Text(text) => {
                Cow::Owned(serde_json::value::to_raw_value(&**text).expect("a string is always JSON"))
            }
        }
    }
}

impl PartialEq for Data {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Json(_), Self::Json(_)) | (Self::Text(_), Self::Text(_)) => self.as_text() == other.as_text(),
            _ => false,
        }
    }
}

impl Eq for Data {}

/// The depth of nested arrays and objects in valid JSON text; 0 for a scalar.
pub fn nesting(text: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0usize, 0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Whether an escape in valid JSON text is half of a surrogate pair.
fn has_lone_surrogate(text: &str) -> bool {
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|byte| *byte == b'\\') {
        rest = &rest[at..];
        let length = match escaped_unit(rest) {
            Some(0xd800..=0xdbff) if matches!(escaped_unit(&rest[6..]), Some(0xdc00..=0xdfff)) => 12,
            Some(0xd800..=0xdfff) => return true,
            _ => 2,
        };
        rest = &rest[length..];
    }
    false
}

/// The UTF-16 code unit of the escape with which a text begins, `\uXXXX`.
fn escaped_unit(text: &[u8]) -> Option<u16> {
    let digits = text.strip_prefix(b"\\u")?.get(..4)?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// Valid JSON text without the white space outside its strings.
pub fn without_white_space(text: &str) -> String {
    let (mut in_string, mut escaped) = (false, false);
    let is_kept = |char: &char| {
        match char {
            _ if escaped => escaped = false,
            '\\' if in_string => escaped = true,
            '"' => in_string = !in_string,
            _ => {}
        }
        in_string || !char.is_ascii_whitespace()
    };
    text.chars().filter(is_kept).collect()
}

/// An event that a publisher sent, or that the gateway itself wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The publisher's name for this kind of event. Browsers call an event without a name `message`.
    pub name: Option<EventName>,
    /// The data.
    pub data: Data,
    /// When the gateway accepted it, RFC 3339 in UTC.
    pub published_at: String,
    /// Subscribers that do not receive it.
    pub except: Vec<SubscriberId>,
    /// The id that the copies of one publish into several rooms share.
    pub publish_id: Option<String>,
    /// The W3C Trace Context of the span that stored it, if traces are sent.
    pub traceparent: Option<String>,
    /// Whether it is the last message of its room.
    pub is_final: bool,
    /// The position of the last message before it, if presence events lie between. The step that appends it knows.
    pub last_message: Option<EventId>,
}

/// The bytes are not an event: they are truncated, damaged, or written by another program.
#[derive(Debug, thiserror::Error)]
#[error("not an event in the stored form")]
pub struct MalformedEvent;

/// The stored form. It is JSON, so that any Redis client can read it. `data` holds the publisher's JSON unchanged; a
/// text body is in `text` instead.
#[derive(Serialize, Deserialize)]
struct StoredEvent<'a> {
    // First, so that a script finds it without parsing the rest.
    #[serde(borrow)]
    published_at: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    event: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    text: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    except: Vec<SubscriberId>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    publish_id: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    traceparent: Option<Cow<'a, str>>,
    // Where a script finds it without parsing the rest.
    #[serde(default, rename = "final", skip_serializing_if = "std::ops::Not::not")]
    is_final: bool,
    // Last, since a script adds it to a stored event.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    last_message: Option<Cow<'a, str>>,
}

/// Reads `"data":null` as the value `null`; serde would read it as a missing field.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

impl Event {
    /// Whether it is a `presence.join` or a `presence.leave`.
    pub fn is_presence(&self) -> bool {
        self.name.as_ref().is_some_and(EventName::is_presence)
    }

    /// The size of what the publisher has chosen: the data and the subscribers that do not get it.
    pub fn sent_bytes(&self) -> usize {
        let except = self.except.iter().map(|subscriber| subscriber.as_str().len());
        self.data.as_text().len() + except.sum::<usize>()
    }

    /// The stored form.
    pub fn encode(&self) -> Bytes {
        let (data, text) = match &self.data {
            Data::Json(raw) => (Some(&**raw), None),
            Data::Text(text) => (None, Some(Cow::Borrowed(&**text))),
        };
        let stored = StoredEvent {
            published_at: Cow::Borrowed(&self.published_at),
            event: self.name.as_ref().map(|name| Cow::Borrowed(name.as_str())),
            data,
            text,
            except: self.except.clone(),
            publish_id: self.publish_id.as_deref().map(Cow::Borrowed),
            traceparent: self.traceparent.as_deref().map(Cow::Borrowed),
            is_final: self.is_final,
            last_message: self.last_message.map(|position| position.to_string().into()),
        };
        serde_json::to_vec(&stored).expect("strings and checked JSON always serialise").into()
    }

    /// Whether an event that is about to be appended is final, by its stored form.
    pub fn is_stored_final(stored: &[u8]) -> bool {
        stored.ends_with(br#","final":true}"#)
    }

    /// The stored form of an event that names the last message before it.
    pub fn with_last_message(stored: Bytes, last_message: Option<EventId>) -> Bytes {
        match (last_message, Self::decode(&stored)) {
            (Some(_), Ok(event)) => Self { last_message, ..event }.encode(),
            _ => stored,
        }
    }

    /// Parses the stored form. Since it is JSON, a truncated one is never taken for a shorter event.
    pub fn decode(bytes: &[u8]) -> Result<Self, MalformedEvent> {
        let stored: StoredEvent<'_> = serde_json::from_slice(bytes).map_err(|_| MalformedEvent)?;
        let data = match (stored.data, stored.text) {
            (Some(raw), None) => Data::json(raw).map_err(|_| MalformedEvent)?,
            (None, Some(text)) => Data::Text(text.into()),
            _ => return Err(MalformedEvent),
        };
        Ok(Self {
            name: stored.event.map(|name| EventName::from_log(&name)).transpose().map_err(|_| MalformedEvent)?,
            data,
            published_at: stored.published_at.into_owned(),
            except: stored.except,
            publish_id: stored.publish_id.map(Cow::into_owned),
            traceparent: stored.traceparent.map(Cow::into_owned),
            is_final: stored.is_final,
            last_message: stored.last_message.map(|text| text.parse()).transpose().map_err(|_| MalformedEvent)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(data: Data) -> Event {
        Event {
            name: Some(EventName::new("chat").unwrap()),
            data,
            published_at: "2026-01-02T03:04:05.678Z".into(),
            except: vec![SubscriberId::new("me").unwrap()],
            publish_id: None,
            traceparent: None,
            is_final: false,
            last_message: None,
        }
    }

    #[test]
    fn json_data_keeps_every_digit() {
        let raw: &RawValue = serde_json::from_str("[12345678901234567890.10, 1e400]").unwrap();
        let stored = event(Data::json(raw).unwrap()).encode();
        let text = String::from_utf8(stored.to_vec()).unwrap();
        assert!(text.contains(r#""data":[12345678901234567890.10, 1e400]"#), "{text}");
        assert_eq!(Event::decode(&stored).unwrap().data.as_text(), raw.get());
    }

    #[test]
    fn nesting_is_counted_outside_strings_only() {
        assert_eq!(nesting(r#"{"a":["[[[[\"[["]}"#), 2);
        let deep = format!("{}{}", "[".repeat(65), "]".repeat(65));
        let raw: &RawValue = serde_json::from_str(&deep).unwrap();
        assert_eq!(Data::json(raw), Err(DataError::TooDeep));
    }

    #[test]
    fn white_space_is_dropped_outside_strings_only() {
        let text = "{ \"a \\\" b\" :\n[1e15,\t\"\\\\\" , 2]\r}";
        assert_eq!(without_white_space(text), r#"{"a \" b":[1e15,"\\",2]}"#);
    }

    #[test]
    fn null_is_data() {
        let stored = event(Data::json(RawValue::NULL).unwrap()).encode();
        assert_eq!(Event::decode(&stored).unwrap().data.as_text(), "null");
    }

    #[test]
    fn data_that_looks_like_the_mark_of_a_final_event_is_none() {
        for data in [r#"{"a":1,"final":true}"#, r#"",\"final\":true}""#, r#"{"final":true}"#] {
            let raw: &RawValue = serde_json::from_str(data).unwrap();
            for except in [vec![], vec![SubscriberId::new("me").unwrap()]] {
                let event = Event { except, ..event(Data::json(raw).unwrap()) };
                assert!(!Event::is_stored_final(&event.encode()), "{data}");
                assert!(Event::is_stored_final(&Event { is_final: true, ..event }.encode()), "{data}");
            }
        }
        assert!(!Event::is_stored_final(&event(Data::Text(r#","final":true}"#.into())).encode()));
    }

    proptest! {
        #[test]
        fn json_data_is_refused_where_a_string_would_be(
            units in proptest::collection::vec(r#"\\u[dD][89a-fA-F]0[0-9a-f]|\\[nt"\\]|[du8]"#, 0..6)
        ) {
            let text = format!("\"{}\"", units.concat());
            let raw: &RawValue = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(Data::json(raw).is_ok(), serde_json::from_str::<String>(&text).is_ok(), "{}", text);
        }

        #[test]
        fn an_encoded_event_decodes_to_the_same_event_and_no_prefix_of_it_decodes(
            text in ".*", is_final: bool, cut in any::<proptest::sample::Index>()
        ) {
            let event = Event { is_final, ..event(Data::Text(text.into())) };
            let stored = event.encode();
            prop_assert_eq!(Event::is_stored_final(&stored), is_final);
            prop_assert_eq!(&Event::decode(&stored).unwrap(), &event);
            let cut = cut.index(stored.len());
            prop_assert!(Event::decode(&stored[..cut]).is_err());
        }
    }
}
