//! What streams say, in each format: the one place that writes control events and events. A new format or control event
//! touches this file only.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use super::EndReason;
use super::encoded::{event_block, event_envelope};
use super::sse::{Block, HEARTBEAT};
use crate::live::{LiveEvent, Resume};
use crate::log::Gap;
use crate::names::{Cursor, EventId, RoomName, SubscriberId, Topic};

/// What the blocks of a stream look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamFormat {
    /// One room: events as published; the `id:` is the event's.
    Single,
    /// Several rooms: events in an envelope; the `id:` is a cursor of all rooms.
    Enveloped,
}

/// The data of `stream.open`.
#[derive(Serialize)]
pub(super) struct StreamOpen<'a> {
    pub(super) subscriber: &'a SubscriberId,
    pub(super) replica: &'a str,
    /// When the stream ends with its token, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) expires_at: Option<String>,
    pub(super) rooms: BTreeMap<&'a str, OpenedRoom>,
}

/// A room in `stream.open`.
#[derive(Serialize)]
pub(super) struct OpenedRoom {
    position: String,
    resume: &'static str,
}

impl OpenedRoom {
    pub(super) fn new(position: EventId, resume: Resume) -> Self {
        Self { position: position.to_string(), resume: resume.name() }
    }
}

/// A gap as clients see it: what may be missing lies after `from`, up to and including `to`.
#[derive(Serialize)]
pub struct GapText {
    /// The last position before which nothing is missing.
    pub from: String,
    /// The position from which the stream, or the page, goes on.
    pub to: String,
    /// The name of the reason.
    pub reason: &'static str,
}

impl From<&Gap> for GapText {
    fn from(gap: &Gap) -> Self {
        Self { from: gap.from.to_string(), to: gap.to.to_string(), reason: gap.reason.name() }
    }
}

#[derive(Serialize)]
struct StreamGap<'a> {
    room: &'a str,
    #[serde(flatten)]
    gap: GapText,
}

#[derive(Serialize)]
struct StreamPosition<'a> {
    position: &'a str,
}

#[derive(Serialize)]
struct StreamEnd<'a> {
    reason: &'a str,
    reconnect: &'a str,
}

impl StreamFormat {
    /// Whether an event's block is the same for every subscriber, so that one write serves all.
    pub(super) fn is_shared(self) -> bool {
        self == Self::Single
    }

    /// The `id:` that stands for these positions: the client sends it back when it reconnects.
    pub(super) fn id<'a>(self, mut positions: impl Iterator<Item = (&'a Topic, EventId)>) -> String {
        match self {
            Self::Single => positions.next().map_or(EventId::start_of(0), |(_, position)| position).to_string(),
            Self::Enveloped => {
                let rooms = positions.filter_map(|(topic, position)| Some((topic.room()?, position)));
                Cursor::from_positions(rooms).encode()
            }
        }
    }

    /// The first block of a stream.
    pub(super) fn open(self, retry: Duration, id: &str, open: &StreamOpen<'_>) -> Bytes {
        Block::new().retry(retry.as_millis()).id(id).event(Some("stream.open")).data(&to_json(open)).finish().into()
    }

    /// Adds an event's block. `id` makes the `id:` of a stream whose ids are not the event's own.
    pub(super) fn event(
        self,
        blocks: &mut Vec<Bytes>,
        topic: &Topic,
        event: &LiveEvent,
        id: impl FnOnce() -> String,
    ) {
        match (self, topic) {
            (Self::Enveloped, Topic::Room(room)) => {
                blocks.push(Block::new().id(id()).into_lines().into());
                blocks.push(event_envelope(event, room).clone());
            }
            (Self::Single | Self::Enveloped, _) => blocks.push(event_block(event)),
        }
    }

    /// Says that events may be missing.
    pub(super) fn gap(self, id: &str, topic: &Topic, gap: &Gap) -> Bytes {
        let gap = StreamGap { room: topic.name(), gap: gap.into() };
        Block::new().id(id).event(Some("stream.gap")).data(&to_json(&gap)).finish().into()
    }

    /// Tells the position where nothing else has: with data, since some clients take over an id only with data.
    pub(super) fn position(self, id: &str) -> Bytes {
        let data = to_json(&StreamPosition { position: id });
        Block::new().id(id).event(Some("stream.position")).data(&data).finish().into()
    }

    /// Keeps an idle stream alive.
    pub(super) fn heartbeat(self) -> Bytes {
        Bytes::from_static(HEARTBEAT.as_bytes())
    }

    /// The last block of a stream. `retry:` is jittered: clients that were sent away together do not come back together.
    pub(super) fn end(self, retry: Duration, reason: EndReason, last_id: Option<&str>) -> String {
        let mut block = Block::new().retry(retry.mul_f64(1.0 + fastrand::f64()).as_millis());
        // A block without an id would erase the client's position: the id buffer starts empty on each stream (HTML 9.2.6).
        if let Some(id) = last_id {
            block = block.id(id);
        }
        let end = StreamEnd { reason: reason.name(), reconnect: reason.reconnect() };
        block.event(Some("stream.end")).data(&to_json(&end)).finish()
    }
}

/// The rooms of a `stream.open`.
pub(super) fn opened_rooms<'a>(
    opening: impl Iterator<Item = (&'a Topic, EventId, Resume)>,
) -> BTreeMap<&'a str, OpenedRoom> {
    opening.map(|(topic, position, resume)| (topic.name(), OpenedRoom::new(position, resume))).collect()
}

/// Whether a topic is this room.
pub(super) fn is_room(topic: &Topic, room: &RoomName) -> bool {
    topic.room() == Some(room)
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("strings and maps of strings always serialise")
}
