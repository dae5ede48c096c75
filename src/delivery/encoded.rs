//! Events as text for streams, encoded once for all subscribers.

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;

use super::http1::{chunk, chunk_data};
use super::sse::Block;
use crate::live::{ENCODINGS, LiveEvent};
use crate::names::{EventName, RoomName};

/// The encodings that an event keeps.
#[derive(Clone, Copy)]
enum Encoding {
    Chunk,
    Envelope,
}

const _: () = assert!(Encoding::Envelope as usize + 1 == ENCODINGS, "each encoding has its place");

/// An event of a stream of several rooms.
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

/// The block for a stream of the event's room alone, as one chunk of an HTTP/1.1 body.
pub fn event_chunk(event: &LiveEvent) -> &Bytes {
    event.encoding(Encoding::Chunk as usize, || {
        let name = event.event().name.as_ref().map(EventName::as_str);
        let block = Block::new().id(event.id()).event(name).data(event.event().data.as_text());
        chunk(block.finish().as_bytes()).into()
    })
}

/// The same block, not in a chunk.
pub fn event_block(event: &LiveEvent) -> Bytes {
    let chunk = event_chunk(event);
    chunk.slice_ref(chunk_data(chunk))
}

/// The block for a stream of several rooms, without its `id:` line, which differs by subscriber.
pub fn event_envelope<'a>(event: &'a LiveEvent, room: &RoomName) -> &'a Bytes {
    event.encoding(Encoding::Envelope as usize, || {
        let (id, event) = (event.id(), event.event());
        let name = event.name.as_ref().map(EventName::as_str);
        let envelope = Envelope {
            room,
            id: id.to_string(),
            event: name,
            data: &event.data.as_json(),
            published_at: &event.published_at,
            publish_id: event.publish_id.as_deref(),
        };
        let data = serde_json::to_string(&envelope).expect("strings and checked JSON always serialise");
        Block::new().event(name).data(&data).finish().into()
    })
}

#[cfg(test)]
mod tests;
