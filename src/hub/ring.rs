//! The recent events of a room, shared by all who read it there.

use std::collections::VecDeque;

use super::mirror::Logged;
use crate::follow::{Chain, Retained};
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

    pub(super) fn last(&self) -> Option<EventId> {
        self.events.back().map(Logged::id)
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

    /// Drops what a chain does not have.
    pub(super) fn keep_only(&mut self, chain: &Chain) {
        self.events.retain(|event| chain.holds(event.id()));
        self.bytes = self.events.iter().map(Logged::bytes).sum();
    }

    pub(super) fn clear(&mut self) {
        self.events.clear();
        self.bytes = 0;
    }
}
