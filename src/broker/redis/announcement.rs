//! Messages on a topic's channel: `<id> <length>\n<event>`; for large events header and event as two adjacent messages.
//! The length makes a truncated announcement detectable. In the log of a hash, the length is followed by the number of
//! keyspace notifications that the step has caused. `<id> cleared\n` says that the log was emptied up to that id.

use bytes::Bytes;

use crate::broker::LogEntry;
use crate::names::EventId;

/// Assembles announcements from the messages of one connection.
#[derive(Default)]
pub(super) struct Assembler {
    /// A header whose event is expected as the next message: channel, id, length and notifications.
    header: Option<(String, EventId, usize, u32)>,
}

/// What a message was.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ChannelMessage {
    /// A complete announcement, or the second message of one; and how many keyspace notifications belong to it.
    LogEntry(LogEntry, u32),
    /// The first of two messages.
    Header,
    /// The log was emptied up to this position.
    Cleared(EventId),
    /// No announcement.
    Malformed,
}

impl Assembler {
    pub(super) fn push(&mut self, channel: &str, message: &[u8]) -> ChannelMessage {
        // The two messages of a script are adjacent on every connection: any other message here is not the second one.
        if let Some((expected, id, length, notifications)) = self.header.take()
            && expected == channel
            && message.len() == length
        {
            let entry = LogEntry { id, stored: Bytes::copy_from_slice(message) };
            return ChannelMessage::LogEntry(entry, notifications);
        }
        let Some((id, content, rest)) = parse_header(message) else { return ChannelMessage::Malformed };
        if content == "cleared" && rest.is_empty() {
            return ChannelMessage::Cleared(id);
        }
        let (length, notifications) = content.split_once(' ').unwrap_or((content, "0"));
        let (Ok(length), Ok(notifications)) = (length.parse::<usize>(), notifications.parse()) else {
            return ChannelMessage::Malformed;
        };
        if rest.len() == length {
            return ChannelMessage::LogEntry(LogEntry { id, stored: Bytes::copy_from_slice(rest) }, notifications);
        }
        if !rest.is_empty() {
            return ChannelMessage::Malformed;
        }
        self.header = Some((channel.to_owned(), id, length, notifications));
        ChannelMessage::Header
    }
}

/// Id, length or `cleared`, and the bytes after the first line.
fn parse_header(message: &[u8]) -> Option<(EventId, &str, &[u8])> {
    let end = message.iter().take(64).position(|byte| *byte == b'\n')?;
    let (id, content) = std::str::from_utf8(&message[..end]).ok()?.split_once(' ')?;
    Some((id.parse().ok()?, content, &message[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(stored: &'static [u8]) -> ChannelMessage {
        ChannelMessage::LogEntry(LogEntry { id: EventId::new(7, 1), stored: Bytes::from_static(stored) }, 0)
    }

    #[test]
    fn an_announcement_comes_in_one_message_or_two() {
        let mut assembler = Assembler::default();
        assert_eq!(assembler.push("a", b"7-1 2\n{}"), entry(b"{}"));
        assert_eq!(assembler.push("a", b"7-1 2\n"), ChannelMessage::Header);
        assert_eq!(assembler.push("a", b"{}"), entry(b"{}"));
        let ChannelMessage::LogEntry(counted, 2) = assembler.push("a", b"7-1 2 2\n{}") else {
            panic!("two notifications belong to it")
        };
        assert_eq!(counted.stored, "{}");
        assert_eq!(assembler.push("a", b"7-1 cleared\n"), ChannelMessage::Cleared(EventId::new(7, 1)));
    }

    #[test]
    fn a_truncated_or_unrelated_message_is_malformed() {
        let mut assembler = Assembler::default();
        for malformed in [
            &b"7-1 3\n{}"[..],
            b"7-1 1\n{}",
            b"",
            b"hello",
            b"7-1\n{}",
            b"x 2\n{}",
            b"7-1 2 x\n{}",
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
