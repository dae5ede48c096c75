//! Server-Sent Events as text (HTML, section 9.2): only the framing.

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
pub(crate) mod tests;
