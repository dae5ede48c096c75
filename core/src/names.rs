//! Names, topics, event ids, cursors and events, with their parsing and their limits. No I/O, no clock.

mod bookmark;
mod cursor;
mod event;
mod hash_change;
mod letters;
mod name;
mod topic;

pub use bookmark::{Bookmark, BookmarkError, WatchBase};
pub use cursor::{Cursor, CursorError, MAX_CURSOR_BYTES};
pub use event::{Data, DataError, Event, LINE_BYTES, MAX_JSON_DEPTH, MalformedEvent, nesting, without_white_space};
pub use hash_change::{ChangeEffect, ChangeKind, ClearReason, HashChange, WatchedValue, change_header, digest};
pub use name::{
    EventName, FieldName, HashName, MAX_FIELD_BYTES, MAX_NAME_BYTES, NameError, RoomName, SubscriberId,
};
pub use topic::Topic;

use std::fmt;
use std::str::FromStr;

/// The largest epoch or offset, 2^53 - 1. Lua on Redis, and many JSON parsers, represent all integers up to it exactly.
pub const MAX_NUMBER: u64 = (1 << 53) - 1;

/// The id of an event in its log, and a subscriber's position in that log: `<epoch>-<offset>`.
///
/// Offsets are contiguous within an epoch and start at 1. `<epoch>-0` is the position before the epoch's first event.
/// On Redis this is the native id of the stream entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId {
    /// When the epoch began, in microseconds since 1970; a higher number if the clock was not past the epoch before it.
    pub epoch: u64,
    /// The number of the event within its epoch, from 1; 0 is the position before the first event.
    pub offset: u64,
}

impl EventId {
    /// The id `<epoch>-<offset>`.
    pub const fn new(epoch: u64, offset: u64) -> Self {
        Self { epoch, offset }
    }

    /// The position before the epoch's first event.
    pub const fn start_of(epoch: u64) -> Self {
        Self { epoch, offset: 0 }
    }

    /// The position before this event, in the same epoch. The start of an epoch stays as it is.
    #[must_use]
    pub const fn before(self) -> Self {
        Self { epoch: self.epoch, offset: self.offset.saturating_sub(1) }
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.offset)
    }
}

/// The text is not `<epoch>-<offset>` in plain decimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an event id; one reads like 1790000000000000-42")]
pub struct EventIdError;

impl FromStr for EventId {
    type Err = EventIdError;

    fn from_str(text: &str) -> Result<Self, EventIdError> {
        let (epoch, offset) = text.split_once('-').ok_or(EventIdError)?;
        Ok(Self { epoch: number(epoch)?, offset: number(offset)? })
    }
}

/// Accepts only the spelling that `Display` writes: a client compares ids as text, so two spellings would be two ids.
fn number(text: &str) -> Result<u64, EventIdError> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    if !plain || (text.len() > 1 && text.starts_with('0')) {
        return Err(EventIdError);
    }
    match text.parse() {
        Ok(number) if number <= MAX_NUMBER => Ok(number),
        _ => Err(EventIdError),
    }
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_id_has_one_spelling() {
        let id: EventId = "1790000000000000-42".parse().unwrap();
        assert_eq!(id, EventId::new(1_790_000_000_000_000, 42));
        assert_eq!(id.to_string(), "1790000000000000-42");
        for invalid in
            ["", "-", "1", "1-", "-1", "01-1", "1-01", "+1-1", "1-1-1", "1 -1", "9007199254740992-0", "x-1"]
        {
            assert_eq!(invalid.parse::<EventId>(), Err(EventIdError), "{invalid}");
        }
    }
}
