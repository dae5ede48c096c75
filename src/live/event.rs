//! An event of a live topic, shared by all its subscribers on this replica.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::broker::LogEntry;
use crate::cache::CachedEvent;
use crate::names::{Event, EventId, MalformedEvent};

/// How many encodings an event can keep.
pub const ENCODINGS: usize = 2;

/// A decoded entry of a log. It keeps the encodings that the delivery layer makes of it, so that each is made once and
/// then shared by all streams.
#[derive(Debug)]
pub struct LiveEvent {
    id: EventId,
    event: Event,
    stored_bytes: usize,
    encodings: [OnceLock<Bytes>; ENCODINGS],
}

impl LiveEvent {
    /// Decodes an entry of a log. Fails if the entry is not an event.
    pub fn new(entry: &LogEntry) -> Result<Self, MalformedEvent> {
        let event = Event::decode(&entry.stored)?;
        Ok(Self { id: entry.id, event, stored_bytes: entry.stored.len(), encodings: Default::default() })
    }

    /// Its id in the log.
    pub fn id(&self) -> EventId {
        self.id
    }

    /// The event.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// The encoding with this index, which is below [`ENCODINGS`]. The first call encodes it.
    pub fn encoding(&self, index: usize, encode: impl FnOnce() -> Bytes) -> &Bytes {
        self.encodings[index].get_or_init(encode)
    }

    /// Decodes entries. Those that are not events are left out; for subscribers, they are like trimmed ones.
    pub(super) fn decode_all(entries: &[LogEntry]) -> Vec<Arc<Self>> {
        entries.iter().filter_map(|entry| Self::new(entry).ok().map(Arc::new)).collect()
    }
}

impl CachedEvent for LiveEvent {
    fn id(&self) -> EventId {
        self.id
    }

    fn bytes(&self) -> usize {
        // The decoded event, and about as much again for its encoding.
        2 * self.stored_bytes
    }

    fn is_same(&self, other: &Self) -> bool {
        self.event == other.event
    }
}
