//! What goes over a room's channel: `<id> <length>\n<event>`, and for large events header and event as two adjacent
//! messages. The length makes an announcement checkable in itself. `<id> cleared\n` says that the log was emptied.

use bytes::Bytes;

use crate::broker::LogEntry;
use crate::names::EventId;

/// Puts announcements together from the messages of one connection.
#[derive(Default)]
pub(super) struct Assembler {
    /// A header whose event is the next message, and its channel.
    announced: Option<(String, EventId, usize)>,
}

/// What a message turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ChannelMessage {
    /// A whole announcement.
    LogEntry(LogEntry),
    /// The first half of one.
    Header,
    /// The log was emptied up to there.
    Cleared(EventId),
    /// Neither.
    Malformed,
}

impl Assembler {
    pub(super) fn push(&mut self, channel: &str, message: &[u8]) -> ChannelMessage {
        // A script's two messages are adjacent on every connection, so anything else here is not its second.
        if let Some((expected, id, length)) = self.announced.take()
            && expected == channel
            && message.len() == length
        {
            return ChannelMessage::LogEntry(LogEntry { id, stored: Bytes::copy_from_slice(message) });
        }
        let Some((id, what, rest)) = header(message) else { return ChannelMessage::Malformed };
        if what == "cleared" && rest.is_empty() {
            return ChannelMessage::Cleared(id);
        }
        let Ok(length) = what.parse::<usize>() else { return ChannelMessage::Malformed };
        if rest.len() == length {
            return ChannelMessage::LogEntry(LogEntry { id, stored: Bytes::copy_from_slice(rest) });
        }
        if !rest.is_empty() {
            return ChannelMessage::Malformed;
        }
        self.announced = Some((channel.to_owned(), id, length));
        ChannelMessage::Header
    }
}

fn header(message: &[u8]) -> Option<(EventId, &str, &[u8])> {
    let end = message.iter().take(64).position(|byte| *byte == b'\n')?;
    let (id, what) = std::str::from_utf8(&message[..end]).ok()?.split_once(' ')?;
    Some((id.parse().ok()?, what, &message[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(stored: &'static [u8]) -> ChannelMessage {
        ChannelMessage::LogEntry(LogEntry { id: EventId::new(7, 1), stored: Bytes::from_static(stored) })
    }

    #[test]
    fn an_announcement_comes_in_one_message_or_two() {
        let mut assembler = Assembler::default();
        assert_eq!(assembler.push("a", b"7-1 2\n{}"), entry(b"{}"));
        assert_eq!(assembler.push("a", b"7-1 2\n"), ChannelMessage::Header);
        assert_eq!(assembler.push("a", b"{}"), entry(b"{}"));
        assert_eq!(assembler.push("a", b"7-1 cleared\n"), ChannelMessage::Cleared(EventId::new(7, 1)));
    }

    #[test]
    fn a_truncated_or_foreign_message_is_junk() {
        let mut assembler = Assembler::default();
        for malformed in [
            &b"7-1 3\n{}"[..],
            b"7-1 1\n{}",
            b"",
            b"hello",
            b"7-1\n{}",
            b"x 2\n{}",
            b"7-1 cleared\n{}",
            b"x cleared\n",
            b"\xff 2\n{}",
        ] {
            assert_eq!(assembler.push("a", malformed), ChannelMessage::Malformed, "{malformed:?}");
        }
        assert_eq!(assembler.push("a", b"7-1 2\n"), ChannelMessage::Header);
        assert_eq!(assembler.push("b", b"{}"), ChannelMessage::Malformed);
        assert_eq!(assembler.push("a", b"{}"), ChannelMessage::Malformed);
    }
}
