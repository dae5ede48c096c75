//! The recent events of a room, shared by all who read it there.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Encoded, HubSettings};
use crate::follow::{Chain, Retained};
use crate::room::EventId;

/// Events in the order of their ids, without holes, bounded in number and in bytes.
pub(super) struct Ring {
    events: VecDeque<Arc<Encoded>>,
    bytes: usize,
    limits: HubSettings,
}

impl Retained for Ring {
    fn first_after(&self, position: EventId) -> Option<EventId> {
        self.events.get(self.place_after(position)).map(|event| event.id())
    }
}

impl Ring {
    pub(super) fn new(limits: HubSettings) -> Self {
        Self { events: VecDeque::new(), bytes: 0, limits }
    }

    pub(super) fn last(&self) -> Option<EventId> {
        self.events.back().map(|event| event.id())
    }

    pub(super) fn event(&self, id: EventId) -> Option<&Arc<Encoded>> {
        let at = self.events.partition_point(|event| event.id() < id);
        self.events.get(at).filter(|event| event.id() == id)
    }

    /// Adds the event that follows the last one.
    pub(super) fn push(&mut self, event: Arc<Encoded>) {
        self.bytes += cost(&event);
        self.events.push_back(event);
        while self.events.len() > self.limits.ring_events.max(1)
            || (self.bytes > self.limits.ring_bytes && self.events.len() > 1)
        {
            self.bytes -= self.events.pop_front().map_or(0, |event| cost(&event));
        }
    }

    /// Drops what a chain does not have.
    pub(super) fn keep_only(&mut self, chain: &Chain) {
        self.events.retain(|event| chain.holds(event.id()));
        self.bytes = self.events.iter().map(cost).sum();
    }

    pub(super) fn clear(&mut self) {
        self.events.clear();
        self.bytes = 0;
    }

    fn place_after(&self, position: EventId) -> usize {
        self.events.partition_point(|event| event.id() <= position)
    }
}

fn cost(event: &Arc<Encoded>) -> usize {
    // The block, and about as much again for the event that it was made from.
    2 * event.block().len()
}
