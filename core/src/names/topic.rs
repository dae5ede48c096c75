//! The owner of a log: a room or a shared hash.

use std::fmt;

use super::{HashName, RoomName};

/// The owner of a log. Topics are the keys of logs, of their caches and watermarks on a replica, and of announcements.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// A room. Its log holds the events that were published to it.
    Room(RoomName),
    /// A shared hash. Its log holds the changes that were made while somebody watched it.
    Hash(HashName),
}

impl Topic {
    /// The name of the room or hash.
    pub fn name(&self) -> &str {
        match self {
            Self::Room(room) => room.as_str(),
            Self::Hash(hash) => hash.as_str(),
        }
    }

    /// The room, unless the topic is a hash.
    pub fn room(&self) -> Option<&RoomName> {
        match self {
            Self::Room(room) => Some(room),
            Self::Hash(_) => None,
        }
    }

    /// The hash, unless the topic is a room.
    pub fn hash(&self) -> Option<&HashName> {
        match self {
            Self::Room(_) => None,
            Self::Hash(hash) => Some(hash),
        }
    }
}

impl From<RoomName> for Topic {
    fn from(room: RoomName) -> Self {
        Self::Room(room)
    }
}

impl From<HashName> for Topic {
    fn from(hash: HashName) -> Self {
        Self::Hash(hash)
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
