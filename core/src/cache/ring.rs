//! The recent events of a log, shared by all its readers on a replica.

use std::collections::VecDeque;

use super::CachedEvent;
use crate::log::{EpochHistory, LogView, Next, ReportedLoss, Retained};
use crate::names::EventId;

/// The most that a ring holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RingLimits {
    /// Most events; at least one.
    pub events: usize,
    /// Most bytes, unless a single event is larger.
    pub bytes: usize,
}

/// Events in the order of their ids, limited in number and in bytes. There are no holes, except in the result of a read
/// of which presence events were dropped.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ring<E> {
    events: VecDeque<E>,
    bytes: usize,
    limits: RingLimits,
    /// What its readers get: [`LogView::All`] if it is shared by all readers.
    view: LogView,
    /// The position of the log's last message, if presence events follow it and the readers do not get them.
    last_message: Option<EventId>,
}

impl<E: CachedEvent + Clone> Retained for Ring<E> {
    fn first_after(&self, position: EventId) -> Option<EventId> {
        let index = self.events.partition_point(|event| event.id() <= position);
        self.events.get(index).map(CachedEvent::id)
    }

    fn complete_since(&self, id: EventId) -> EventId {
        let skips_presence = self.view == LogView::Messages;
        self.event(id).filter(|_| skips_presence).and_then(CachedEvent::last_message).unwrap_or(id.before())
    }

    fn complete_to_end(&self) -> Option<EventId> {
        self.last_message
    }
}

impl<E: CachedEvent + Clone> Ring<E> {
    /// An empty ring.
    pub fn new(limits: RingLimits) -> Self {
        Self { events: VecDeque::new(), bytes: 0, limits, view: LogView::All, last_message: None }
    }

    /// A ring without limits that holds the events of one read, for a reader with this view. `last_message` is that of the
    /// log's head.
    pub fn from_events(events: Vec<E>, view: LogView, last_message: Option<EventId>) -> Self {
        let bytes = events.iter().map(CachedEvent::bytes).sum();
        let limits = RingLimits { events: usize::MAX, bytes: usize::MAX };
        let last_message = last_message.filter(|_| view == LogView::Messages);
        Self { events: events.into(), bytes, limits, view, last_message }
    }

    /// The limits.
    pub fn limits(&self) -> RingLimits {
        self.limits
    }

    /// The events that follow a position: at least one, and about `max_bytes` in all. If the next event is not in the
    /// ring, the error is what follows by the ring's events: nothing, or a gap. Such a gap is one of the log only if the
    /// ring's events and the history come from one read.
    pub fn after(
        &self,
        history: &EpochHistory,
        mut position: EventId,
        reported: Option<ReportedLoss>,
        max_bytes: usize,
    ) -> Result<Vec<E>, Next> {
        let (mut events, mut bytes) = (Vec::new(), 0);
        loop {
            let next = history.next_after(position, self, reported);
            match next {
                Next::Event(id) if bytes < max_bytes => {
                    let Some(event) = self.event(id) else { return Err(next) };
                    bytes += event.bytes();
                    events.push(event.clone());
                    position = id;
                }
                _ if events.is_empty() => return Err(next),
                // Beyond its last event the ring can't tell what the log retains.
                _ => return Ok(events),
            }
        }
    }

    /// The last event.
    pub fn last(&self) -> Option<&E> {
        self.events.back()
    }

    /// The events, newest first.
    pub fn newest_first(&self) -> impl Iterator<Item = &E> {
        self.events.iter().rev()
    }

    /// The id of the last event.
    pub fn last_id(&self) -> Option<EventId> {
        self.last().map(CachedEvent::id)
    }

    /// The event with this id.
    pub fn event(&self, id: EventId) -> Option<&E> {
        let index = self.events.partition_point(|event| event.id() < id);
        self.events.get(index).filter(|event| event.id() == id)
    }

    /// Adds the event that follows the last one; drops the oldest events that exceed the limits.
    pub fn push(&mut self, event: E) {
        self.bytes += event.bytes();
        self.events.push_back(event);
        while self.events.len() > self.limits.events || (self.bytes > self.limits.bytes && self.events.len() > 1) {
            self.bytes -= self.events.pop_front().map_or(0, |event| event.bytes());
        }
    }

    /// The size of the events before the last one.
    pub fn older_bytes(&self) -> usize {
        self.bytes - self.last().map_or(0, CachedEvent::bytes)
    }

    /// Drops the events before the last one, and the memory for them.
    pub fn drop_older(&mut self) {
        self.events.drain(..self.events.len().saturating_sub(1));
        self.events.shrink_to_fit();
        self.recount_bytes();
    }

    /// Drops the events that a history lacks, and those up to which its log was cleared.
    pub fn keep_only(&mut self, history: &EpochHistory) {
        self.events.retain(|event| history.holds(event.id()) && event.id() > history.cleared());
        self.recount_bytes();
    }

    /// Drops the events at and below a position.
    pub fn keep_above(&mut self, position: EventId) {
        self.events.retain(|event| event.id() > position);
        self.recount_bytes();
    }

    fn recount_bytes(&mut self) {
        self.bytes = self.events.iter().map(CachedEvent::bytes).sum();
    }

    /// Drops all events.
    pub fn clear(&mut self) {
        self.events.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
pub(crate) mod tests;
