//! The recent events of a room, shared by all who read it there.

use std::collections::VecDeque;

use super::mirror::Logged;
use crate::follow::{Chain, Next, Retained, Settled, next};
use crate::room::EventId;

/// How much a ring holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Limits {
    /// Most events; at least one.
    pub(super) events: usize,
    /// Most bytes, unless a single event is larger.
    pub(super) bytes: usize,
}

/// Events in the order of their ids, without holes, bounded in number and in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ring<E> {
    events: VecDeque<E>,
    bytes: usize,
    limits: Limits,
}

impl<E: Logged> Retained for Ring<E> {
    fn first_after(&self, position: EventId) -> Option<EventId> {
        let at = self.events.partition_point(|event| event.id() <= position);
        self.events.get(at).map(Logged::id)
    }
}

impl<E: Logged> Ring<E> {
    pub(super) fn new(limits: Limits) -> Self {
        Self { events: VecDeque::new(), bytes: 0, limits }
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// Events that were read together, all of them.
    pub(super) fn of(events: Vec<E>) -> Self {
        let bytes = events.iter().map(Logged::bytes).sum();
        let limits = Limits { events: usize::MAX, bytes: usize::MAX };
        Self { events: events.into(), bytes, limits }
    }

    /// The events that follow a position, up to about so many bytes; if there are none, what else follows.
    pub(super) fn follow(
        &self,
        chain: &Chain,
        mut position: EventId,
        settled: Option<Settled>,
        most_bytes: usize,
    ) -> Result<Vec<E>, Next> {
        let (mut events, mut bytes) = (Vec::new(), 0);
        loop {
            let verdict = next(chain, self, position, settled);
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

    pub(super) fn back(&self) -> Option<&E> {
        self.events.back()
    }

    pub(super) fn last(&self) -> Option<EventId> {
        self.back().map(Logged::id)
    }

    pub(super) fn event(&self, id: EventId) -> Option<&E> {
        let at = self.events.partition_point(|event| event.id() < id);
        self.events.get(at).filter(|event| event.id() == id)
    }

    /// Adds the event that follows the last one.
    pub(super) fn push(&mut self, event: E) {
        self.bytes += event.bytes();
        self.events.push_back(event);
        while self.events.len() > self.limits.events || (self.bytes > self.limits.bytes && self.events.len() > 1) {
            self.bytes -= self.events.pop_front().map_or(0, |event| event.bytes());
        }
    }

    /// Drops what a chain does not have, or not any more.
    pub(super) fn keep_only(&mut self, chain: &Chain) {
        self.events.retain(|event| chain.holds(event.id()) && event.id() > chain.cleared());
        self.count();
    }

    /// Drops what lies at or below a position.
    pub(super) fn keep_above(&mut self, position: EventId) {
        self.events.retain(|event| event.id() > position);
        self.count();
    }

    fn count(&mut self) {
        self.bytes = self.events.iter().map(Logged::bytes).sum();
    }

    pub(super) fn clear(&mut self) {
        self.events.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
pub(super) mod tests;
