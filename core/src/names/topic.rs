//! What a log belongs to.

use std::fmt;

use super::{HashName, RoomName};

/// What a log belongs to: the key of logs, of what replicas keep of them, and of announcements.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// A room: its log holds the events that were published to it.
    Room(RoomName),
    /// A shared hash: its log holds the changes of its fields.
    Hash(HashName),
}

impl Topic {
    /// The name of the room or of the hash.
    pub fn name(&self) -> &str {
        match self {
            Self::Room(room) => room.as_str(),
            Self::Hash(hash) => hash.as_str(),
        }
    }

    /// The room, if this is one.
    pub fn room(&self) -> Option<&RoomName> {
        match self {
            Self::Room(room) => Some(room),
            Self::Hash(_) => None,
        }
    }
}

impl From<RoomName> for Topic {
    fn from(room: RoomName) -> Self {
        Self::Room(room)
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Room(room) => write!(f, "room {room}"),
            Self::Hash(hash) => write!(f, "hash {hash}"),
        }
    }
}
