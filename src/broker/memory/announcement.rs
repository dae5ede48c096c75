//! What a step has to announce to the listeners of this replica.

use std::sync::{Arc, OnceLock};

use crate::broker::{Listeners, LogEntry};
use crate::names::{EventId, Topic};

/// The listeners, once the broker is started.
pub(super) type ListenerSlot = Arc<OnceLock<Listeners>>;

/// An announcement.
pub(super) enum Announcement {
    /// An entry was appended.
    Appended(Topic, LogEntry),
    /// A log was emptied up to a position.
    Cleared(Topic, EventId),
    /// A removal was stored.
    RemovalStored,
}

impl Announcement {
    pub(super) fn send(self, listeners: &Listeners) {
        match self {
            Self::Appended(topic, entry) => listeners.log.announced(&topic, entry),
            Self::Cleared(topic, position) => listeners.log.cleared(&topic, position),
            Self::RemovalStored => listeners.moderation.removals_changed(),
        }
    }
}
