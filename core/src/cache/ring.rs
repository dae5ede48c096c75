//! The recent events of a room, shared by all who read it there.

use std::collections::VecDeque;

use super::CachedEvent;
use crate::log::{EpochHistory, Next, ReportedLoss, Retained, next};
use crate::names::EventId;

/// How much a ring holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RingLimits {
    /// Most events; at least one.
    pub events: usize,
    /// Most bytes, unless a single event is larger.
    pub bytes: usize,
}

/// Events in the order of their ids, without holes, bounded in number and in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ring<E> {
    events: VecDeque<E>,
    bytes: usize,
    limits: RingLimits,
}

impl<E: CachedEvent> Retained for Ring<E> {
    fn first_after(&self, position: EventId) -> Option<EventId> {
        let at = self.events.partition_point(|event| event.id() <= position);
        self.events.get(at).map(CachedEvent::id)
    }
}

impl<E: CachedEvent + Clone> Ring<E> {
    pub fn new(limits: RingLimits) -> Self {
        Self { events: VecDeque::new(), bytes: 0, limits }
    }

    pub fn limits(&self) -> RingLimits {
        self.limits
    }

    /// Events that were read together, all of them.
    pub fn from_events(events: Vec<E>) -> Self {
        let bytes = events.iter().map(CachedEvent::bytes).sum();
        let limits = RingLimits { events: usize::MAX, bytes: usize::MAX };
        Self { events: events.into(), bytes, limits }
    }

    /// The events that after a position, up to about so many bytes; if there are none, what else follows.
    pub fn after(
        &self,
        history: &EpochHistory,
        mut position: EventId,
        reported: Option<ReportedLoss>,
        most_bytes: usize,
    ) -> Result<Vec<E>, Next> {
        let (mut events, mut bytes) = (Vec::new(), 0);
        loop {
            let verdict = next(history, self, position, reported);
            match verdict {
                Next::Event(id) if bytes < most_bytes => {
                    let Some(event) = self.event(id) else { return Err(verdict) };
                    bytes += event.bytes();
                    events.push(event.clone());
                    position = id;
                }
                _ if events.is_empty() => return Err(verdict),
                // Past its last event the ring can't tell what the log still holds.
                _ => return Ok(events),
            }
        }
    }

    pub fn back(&self) -> Option<&E> {
        self.events.back()
    }

    pub fn last(&self) -> Option<EventId> {
        self.back().map(CachedEvent::id)
    }

    pub fn event(&self, id: EventId) -> Option<&E> {
        let at = self.events.partition_point(|event| event.id() < id);
        self.events.get(at).filter(|event| event.id() == id)
    }

    /// Adds the event that follows the last one.
    pub fn push(&mut self, event: E) {
        self.bytes += event.bytes();
        self.events.push_back(event);
        while self.events.len() > self.limits.events || (self.bytes > self.limits.bytes && self.events.len() > 1) {
            self.bytes -= self.events.pop_front().map_or(0, |event| event.bytes());
        }
    }

    /// Drops what a history does not have, or not any more.
    pub fn keep_only(&mut self, history: &EpochHistory) {
        self.events.retain(|event| history.holds(event.id()) && event.id() > history.cleared());
        self.count();
    }

    /// Drops what lies at or below a position.
    pub fn keep_above(&mut self, position: EventId) {
        self.events.retain(|event| event.id() > position);
        self.count();
    }

    fn count(&mut self) {
        self.bytes = self.events.iter().map(CachedEvent::bytes).sum();
    }

    pub fn clear(&mut self) {
        self.events.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
pub(crate) mod tests;
