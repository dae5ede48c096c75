//! What streams say: the one place that writes blocks. A new format or a new control event touches this file only.
//!
//! Most blocks of events are the same for all streams. They are encoded once; the event keeps them
//! ([`LiveEvent::encoding`]).

mod hash;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;

pub(super) use self::hash::snapshot_block;
use super::http1::{chunk, chunk_data};
use super::sse::{Block, HEARTBEAT};
use super::{EndReason, HeartbeatOptions};
use crate::live::{ENCODINGS, LiveEvent, Resume};
use crate::log::Gap;
use crate::names::{
    Bookmark, Cursor, EventId, EventName, FieldName, HashName, RoomName, SubscriberId, Topic, WatchBase,
};
use crate::timestamp;

/// The `retry:` of a stream whose client should never reconnect. Clients that multiply it stay below the 2^31 ms of
/// `setTimeout`, above which it fires at once.
const NEVER_RETRY: Duration = Duration::from_hours(24);

/// The format of a stream's blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StreamFormat {
    /// A stream of one room or hash. It carries events as published; the `id:` is the stream's bookmark.
    #[default]
    Single,
    /// A stream of several rooms and hashes. It carries events of rooms in envelopes; the `id:` is a cursor for all.
    Enveloped,
    /// A read of a room's log that waits for events: it carries one page, with so many events at most, and ends.
    Page(u16),
}

/// The data of `stream.open`.
#[derive(Serialize)]
pub(super) struct StreamOpen<'a> {
    subscriber: &'a SubscriberId,
    replica: &'a str,
    heartbeat_seconds: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<String>,
    rooms: BTreeMap<&'a str, OpenedTopic>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    hashes: BTreeMap<&'a str, OpenedTopic>,
}

/// A room or a hash in `stream.open`.
#[derive(Serialize)]
struct OpenedTopic {
    position: String,
    resume: &'static str,
}

/// The data of `stream.gap`: events after `from`, up to and including `to`, may be missing.
#[derive(Serialize)]
struct StreamGap<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    room: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hash: Option<&'a str>,
    from: String,
    to: String,
    reason: &'static str,
}

/// The data of `stream.position`.
#[derive(Serialize)]
struct StreamPosition<'a> {
    position: &'a str,
}

/// The data of `stream.end`.
#[derive(Serialize)]
struct StreamEnd<'a> {
    reason: &'a str,
    reconnect: &'a str,
}

/// The data of an event on a stream of several rooms.
#[derive(Serialize)]
struct Envelope<'a> {
    room: &'a RoomName,
    id: String,
    event: Option<&'a str>,
    data: &'a RawValue,
    published_at: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    publish_id: Option<&'a str>,
    #[serde(rename = "final", skip_serializing_if = "std::ops::Not::not")]
    is_final: bool,
}

/// The encodings that an event keeps: their indices for [`LiveEvent::encoding`].
#[derive(Clone, Copy)]
enum Encoding {
    Chunk,
    Envelope,
}

const _: () = assert!(Encoding::Envelope as usize + 1 == ENCODINGS, "an event keeps each of the encodings");

impl<'a> StreamOpen<'a> {
    /// `expires_at`: when the stream ends because its token expires. `topics`: each with the bookmark at which the stream
    /// starts.
    pub(super) fn new(
        subscriber: &'a SubscriberId,
        replica: &'a str,
        heartbeat: HeartbeatOptions,
        expires_at: Option<SystemTime>,
        topics: impl Iterator<Item = (&'a Topic, Bookmark, Resume)>,
    ) -> Self {
        let (rooms, hashes): (Vec<_>, Vec<_>) = topics.partition(|(topic, ..)| topic.room().is_some());
        let opened = |topics: Vec<(&'a Topic, Bookmark, Resume)>| {
            let opened = |bookmark: Bookmark, resume: Resume| OpenedTopic {
                position: bookmark.to_string(),
                resume: resume.name(),
            };
            topics.into_iter().map(|(topic, bookmark, resume)| (topic.name(), opened(bookmark, resume))).collect()
        };
        let expires_at = expires_at.map(timestamp::format);
        let heartbeat_seconds = heartbeat.seconds();
        Self { subscriber, replica, heartbeat_seconds, expires_at, rooms: opened(rooms), hashes: opened(hashes) }
    }
}

impl StreamFormat {
    /// Whether a broadcaster can keep the stream while nothing follows.
    pub(super) fn has_broadcasters(self) -> bool {
        !matches!(self, Self::Enveloped)
    }

    /// Whether a room's event's block is the same for every stream, so that one encoding serves all.
    pub(super) fn is_shared(self) -> bool {
        self == Self::Single
    }

