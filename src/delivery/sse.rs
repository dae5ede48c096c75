//! The syntax of Server-Sent Events (HTML, section 9.2). What streams say is in [`format`](super::format).

use std::fmt::Write;

/// A comment that keeps an idle connection open. Clients do not see it as an event (HTML 9.2.7). It has no blank line:
/// some clients dispatch an empty event at every blank line.
pub const HEARTBEAT: &str = ":\n";

/// Builds one block of a stream. Ids and names must not contain line breaks; data may.
#[derive(Default)]
pub struct Block {
    text: String,
}

impl Block {
    /// An empty block.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the time that a client waits before it reconnects, in milliseconds.
    #[must_use]
    pub fn retry(mut self, milliseconds: u128) -> Self {
        let _ = writeln!(self.text, "retry: {milliseconds}");
        self
    }

    /// Adds the position that the client sends back when it reconnects.
    #[must_use]
    pub fn id(mut self, id: impl std::fmt::Display) -> Self {
        let _ = writeln!(self.text, "id: {id}");
        self
    }

    /// Adds the event's name. Clients call an event without a name `message`.
    #[must_use]
    pub fn event(mut self, name: Option<&str>) -> Self {
        if let Some(name) = name {
            let _ = writeln!(self.text, "event: {name}");
        }
        self
    }

    /// Adds the data, one `data:` line for each of its lines. CR, LF and CRLF all end a line, so data can't inject a
    /// field.
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

    /// Ends the block with the blank line at which clients dispatch the event.
    pub fn finish(mut self) -> String {
        self.text.push('\n');
        self.text
    }

    /// The lines so far, without a blank line: the first part of a block whose other part follows.
    pub fn into_lines(self) -> String {
        self.text
    }
}

#[cfg(test)]
pub(crate) mod tests;
