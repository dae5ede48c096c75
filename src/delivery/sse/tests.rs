//! The syntax, checked with an independent parser that follows HTML 9.2.5 and 9.2.6 line by line.

use proptest::prelude::*;

use super::{Block, HEARTBEAT};

/// What a client makes of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parsed {
    pub events: Vec<Dispatched>,
    /// The last event id, which the client would send when it reconnects.
    pub last_event_id: String,
    /// The last `retry:`, in milliseconds.
    pub retry: Option<u64>,
}

/// An event that a client dispatches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dispatched {
    pub kind: String,
    pub data: String,
    pub id: String,
}

impl Dispatched {
    pub fn new(kind: &str, data: &str, id: &str) -> Self {
        Self { kind: kind.into(), data: data.into(), id: id.into() }
    }
}

/// Parses a whole stream. A block without its blank line is not dispatched.
pub(crate) fn parse(stream: &str) -> Parsed {
    let (mut parsed, mut kind, mut data, mut id) = (Parsed::default(), String::new(), String::new(), String::new());
    for line in lines(stream.strip_prefix('\u{feff}').unwrap_or(stream)) {
        if line.is_empty() {
            parsed.last_event_id.clone_from(&id);
            if !data.is_empty() {
                let text = data.strip_suffix('\n').unwrap_or(&data);
                let kind = if kind.is_empty() { "message" } else { &kind };
                parsed.events.push(Dispatched::new(kind, text, &id));
            }
            kind.clear();
            data.clear();
            continue;
        }
        let (field, value) = match line.find(':') {
            Some(0) => continue,
            Some(colon) => (&line[..colon], line[colon + 1..].strip_prefix(' ').unwrap_or(&line[colon + 1..])),
            None => (line, ""),
        };
        match field {
            "event" => value.clone_into(&mut kind),
            "data" => {
                data.push_str(value);
                data.push('\n');
            }
            "id" if !value.contains('\0') => value.clone_into(&mut id),
            "retry" if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) => {
                parsed.retry = value.parse().ok();
            }
            _ => {}
        }
    }
    parsed
}

/// The complete lines. CRLF, LF and CR end a line.
fn lines(text: &str) -> Vec<&str> {
    let (mut lines, mut start, bytes) = (Vec::new(), 0, text.as_bytes());
    let mut at = 0;
    while at < bytes.len() {
        let ending = match &bytes[at..] {
            [b'\r', b'\n', ..] => 2,
            [b'\r' | b'\n', ..] => 1,
            _ => 0,
        };
        if ending > 0 {
            lines.push(&text[start..at]);
            start = at + ending;
        }
        at += ending.max(1);
    }
    lines
}

/// Data as a client gets it: every line ending is LF.
pub(crate) fn with_line_feeds(data: &str) -> String {
    data.replace("\r\n", "\n").replace('\r', "\n")
}

/// The examples of HTML 9.2.6, and cases for its other rules.
#[test]
fn the_parser_reads_the_standards_own_examples() {
    let message = |data, id| Dispatched::new("message", data, id);
    assert_eq!(parse("data: YHOO\ndata: +2\ndata: 10\n\n").events, [message("YHOO\n+2\n10", "")]);
    let stream = ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n";
    let expected = [message("first event", "1"), message("second event", ""), message(" third event", "")];
    assert_eq!(parse(stream).events, expected);
    assert_eq!(parse("data\n\ndata\ndata\n\ndata:").events, [message("", ""), message("\n", "")]);
    assert_eq!(parse("data:test\n\ndata: test\n\n").events, [message("test", ""), message("test", "")]);
    for end in ["\n", "\r", "\r\n"] {
        let stream = ["\u{feff}event: e", "id: 7", "retry: 12", "data: a", "unknown: x", "", ""].join(end);
        let parsed = parse(&stream);
        assert_eq!((parsed.events, parsed.retry), (vec![Dispatched::new("e", "a", "7")], Some(12)), "{end:?}");
    }
    // An id with NUL and a retry with anything but digits are ignored. An id without data is kept.
    let parsed = parse("id: 1\nid: 2\0\nretry: 1x\nretry: +1\ndata: a\n\nid: 3\n\nid: 4\n");
    assert_eq!(parsed.events, [message("a", "1")]);
    assert_eq!((parsed.last_event_id.as_str(), parsed.retry), ("3", None));
}

#[test]
fn a_block_has_its_fields_in_order() {
    let block = Block::new().retry(2000).id("7-0").event(Some("stream.open")).data("{}").finish();
    assert_eq!(block, "retry: 2000\nid: 7-0\nevent: stream.open\ndata: {}\n\n");
}

/// Text that looks like fields, line endings and comments.
pub(crate) fn hostile_text() -> impl Strategy<Value = String> {
    prop_oneof![
        "(data: |data|id: x|id|event: e|event|retry: 1|:|\r\n|[\r\n\0\u{feff}\u{2028}\u{85} a]){0,20}",
        any::<String>(),
    ]
}

proptest! {
    #[test]
    fn a_client_gets_blocks_as_they_were_built_and_no_data_can_inject_a_field(
        blocks in proptest::collection::vec(
            (hostile_text(), proptest::option::of("[A-Za-z0-9ß._~:@+=-]{1,12}"), 0..100u64, any::<Option<u32>>()), 0..5
        )
    ) {
        let (mut stream, mut expected) = (String::new(), Parsed::default());
        for (data, name, id, retry) in &blocks {
            let mut block = Block::new();
            if let Some(retry) = retry {
                block = block.retry(u128::from(*retry));
                expected.retry = Some(u64::from(*retry));
            }
            // A block of two parts, as on streams of several rooms.
            stream.push_str(&block.id(id).into_lines());
            stream.push_str(&Block::new().event(name.as_deref()).data(data).finish());
            stream.push_str(HEARTBEAT);
            let kind = name.as_deref().unwrap_or("message");
            expected.events.push(Dispatched::new(kind, &with_line_feeds(data), &id.to_string()));
            expected.last_event_id = id.to_string();
        }
        prop_assert_eq!(parse(&stream), expected);
    }
}
