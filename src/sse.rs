//! Server-Sent Events as text (HTML, section 9.2): framing, and nothing of what is said.

use std::fmt::Write;

/// Keeps an idle connection alive, and is no event: HTML 9.2.7.
pub const HEARTBEAT: &str = ":\n\n";

/// Builds one block of a stream. Ids and names must have no line breaks; data may.
#[derive(Default)]
pub struct Block {
    text: String,
}

impl Block {
    /// An empty block.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long a client waits before it reconnects, in milliseconds.
    #[must_use]
    pub fn retry(mut self, milliseconds: u128) -> Self {
        let _ = writeln!(self.text, "retry: {milliseconds}");
        self
    }

    /// The position that the client sends back when it reconnects.
    #[must_use]
    pub fn id(mut self, id: impl std::fmt::Display) -> Self {
        let _ = writeln!(self.text, "id: {id}");
        self
    }

    /// The event's type; without one it is `message`.
    #[must_use]
    pub fn event(mut self, name: Option<&str>) -> Self {
        if let Some(name) = name {
            let _ = writeln!(self.text, "event: {name}");
        }
        self
    }

    /// The data, a `data:` line for each of its lines. CR, LF and CRLF all end a line, so no data can pass for a field.
    #[must_use]
    pub fn data(mut self, data: &str) -> Self {
        self.text.reserve(data.len() + 8);
        let mut rest = data;
        loop {
            self.text.push_str("data: ");
            let Some(end) = rest.find(['\r', '\n']) else {
                self.text.push_str(rest);
                self.text.push('\n');
                return self;
            };
            self.text.push_str(&rest[..end]);
            self.text.push('\n');
            let skip = if rest[end..].starts_with("\r\n") { 2 } else { 1 };
            rest = &rest[end + skip..];
        }
    }

    /// Ends the block: the client dispatches it.
    pub fn finish(mut self) -> String {
        self.text.push('\n');
        self.text
    }

    /// The lines so far, for a block that is put together from parts.
    pub fn into_lines(self) -> String {
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// HTML 9.2.6, written for clarity: the blocks that a client dispatches, as (type, data, last event id).
    fn parse(stream: &str) -> Vec<(String, String, String)> {
        let (mut events, mut id) = (Vec::new(), String::new());
        let (mut name, mut data) = (String::new(), String::new());
        let lines = stream.replace("\r\n", "\n").replace('\r', "\n");
        for line in lines.split('\n') {
            if line.is_empty() {
                if !data.is_empty() {
                    data.pop();
                    events.push((name.clone(), data.clone(), id.clone()));
                }
                name.clear();
                data.clear();
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => name = value.into(),
                "data" => {
                    data.push_str(value);
                    data.push('\n');
                }
                "id" if !value.contains('\0') => id = value.into(),
                _ => {}
            }
        }
        events
    }

    proptest! {
        #[test]
        fn no_data_can_inject_a_field(data in "(data: |id: x|event: e|retry: 1|:|[\r\n\0 a])*") {
            let block = Block::new().id("7-1").event(Some("chat")).data(&data).finish();
            let expected = data.replace("\r\n", "\n").replace('\r', "\n");
            prop_assert_eq!(parse(&block), vec![("chat".into(), expected, "7-1".into())]);
        }
    }

    #[test]
    fn a_block_has_its_fields_in_order() {
        let block = Block::new().retry(2000).id("7-0").event(Some("stream.open")).data("{}").finish();
        assert_eq!(block, "retry: 2000\nid: 7-0\nevent: stream.open\ndata: {}\n\n");
    }
}
