//! An event of a live topic, shared by all its subscribers on this replica.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::broker::LogEntry;
use crate::cache::CachedEvent;
use crate::names::{ChangeEffect, Event, EventId, EventName, HashChange, LINE_BYTES, MalformedEvent, Topic};

/// How many encodings an event can keep.
pub const ENCODINGS: usize = 2;

/// A decoded entry of a log. It keeps the encodings that the delivery layer makes of it, so that each is made once and
/// then shared by all streams.
#[derive(Debug)]
pub struct LiveEvent {
    id: EventId,
    event: Event,
    /// Of a change of a hash.
    effect: Option<Box<ChangeEffect>>,
    bytes: usize,
    encodings: [OnceLock<Bytes>; ENCODINGS],
}

impl LiveEvent {
    /// Decodes an entry of a topic's log. Fails if the entry is not an event, or not a change of a hash.
    pub fn new(topic: &Topic, entry: &LogEntry) -> Result<Self, MalformedEvent> {
        let (event, effect) = match topic {
            Topic::Room(_) => (Event::decode(&entry.stored)?, None),
            Topic::Hash(hash) => {
                let change = HashChange::decode(&entry.stored)?;
                (change.to_event(hash), Some(Box::new(change.effect())))
            }
        };
        // The decoded event, and about as much again for its encoding, in which every line of data begins with `data: `.
        let bytes = 2 * (entry.stored.len() + LINE_BYTES * event.data.line_breaks());
        Ok(Self { id: entry.id, event, effect, bytes, encodings: Default::default() })
    }

    /// Its id in the log.
    pub fn id(&self) -> EventId {
        self.id
    }

    /// The event.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// What it does to a mirror, if it is a change of a hash.
    pub fn effect(&self) -> Option<&ChangeEffect> {
        self.effect.as_deref()
    }

    /// Whether anybody gets it: all events but changes of a hash's expiry.
    pub fn is_reported(&self) -> bool {
        self.effect.is_none() || self.event.name.as_ref().is_none_or(|name| name.as_str() != EventName::HASH_EXPIRY)
    }

    /// The encoding with this index, which is below [`ENCODINGS`]. The first call encodes it.
    pub fn encoding(&self, index: usize, encode: impl FnOnce() -> Bytes) -> &Bytes {
        self.encodings[index].get_or_init(encode)
    }

    /// Decodes entries. Those that are not events are left out; for subscribers, they are like trimmed ones.
    pub(super) fn decode_all(topic: &Topic, entries: &[LogEntry]) -> Vec<Arc<Self>> {
        entries.iter().filter_map(|entry| Self::new(topic, entry).ok().map(Arc::new)).collect()
    }
}

impl CachedEvent for LiveEvent {
    fn id(&self) -> EventId {
        self.id
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn is_same(&self, other: &Self) -> bool {
        self.event == other.event
    }

    fn last_message(&self) -> Option<EventId> {
        self.event.last_message
    }
}

/// An event without a name, as a caller publishes it.
#[cfg(test)]
pub(crate) fn test_event(text: impl Into<Box<str>>) -> Event {
    Event {
        name: None,
        data: crate::names::Data::Text(text.into()),
        published_at: "2026-01-02T03:04:05.678Z".into(),
        except: Vec::new(),
        publish_id: None,
        traceparent: None,
        is_final: false,
        last_message: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::{Data, RoomName};

    #[test]
    fn every_line_of_data_counts() {
        let bytes = |text: &str| {
            let event = Event {
                name: None,
                data: Data::Text(text.into()),
                published_at: String::new(),
                except: Vec::new(),
                publish_id: None,
                traceparent: None,
                is_final: false,
                last_message: None,
            };
            let topic = Topic::from(RoomName::new("a").unwrap());
            LiveEvent::new(&topic, &LogEntry { id: EventId::new(1, 1), stored: event.encode() }).unwrap().bytes()
        };
        let encoded = "\ndata: a".len();
        assert!(bytes(&"a\n".repeat(1000)) >= 2 * 1000 * encoded);
        assert!(bytes(&"a".repeat(1000)) < 4 * 1000);
    }
}
