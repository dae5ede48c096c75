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
    /// More than that was announced meanwhile.
    overflowed: bool,
    /// Where the log ended before the last read, if that left nothing at hand: announcements of what lies above may still
    /// come, and go on from there.
    heard_to: Option<EventId>,
    /// Up to where the log was emptied while it is being read.
    emptied: EventId,
    /// Events that were at hand when others of their ids were announced: the log will tell which of the two it has.
    suspects: Vec<E>,
    /// Ids under which something was given out that the log does not have; the last few, and how many there were.
    recalled: VecDeque<EventId>,
    recalls: u64,
}

/// Recalled ids that are remembered; who is further behind is told from the oldest of them.
const RECALLS: usize = 16;

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
        Self {
            chain: None,
            ring: Ring::new(limits),
            waiting: None,
            overflowed: false,
            heard_to: None,
            emptied: EventId::start_of(0),
            suspects: Vec::new(),
            recalled: VecDeque::new(),
            recalls: 0,
        }
    }

    /// Where the log ends, as far as it has been read.
    pub(super) fn end(&self) -> Option<EventId> {
        self.chain().map(Chain::end)
    }

    /// The log's history, as far as it has been read.
    pub(super) fn chain(&self) -> Option<&Chain> {
        self.chain.as_ref()
    }

    /// After which position to read: the log's entry at the last event at hand, or at a suspect, is compared with it.
    pub(super) fn read_from(&self) -> Option<EventId> {
        let suspect = self.suspects.iter().map(Logged::id).min();
        suspect.or(self.ring.last()).map(EventId::before)
    }

    /// How many ids were recalled so far.
    pub(super) fn recalls(&self) -> u64 {
        self.recalls
    }

    /// The lowest id, from `start` on, that was recalled after so many.
    pub(super) fn recalled_after(&self, recalls: u64, start: EventId) -> Option<EventId> {
        let unseen = usize::try_from(self.recalls - recalls).unwrap_or(usize::MAX);
        self.recalled.iter().rev().take(unseen).filter(|id| **id >= start).min().copied()
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
                if waiting.len() < self.ring.limits().events {
                    waiting.push_back(event);
                } else {
                    self.overflowed = true;
                }
                Taken::Waiting
            }
        }
    }

    /// From now on announcements wait, since the log is being read.
    pub(super) fn begin_read(&mut self) {
        self.waiting = Some(VecDeque::new());
        self.emptied = EventId::start_of(0);
    }

    /// The log was emptied up to there: nothing of that is given out any more.
    pub(super) fn empty(&mut self, position: EventId) {
        self.ring.keep_above(position);
        self.emptied = self.emptied.max(position);
    }

    /// Compares what was given out with what was read from [`Self::read_from`]. Only a forger announces what the log does
    /// not have under an id that the log gives out.
    pub(super) fn compare(&mut self, chain: &Chain, entries: &[E]) {
        let suspects = std::mem::take(&mut self.suspects);
        let last = self.ring.back().cloned();
        let is_beyond = |id| entries.last().is_some_and(|entry| entry.id() < id);
        // Of a suspect that the log no longer has, nobody can tell.
        let given = suspects.into_iter().map(|event| (event, false)).chain(last.map(|event| (event, true)));
        for (event, believed) in given {
            let id = event.id();
            if !chain.holds(id) || id <= chain.cleared() {
                continue;
            }
            if is_beyond(id) {
                self.ring.clear();
                self.suspects.push(event);
                continue;
            }
            let found = entries.iter().find(|entry| entry.id() == id);
            if found.map_or(believed, |entry| entry.is_same(&event)) {
                continue;
            }
            self.ring.clear();
            self.recalls += 1;
            self.recalled.push_back(id);
            if self.recalled.len() > RECALLS {
                self.recalled.pop_front();
            }
        }
    }

    /// The read is over: takes the whole chain, the entries that follow the last one at hand (or the newest ones), and
    /// what waited. Says whether that calls for another read.
    pub(super) fn end_read(&mut self, chain: &Chain, entries: Vec<E>) -> bool {
        self.adopt(chain, entries);
        self.give_up_read() || !self.suspects.is_empty()
    }

    /// The read is over without a result. Says whether what waited calls for another one.
    pub(super) fn give_up_read(&mut self) -> bool {
        let waiting = self.waiting.take().unwrap_or_default();
        let overflowed = std::mem::take(&mut self.overflowed);
        // Where some are missing, only what the log is known to have is taken, and it is read again.
        let mut again = overflowed;
        for event in waiting {
            if !overflowed || self.chain().is_some_and(|chain| chain.holds(event.id())) {
                again |= matches!(self.take(event), Taken::Unexpected | Taken::Conflicting);
            }
        }
        again
    }

    fn adopt(&mut self, chain: &Chain, entries: Vec<E>) {
        let before = self.end().unwrap_or(chain.end());
        self.ring.keep_only(chain);
        for event in entries.into_iter().filter(|event| event.id() > self.emptied) {
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
        self.heard_to = Some(before).filter(|before| self.ring.last().is_none() && *before < chain.end());
        self.chain = Some(chain.clone());
    }

    /// Takes an announcement unread only if it is the next offset of the newest epoch that has been read.
    fn take(&mut self, event: E) -> Taken {
        let Some(chain) = &mut self.chain else { return Taken::Held };
        if chain.holds(event.id()) {
            return match self.ring.event(event.id()) {
                Some(held) if held.is_same(&event) => Taken::Held,
                Some(held) => {
                    // Two different events must never pass for one because they share an id: the log decides, for all
                    // of them.
                    if self.suspects.len() < RECALLS {
                        self.suspects.push(held.clone());
                    }
                    self.ring.clear();
                    Taken::Conflicting
                }
                // Of a room whose log keeps nothing, a read shows that there was an event, and only this has it.
                None if self.suspects.is_empty()
                    && event.id() > chain.cleared().max(self.emptied)
                    && (follows(chain, self.ring.last(), event.id())
                        || self.ring.last().is_none() && self.heard_to.is_some_and(|end| event.id() > end)) =>
                {
                    self.ring.push(event);
                    self.heard_to = None;
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
        self.heard_to = None;
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
