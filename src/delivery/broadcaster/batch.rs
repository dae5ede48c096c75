//! Events that a broadcaster writes together, encoded once for all streams.

use std::sync::Arc;

use bytes::Bytes;

use crate::delivery::format::shared_chunk;
use crate::delivery::session::StreamSession;
use crate::live::LiveEvent;
use crate::names::WatchBase;

/// Events that are written together.
pub(super) struct EncodedBatch<'a> {
    events: &'a [Arc<LiveEvent>],
    /// What the streams' clients have of a hash.
    base: Option<WatchBase>,
    /// All the events, as chunks of an HTTP/1.1 body.
    pub(super) bytes: Bytes,
    /// Whether a stream may get only some of the events although it selects none: one of them excludes subscribers, is
    /// about presence, or is for no subscriber.
    pub(super) is_selective: bool,
}

impl<'a> EncodedBatch<'a> {
    pub(super) fn new(events: &'a [Arc<LiveEvent>], base: Option<WatchBase>) -> Self {
        let bytes = match events {
            // The common case copies nothing.
            [one] => shared_chunk(one, base),
            _ => concat(events.iter(), base),
        };
        let is_selective = events.iter().any(|event| {
            let is_for_some = !event.event().except.is_empty() || event.event().is_presence();
            is_for_some || !event.is_reported()
        });
        Self { events, base, bytes, is_selective }
    }

    /// The bytes for one stream, and the number of events in them.
    pub(super) fn for_session(&self, session: &StreamSession) -> (Bytes, usize) {
        if !self.is_selective && session.has_no_selection() {
            return (self.bytes.clone(), self.events.len());
        }
        let events: Vec<_> = self.events.iter().filter(|event| session.wants(event)).collect();
        (concat(events.iter().copied(), self.base), events.len())
    }
}

fn concat<'a>(events: impl Iterator<Item = &'a Arc<LiveEvent>>, base: Option<WatchBase>) -> Bytes {
    events.map(|event| shared_chunk(event, base)).collect::<Vec<_>>().concat().into()
}
