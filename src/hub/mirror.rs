//! A replica's copy of a room's log: its chain and its recent events. Pure: it neither reads nor waits, so that the model
//! checker can drive the very code that runs.

use std::collections::VecDeque;

use super::ring::{Limits, Ring};
use crate::follow::{Chain, Next, Settled, next};
use crate::room::EventId;

/// An event as the copy needs to know it.
pub(super) trait Logged: Clone {
    /// Where it stands in the log.
    fn id(&self) -> EventId;
    /// What it costs to keep.
    fn bytes(&self) -> usize;
    /// Whether it is the same event, not only of the same id.
    fn is_same(&self, other: &Self) -> bool;
}

/// The copy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Mirror<E> {
    /// None before the first read.
    chain: Option<Chain>,
    ring: Ring<E>,
    /// What is announced while the log is being read, to be taken after it; bounded like the ring.
    waiting: Option<VecDeque<E>>,
}

/// What became of an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It was the next one.
    Added,
    /// The copy had it.
    Held,
    /// The log is being read; it is taken after that.
    Waiting,
    /// It was not the next one.
    Unexpected,
    /// The ring held another event of this id.
    Conflicting,
}

/// What follows a position as far as the copy can say. It never says that there is a gap.
#[derive(Debug)]
pub(super) enum Followed<E> {
    Events(Vec<E>),
    Nothing,
    /// Only the log can tell.
    Unsure,
}

impl<E: Logged> Mirror<E> {
    pub(super) fn new(limits: Limits) -> Self {
        Self { chain: None, ring: Ring::new(limits), waiting: None }
    }

    /// Where the log ends, as far as it has been read.
    pub(super) fn end(&self) -> Option<EventId> {
        self.chain().map(Chain::end)
    }

    /// The log's history, as far as it has been read.
    pub(super) fn chain(&self) -> Option<&Chain> {
        self.chain.as_ref()
    }

    /// The last event that is at hand: a read goes on from there.
    pub(super) fn last(&self) -> Option<EventId> {
        self.ring.last()
    }

    /// What follows a position, up to about so many bytes. An event and nothing stand; anything else is for the log to
    /// say.
    pub(super) fn follow(&self, position: EventId, settled: Option<Settled>, most_bytes: usize) -> Followed<E> {
        let Some(chain) = &self.chain else { return Followed::Unsure };
        match self.ring.follow(chain, position, settled, most_bytes) {
            Ok(events) => Followed::Events(events),
            Err(Next::Nothing) => Followed::Nothing,
            Err(Next::Event(_) | Next::Gap(_)) => Followed::Unsure,
        }
    }

    /// An announcement.
    pub(super) fn hear(&mut self, event: E) -> Taken {
        match &mut self.waiting {
            None => self.take(event),
            Some(waiting) => {
                // Beyond the limit it may be forgotten: what follows will not be the next one, and be read.
                if waiting.len() < self.ring.limits().events {
                    waiting.push_back(event);
                }
                Taken::Waiting
            }
        }
    }

    /// From now on announcements wait, since the log is being read.
    pub(super) fn begin_read(&mut self) {
        self.waiting = Some(VecDeque::new());
    }

    /// The read is over: takes the whole chain, the entries that follow the last one at hand (or the newest ones), and
    /// what waited. Says whether that calls for another read.
    pub(super) fn end_read(&mut self, chain: &Chain, entries: Vec<E>) -> bool {
        self.adopt(chain, entries);
        self.give_up_read()
    }

    /// The read is over without a result. Says whether what waited calls for another one.
    pub(super) fn give_up_read(&mut self) -> bool {
        let waiting = self.waiting.take().unwrap_or_default();
        let taken: Vec<_> = waiting.into_iter().map(|event| self.take(event)).collect();
        taken.iter().any(|taken| matches!(taken, Taken::Unexpected | Taken::Conflicting))
    }

    fn adopt(&mut self, chain: &Chain, entries: Vec<E>) {
        self.ring.keep_only(chain);
        for event in entries {
            if let Some(last) = self.ring.last() {
                if event.id() <= last {
                    continue;
                }
                if !follows(chain, Some(last), event.id()) {
                    self.ring.clear();
                }
            }
            self.ring.push(event);
        }
        self.chain = Some(chain.clone());
    }

    /// Takes an announcement unread only if it is the next offset of the newest epoch that has been read.
    fn take(&mut self, event: E) -> Taken {
        let Some(chain) = &mut self.chain else { return Taken::Held };
        if chain.holds(event.id()) {
            return match self.ring.event(event.id()) {
                Some(held) if held.is_same(&event) => Taken::Held,
                Some(_) => {
                    // Two different events must never pass for one because they share an id: the log decides, for all
                    // of them.
                    self.ring.clear();
                    Taken::Conflicting
                }
                // Of a room whose log keeps nothing, a read shows that there was an event, and only this has it.
                None if event.id() > chain.cleared() && follows(chain, self.ring.last(), event.id()) => {
                    self.ring.push(event);
                    Taken::Added
                }
                None => Taken::Held,
            };
        }
        if event.id() != chain.upcoming() {
            return Taken::Unexpected;
        }
        chain.extend();
        if !follows(chain, self.ring.last(), event.id()) {
            self.ring.clear();
        }
        self.ring.push(event);
        Taken::Added
    }
}

/// Whether an event can go into a ring after its last one, without a hole. Into an empty one, only the log's last.
fn follows(chain: &Chain, last: Option<EventId>, id: EventId) -> bool {
    last.map_or(id == chain.end(), |last| next(chain, &[id][..], last, None) == Next::Event(id))
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