    /// The `id:` for these bookmarks. The client sends it back when it reconnects.
    pub(super) fn id<'a>(self, mut bookmarks: impl Iterator<Item = (&'a Topic, Bookmark)>) -> String {
        match self {
            Self::Single | Self::Page(_) => {
                bookmarks.next().map_or(EventId::start_of(0).into(), |(_, bookmark)| bookmark).to_string()
            }
            Self::Enveloped => Cursor::from_bookmarks(bookmarks).encode(),
        }
    }

    /// Adds an event's block to `blocks`. `id` returns the block's `id:` if that is not the event's id. Of a change of a
    /// hash, only `fields` are told, if there are any; returns whether there is anything to tell.
    pub(super) fn event(
        self,
        blocks: &mut Vec<Bytes>,
        topic: &Topic,
        event: &LiveEvent,
        fields: Option<&[FieldName]>,
        id: impl FnOnce() -> String,
    ) -> bool {
        let rest = match (self, topic) {
            (Self::Single | Self::Page(_), Topic::Room(_)) => {
                blocks.push(event_block(event));
                return true;
            }
            (Self::Enveloped, Topic::Room(room)) => event_envelope(event, room).clone(),
            (_, Topic::Hash(_)) => match fields {
                None => hash::change(event).clone(),
                Some(fields) => match hash::change_of(event, fields) {
                    Some(block) => block,
                    None => return false,
                },
            },
        };
        blocks.push(Block::new().id(id()).into_lines().into());
        blocks.push(rest);
        true
    }
}

/// The first block of a stream.
pub(super) fn open_block(retry: Duration, id: &str, open: &StreamOpen<'_>) -> Bytes {
    Block::new().retry(retry.as_millis()).id(id).event(Some("stream.open")).data(&to_json(open)).finish().into()
}

/// The block that says that events of a topic may be missing.
pub(super) fn gap_block(id: &str, topic: &Topic, gap: &Gap) -> Bytes {
    let gap = StreamGap {
        room: topic.room().map(RoomName::as_str),
        hash: topic.hash().map(HashName::as_str),
        from: gap.from.to_string(),
        to: gap.to.to_string(),
        reason: gap.reason.name(),
    };
    Block::new().id(id).event(Some("stream.gap")).data(&to_json(&gap)).finish().into()
}

/// The block that gives the position when no other block does: a heartbeat that a page sees. It has data because some clients store an `id:` only
/// with data.
pub(super) fn position_block(id: &str) -> Bytes {
    let data = to_json(&StreamPosition { position: id });
    Block::new().id(id).event(Some("stream.position")).data(&data).finish().into()
}

/// The last block of a stream. Its `retry:` is random, so that clients whose streams end together do not all reconnect
/// together. An `EventSource` that is not closed reconnects even if it should never do so: its `retry:` is long.
pub(super) fn end_block(retry: Duration, reason: EndReason, last_id: Option<&str>) -> String {
    let retry = if reason.reconnect() == "never" { NEVER_RETRY } else { retry.mul_f64(1.0 + fastrand::f64()) };
    let mut block = Block::new().retry(retry.as_millis());
    // A block without an id would erase the client's position: on each stream, the client's id buffer starts empty
    // (HTML 9.2.6).
    if let Some(id) = last_id {
        block = block.id(id);
    }
    let end = StreamEnd { reason: reason.name(), reconnect: reason.reconnect() };
    block.event(Some("stream.end")).data(&to_json(&end)).finish()
}

/// The comment that keeps an idle stream open.
pub(super) fn heartbeat() -> Bytes {
    Bytes::from_static(HEARTBEAT.as_bytes())
}

/// The block that gives the position of a stream of one room or hash, as one chunk of an HTTP/1.1 body.
pub(super) fn position_chunk(position: Bookmark) -> Bytes {
    chunk(&position_block(&position.to_string())).into()
}

/// The heartbeat as one chunk of an HTTP/1.1 body.
pub(super) fn heartbeat_chunk() -> Bytes {
    chunk(HEARTBEAT.as_bytes()).into()
}

/// The block of an event on a stream of one room, as one chunk of an HTTP/1.1 body.
pub fn event_chunk(event: &LiveEvent) -> &Bytes {
    event.encoding(Encoding::Chunk as usize, || {
        let name = event.event().name.as_ref().map(EventName::as_str);
        let block = Block::new().id(event.id()).event(name).data(event.event().data.as_text());
        chunk(block.finish().as_bytes()).into()
    })
}

/// The block of an event on a stream of one room or hash, as one chunk of an HTTP/1.1 body, for clients that have this of
/// the hash.
pub(super) fn shared_chunk(event: &LiveEvent, base: Option<WatchBase>) -> Bytes {
    if base.is_none() {
        return event_chunk(event).clone();
    }
    let id = Block::new().id(Bookmark { id: event.id(), base }).into_lines();
    chunk(&[id.as_bytes(), hash::change(event)].concat()).into()
}

/// The block of an event on a stream of one room without the chunk. It shares the chunk's memory.
fn event_block(event: &LiveEvent) -> Bytes {
    let chunk = event_chunk(event);
    chunk.slice_ref(chunk_data(chunk))
}

/// The block of an event on a stream of several rooms, without its `id:` line, which differs from stream to stream.
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
            is_final: event.is_final,
        };
        Block::new().event(name).data(&to_json(&envelope)).finish().into()
    })
}

pub(super) fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("strings, maps of strings and checked JSON always serialise")
}

#[cfg(test)]
mod tests;
