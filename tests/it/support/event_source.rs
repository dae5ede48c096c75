//! Parses a stream's bytes exactly as `EventSource` does (HTML 9.2.6).

use serde_json::Value;

/// A dispatched event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SseEvent {
    pub id: String,
    pub event: String,
    pub data: String,
}

impl SseEvent {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap()
    }
}

/// The reader of one stream. From one stream to the next, a client keeps the last event id and the retry time.
#[derive(Debug, Default)]
pub struct EventSource {
    /// The id that a browser would send as `Last-Event-ID` now.
    pub last_event_id: String,
    /// The last `retry:`, in milliseconds.
    pub retry: Option<u64>,
    /// Number of comments so far.
    pub comments: usize,
    line: Vec<u8>,
    /// Whether the last byte was a CR, so that a following LF is part of the same line end.
    after_cr: bool,
    is_past_bom: bool,
    event: String,
    data: String,
    /// The value of the last `id:`. It is empty at the start of each stream. Each blank line makes it the last
    /// event id, even if the block has no `id:`.
    id: String,
}

impl EventSource {
    /// The reader of a stream whose request has this `Last-Event-ID`.
    pub fn resuming(last_event_id: &str) -> Self {
        Self { last_event_id: last_event_id.into(), ..Self::default() }
    }

    /// The events that these bytes complete. An incomplete line, or a block without its blank line, yields nothing.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<SseEvent> {
        let mut events = Vec::new();
        for byte in bytes {
            let is_second_half = std::mem::replace(&mut self.after_cr, *byte == b'\r') && *byte == b'\n';
            match byte {
                _ if is_second_half => {}
                b'\r' | b'\n' => events.extend(self.end_line()),
                _ => self.line.push(*byte),
            }
        }
        events
    }

    fn end_line(&mut self) -> Option<SseEvent> {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8(line).expect("the gateway sends UTF-8");
        let bom = if std::mem::replace(&mut self.is_past_bom, true) { None } else { line.strip_prefix('\u{feff}') };
        let line = bom.unwrap_or(&line);
        if line.is_empty() {
            return self.dispatch();
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => self.comments += 1,
            "event" => value.clone_into(&mut self.event),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "id" if !value.contains('\0') => value.clone_into(&mut self.id),
            "retry" if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) => {
                self.retry = value.parse().ok();
            }
            _ => {}
        }
        None
    }

    fn dispatch(&mut self) -> Option<SseEvent> {
        self.last_event_id.clone_from(&self.id);
        let (event, mut data) = (std::mem::take(&mut self.event), std::mem::take(&mut self.data));
        // Each data line adds an LF, so empty data means that there was no data line.
        data.pop()?;
        let event = if event.is_empty() { "message".into() } else { event };
        Some(SseEvent { id: self.last_event_id.clone(), event, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(text: &str) -> Vec<(String, String, String)> {
        let mut source = EventSource::default();
        source.feed(text.as_bytes()).into_iter().map(|event| (event.id, event.event, event.data)).collect()
    }

    fn event(id: &str, event: &str, data: &str) -> (String, String, String) {
        (id.into(), event.into(), data.into())
    }

    #[test]
    fn an_event_is_dispatched_by_its_blank_line() {
        let mut source = EventSource::default();
        assert_eq!(source.feed(b"id: 1\ndata: a\n"), []);
        assert_eq!(source.last_event_id, "");
        assert_eq!(source.feed(b"\n").len(), 1);
        assert_eq!(source.last_event_id, "1");
    }

    #[test]
    fn the_examples_of_the_standard_are_parsed_as_it_says() {
        assert_eq!(
            events(
                "data: YHOO\ndata: +2\ndata: 10\n\n: test\n\ndata: first\nid: 1\n\ndata:second\nid\n\ndata:  third\n\n"
            ),
            [
                event("", "message", "YHOO\n+2\n10"),
                event("1", "message", "first"),
                event("", "message", "second"),
                event("", "message", " third"),
            ]
        );
        assert_eq!(events("data\n\ndata\ndata\n\ndata:"), [event("", "message", ""), event("", "message", "\n")]);
        assert_eq!(events("data:test\n\ndata: test\n\n").len(), 2);
    }

    #[test]
    fn any_line_end_ends_a_line_wherever_the_bytes_are_split() {
        for text in ["id: 1\r\ndata: a\r\n\r\n", "id: 1\rdata: a\r\r", "id: 1\ndata: a\r\n\n"] {
            let mut source = EventSource::default();
            let got: Vec<_> = text.bytes().flat_map(|byte| source.feed(&[byte])).collect();
            assert_eq!(got, [SseEvent { id: "1".into(), event: "message".into(), data: "a".into() }], "{text:?}");
        }
    }

    #[test]
    fn a_retry_of_anything_but_digits_and_an_id_with_a_null_are_ignored() {
        let mut source = EventSource::resuming("7");
        source.feed(b"retry: 100\nretry: 5s\nretry: -1\nretry:\nid: 1\nid: 2\x003\n\n");
        assert_eq!((source.retry, source.last_event_id.as_str()), (Some(100), "1"));
    }

    #[test]
    fn a_first_block_without_an_id_erases_the_position() {
        let mut source = EventSource::resuming("7");
        assert_eq!(source.last_event_id, "7");
        source.feed(b"event: stream.end\ndata: {}\n\n");
        assert_eq!(source.last_event_id, "");
    }

    #[test]
    fn a_block_without_data_is_no_event_but_sets_the_id() {
        let mut source = EventSource::default();
        assert_eq!(source.feed(b"\xef\xbb\xbfid: 5\nevent: x\n\n"), []);
        assert_eq!(source.last_event_id, "5");
        assert_eq!(source.feed(b"data: a\n\n")[0].event, "message");
    }
}
