//! Events that a broadcaster writes together, encoded once for all streams.

use std::sync::Arc;

use bytes::Bytes;

use crate::delivery::format::event_chunk;
use crate::delivery::session::StreamSession;
use crate::live::LiveEvent;

/// Events that are written together.
pub(super) struct EncodedBatch<'a> {
    events: &'a [Arc<LiveEvent>],
    /// All the events, as chunks of an HTTP/1.1 body.
    pub(super) bytes: Bytes,
    /// Whether a stream may get only some of the events although it selects none: one of them excludes subscribers,
    /// or is about presence.
    pub(super) is_selective: bool,
}

impl<'a> EncodedBatch<'a> {
    pub(super) fn new(events: &'a [Arc<LiveEvent>]) -> Self {
        let bytes = match events {
            // The common case copies nothing.
            [one] => event_chunk(one).clone(),
            _ => concat(events.iter()),
        };
        let is_selective =
            events.iter().any(|event| !event.event().except.is_empty() || event.event().is_presence());
        Self { events, bytes, is_selective }
    }

    /// The bytes for one stream, and the number of events in them.
    pub(super) fn for_session(&self, session: &StreamSession) -> (Bytes, usize) {
        if !self.is_selective && session.has_no_selection() {
            return (self.bytes.clone(), self.events.len());
        }
        let events: Vec<_> = self.events.iter().filter(|event| session.wants(event)).collect();
        (concat(events.iter().copied()), events.len())
    }
}

fn concat<'a>(events: impl Iterator<Item = &'a Arc<LiveEvent>>) -> Bytes {
    events.map(|event| &event_chunk(event)[..]).collect::<Vec<_>>().concat().into()
}
