//! An event of a live topic, shared by all subscribers of it on this replica.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::broker::LogEntry;
use crate::cache::CachedEvent;
use crate::names::{Event, EventId, MalformedEvent};

/// Encodings that an event keeps.
pub const ENCODINGS: usize = 2;

/// An entry of a log, decoded, with room for what the delivery layer makes of it: that is made once and then shared.
#[derive(Debug)]
pub struct LiveEvent {
    id: EventId,
    event: Event,
    stored_bytes: usize,
    encodings: [OnceLock<Bytes>; ENCODINGS],
}

impl LiveEvent {
    /// Decodes an entry of a log.
    pub fn new(entry: &LogEntry) -> Result<Self, MalformedEvent> {
        let event = Event::decode(&entry.stored)?;
        Ok(Self { id: entry.id, event, stored_bytes: entry.stored.len(), encodings: Default::default() })
    }

    /// Its position in the log.
    pub fn id(&self) -> EventId {
        self.id
    }

    /// The event.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// The encoding with this index, below [`ENCODINGS`]; encodes it at the first call.
    pub fn encoding(&self, index: usize, encode: impl FnOnce() -> Bytes) -> &Bytes {
        self.encodings[index].get_or_init(encode)
    }

    /// Decodes entries. Entries that are not events are left out; subscribers are told of them as of trimmed ones.
    pub(super) fn decode_all(entries: &[LogEntry]) -> Vec<Arc<Self>> {
        entries.iter().filter_map(|entry| Self::new(entry).ok().map(Arc::new)).collect()
    }
}

impl CachedEvent for LiveEvent {
    fn id(&self) -> EventId {
        self.id
    }

    fn bytes(&self) -> usize {
        // Decoded, and about as much again once it is encoded.
        2 * self.stored_bytes
    }

    fn is_same(&self, other: &Self) -> bool {
        self.event == other.event
    }
}
