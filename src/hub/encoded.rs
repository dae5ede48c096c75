//! An event, encoded once for all who read it.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use super::mirror::Logged;
use crate::broker::Entry;
use crate::room::{Event, EventId, EventName, JunkEvent, RoomName};
use crate::sse::{Block, chunk, chunk_data};

/// An event of a room's log with its text for streams.
#[derive(Debug)]
pub struct Encoded {
    id: EventId,
    event: Event,
    /// The block as one chunk of an HTTP/1.1 body.
    chunk: Bytes,
    enveloped: OnceLock<Bytes>,
}

/// An event among those of other rooms.
#[derive(Serialize)]
struct Envelope<'a> {
    room: &'a RoomName,
    id: String,
    event: Option<&'a str>,
    data: &'a RawValue,
    published_at: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    publish_id: Option<&'a str>,
}

impl Encoded {
    /// Reads an entry of a log.
    pub fn new(entry: &Entry) -> Result<Self, JunkEvent> {
        let event = Event::decode(&entry.stored)?;
        let block = Block::new().id(entry.id).event(event.name.as_ref().map(EventName::as_str));
        let chunk = chunk(block.data(event.data.as_text()).finish().as_bytes()).into();
        Ok(Self { id: entry.id, event, chunk, enveloped: OnceLock::new() })
    }

    /// Where it stands in the log.
    pub fn id(&self) -> EventId {
        self.id
    }

    /// The event.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// The whole block for a stream of this one room.
    pub fn block(&self) -> Bytes {
        self.chunk.slice_ref(chunk_data(&self.chunk))
    }

    /// The same, as one chunk of an HTTP/1.1 body.
    pub fn chunk(&self) -> &Bytes {
        &self.chunk
    }

    /// The block for a stream of several rooms, but for its `id:` line, which differs by subscriber.
    pub fn enveloped(&self, room: &RoomName) -> &Bytes {
        self.enveloped.get_or_init(|| {
            let name = self.event.name.as_ref().map(EventName::as_str);
            let envelope = Envelope {
                room,
                id: self.id.to_string(),
                event: name,
                data: &self.event.data.as_json(),
                published_at: &self.event.published_at,
                publish_id: self.event.publish_id.as_deref(),
            };
            let data = serde_json::to_string(&envelope).expect("strings and checked JSON always serialise");
            Block::new().event(name).data(&data).finish().into()
        })
    }

    /// Decodes entries; those that are not events are left out, and are then missing like trimmed ones.
    pub(super) fn all(entries: &[Entry]) -> Vec<Arc<Self>> {
        entries.iter().filter_map(|entry| Self::new(entry).ok().map(Arc::new)).collect()
    }
}

impl Logged for Arc<Encoded> {
    fn id(&self) -> EventId {
        self.id
    }

    fn bytes(&self) -> usize {
        // The block, and about as much again for the event that it was made from.
        2 * self.chunk.len()
    }

    fn is_same(&self, other: &Self) -> bool {
        self.event == other.event
    }
}

#[cfg(test)]
mod tests;
