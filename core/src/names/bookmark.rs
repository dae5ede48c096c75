//! Where a stream is in a topic: its position in the log and, of a watched hash, the state that its client has.

use std::fmt;
use std::str::FromStr;

use super::{EventId, MAX_NUMBER};

/// A stream's bookmark in a topic, as text `<epoch>-<offset>`, `<epoch>-<offset>~<copy>` or `<epoch>-<offset>!`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bookmark {
    /// The position in the topic's log.
    pub id: EventId,
    /// What the client has of a hash. None in a room.
    pub base: Option<WatchBase>,
}

/// What a client has of a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchBase {
    /// Nothing, or a part of a snapshot.
    Unfinished,
    /// The state that the replica's mirror with this number had at the position. The number is below 2^53, and no other
    /// mirror of any replica has it.
    Mirror(u64),
}

impl Bookmark {
    /// The bookmark of a client that has nothing of a hash.
    pub const WITHOUT_BASE: Self = Self { id: EventId::start_of(0), base: Some(WatchBase::Unfinished) };

    /// The same base at another position.
    #[must_use]
    pub fn at(self, id: EventId) -> Self {
        Self { id, ..self }
    }
}

impl From<EventId> for Bookmark {
    fn from(id: EventId) -> Self {
        Self { id, base: None }
    }
}

impl fmt::Display for Bookmark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.base {
            None => write!(f, "{}", self.id),
            Some(WatchBase::Unfinished) => write!(f, "{}!", self.id),
            Some(WatchBase::Mirror(mirror)) => write!(f, "{}~{mirror:x}", self.id),
        }
    }
}

/// The text is no bookmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a position of this stream; send back the last `id:` that the stream gave, unchanged")]
pub struct BookmarkError;

impl FromStr for Bookmark {
    type Err = BookmarkError;

    fn from_str(text: &str) -> Result<Self, BookmarkError> {
        let (id, base) = if let Some(id) = text.strip_suffix('!') {
            (id, Some(WatchBase::Unfinished))
        } else if let Some((id, mirror)) = text.split_once('~') {
            let number = u64::from_str_radix(mirror, 16).ok().filter(|number| *number <= MAX_NUMBER);
            let number = number.filter(|number| format!("{number:x}") == mirror).ok_or(BookmarkError)?;
            (id, Some(WatchBase::Mirror(number)))
        } else {
            (text, None)
        };
        Ok(Self { id: id.parse().map_err(|_| BookmarkError)?, base })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_has_one_spelling() {
        for text in ["7-1", "7-1!", "7-0~1f"] {
            assert_eq!(text.parse::<Bookmark>().unwrap().to_string(), text);
        }
        for invalid in ["", "!", "7-1~", "7-1~01", "7-1~F", "7-1~x", "7-1!~1", "7-1~1!", "7-1~20000000000000"] {
            assert_eq!(invalid.parse::<Bookmark>(), Err(BookmarkError), "{invalid}");
        }
    }
}
