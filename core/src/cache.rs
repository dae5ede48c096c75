//! A replica's cache of a log: its epoch history and its recent events. Pure: it neither reads nor waits, so that the
//! model checker runs the same code as the gateway.

mod ring;

use std::collections::VecDeque;
use std::sync::Arc;

pub use self::ring::{Ring, RingLimits};

use crate::log::{EpochHistory, Next, ReportedLoss};
use crate::names::EventId;

/// An event that a cache can hold.
pub trait CachedEvent {
    /// Its id in the log.
    fn id(&self) -> EventId;
    /// Bytes of memory that it counts for.
    fn bytes(&self) -> usize;
    /// Whether it is the same event, and not only one with the same id.
    fn is_same(&self, other: &Self) -> bool;
    /// The position of the last message before it, if presence events lie between.
    fn last_message(&self) -> Option<EventId>;
}

impl<T: CachedEvent> CachedEvent for Arc<T> {
    fn id(&self) -> EventId {
        T::id(self)
    }

    fn bytes(&self) -> usize {
        T::bytes(self)
    }

    fn is_same(&self, other: &Self) -> bool {
        T::is_same(self, other)
    }

    fn last_message(&self) -> Option<EventId> {
        T::last_message(self)
    }
}

/// The cache of one log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LogCache<E> {
    /// `None` before the first read.
    history: Option<EpochHistory>,
    ring: Ring<E>,
    /// During a read: the announcements that arrived since it began, to be applied after it. As many as the ring may
    /// hold.
    deferred: Option<VecDeque<E>>,
    /// More announcements than that arrived during the read.
    overflowed: bool,
    /// The end of the log before the last read, if that read left the ring empty. Announcements of the events above it
    /// may still arrive, and the ring continues with them.
    announced_to: Option<EventId>,
    /// The position up to which the log was cleared since the last read began.
    cleared_to: EventId,
    /// Events of the ring for which another event with the same id was announced. The log will tell which of the two it
    /// has.
    conflicts: Vec<E>,
    /// Ids under which the cache delivered an event that the log does not have: the last few.
    retracted: VecDeque<EventId>,
    /// How many ids were retracted in all.
    retractions: u64,
}

/// Retracted ids that are kept. If a subscriber has missed more of them, its gap begins at the lowest kept one.
const KEPT_RETRACTIONS: usize = 16;

/// The effect of an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnnouncementOutcome {
    /// It was the next event, and the ring has it now.
    Added,
    /// The cache had the event already, or needs no more of it.
    Duplicate,
    /// The log is being read; the announcement is applied after the read.
    Deferred,
    /// It was not the next event: the log has to be read.
    Unexpected,
    /// The ring had another event with this id: the log has to be read.
    Conflict,
}

/// What follows a position, as far as a cache can tell. A cache never decides that there is a gap.
#[derive(Debug)]
pub enum Lookup<E> {
    /// These events, in order; at least one.
    Events(Vec<E>),
    /// Nothing yet: the position is the end of the log.
    Nothing,
    /// Only the log can tell.
    Unknown,
}

impl<E: CachedEvent + Clone> LogCache<E> {
    /// A cache before its first read.
    pub fn new(limits: RingLimits) -> Self {
        Self {
            history: None,
            ring: Ring::new(limits),
            deferred: None,
            overflowed: false,
            announced_to: None,
            cleared_to: EventId::start_of(0),
            conflicts: Vec::new(),
            retracted: VecDeque::new(),
            retractions: 0,
        }
    }

    /// The end of the log, by the last read and the announcements since. `None` before the first read.
    pub fn end(&self) -> Option<EventId> {
        self.history().map(EpochHistory::end)
    }

    /// The history of the log, by the last read and the announcements since. `None` before the first read.
    pub fn history(&self) -> Option<&EpochHistory> {
        self.history.as_ref()
    }

    /// Whether this position is part of the history of the log, by the last read and the announcements since.
    pub fn holds(&self, position: EventId) -> bool {
        self.history().is_some_and(|history| history.holds(position))
    }

    /// The position after which the next read has to begin, so that it includes the log's entries for the last event of
    /// the ring and for all conflicts. `None` if there are none: then the newest entries are read.
    pub fn read_from(&self) -> Option<EventId> {
        let conflict = self.conflicts.iter().map(CachedEvent::id).min();
        conflict.or(self.ring.last_id()).map(EventId::before)
    }

    /// How many ids have been retracted so far.
    pub fn retractions(&self) -> u64 {
        self.retractions
    }

    /// The lowest id at or above `start` among those retracted after the first `retractions` ones.
    pub fn retracted_after(&self, retractions: u64, start: EventId) -> Option<EventId> {
        let unseen = usize::try_from(self.retractions - retractions).unwrap_or(usize::MAX);
        self.retracted.iter().rev().take(unseen).filter(|id| **id >= start).min().copied()
    }

    /// What follows a position: events of about `max_bytes` in all, nothing, or unknown.
    pub fn after(&self, position: EventId, reported: Option<ReportedLoss>, max_bytes: usize) -> Lookup<E> {
        let Some(history) = &self.history else { return Lookup::Unknown };
        match self.ring.after(history, position, reported, max_bytes) {
            Ok(events) => Lookup::Events(events),
            Err(Next::Nothing) => Lookup::Nothing,
            Err(Next::Event(_) | Next::Gap(_)) => Lookup::Unknown,
        }
    }

    /// The events at the end of the log that the ring has, newest first.
    pub fn newest(&self) -> impl Iterator<Item = &E> {
        let reaches_end = self.ring.last_id() == self.end();
        self.ring.newest_first().filter(move |_| reaches_end)
    }

    /// The size of the ring's events before the last one.
    pub fn older_bytes(&self) -> usize {
        self.ring.older_bytes()
    }

    /// Drops the ring's events before the last one. The last one stays, because the next read compares it with the log.
    pub fn drop_older(&mut self) {
        self.ring.drop_older();
    }

    /// Receives an announcement.
    pub fn receive(&mut self, event: E) -> AnnouncementOutcome {
        match &mut self.deferred {
            None => self.apply(event),
            Some(deferred) => {
                if deferred.len() < self.ring.limits().events {
                    deferred.push_back(event);
                } else {
                    self.overflowed = true;
                }
                AnnouncementOutcome::Deferred
            }
        }
    }

    /// Begins a read of the log. Announcements are deferred until it ends.
    pub fn begin_read(&mut self) {
        self.deferred = Some(VecDeque::new());
        self.cleared_to = EventId::start_of(0);
    }

    /// The log was cleared up to a position: no event up to there is delivered any more, and none is final.
    pub fn clear_to(&mut self, position: EventId) {
        self.ring.keep_above(position);
        self.reopen(position);
        self.cleared_to = self.cleared_to.max(position);
    }

    /// The log no longer has the final message with this id.
    pub fn reopen(&mut self, finished: EventId) {
        self.history.iter_mut().for_each(|history| history.reopen(finished));
    }

    /// Compares delivered events, the last one of the ring and the conflicts, with the entries that were read from
    /// [`Self::read_from`] on. Ids under which the log has another event are retracted: only a forged announcement can
    /// have such an id.
    pub fn compare(&mut self, history: &EpochHistory, entries: &[E]) {
        let conflicts = std::mem::take(&mut self.conflicts);
        let last = self.ring.last().cloned();
        let is_beyond_page = |id| entries.last().is_some_and(|entry| entry.id() < id);
        // If the log no longer has the entry of a conflict, nothing shows which of the two events it had: the id is
        // retracted. The last event of the ring is trusted in that case.
        let delivered = conflicts.into_iter().map(|event| (event, false)).chain(last.map(|event| (event, true)));
        for (event, is_trusted) in delivered {
            let id = event.id();
            if !history.holds(id) || id <= history.cleared() {
                continue;
            }
            if is_beyond_page(id) {
                self.ring.clear();
                self.conflicts.push(event);
                continue;
            }
            let found = entries.iter().find(|entry| entry.id() == id);
            if found.map_or(is_trusted, |entry| entry.is_same(&event)) {
                continue;
            }
            self.ring.clear();
            self.retractions += 1;
            self.retracted.push_back(id);
            if self.retracted.len() > KEPT_RETRACTIONS {
                self.retracted.pop_front();
            }
        }
    }

    /// Ends a read with its result: the whole history, and the entries that follow the last event of the ring (or the
    /// newest entries). Applies the deferred announcements. Returns whether another read is needed.
    pub fn end_read(&mut self, history: &EpochHistory, entries: Vec<E>) -> bool {
        self.adopt(history, entries);
        self.give_up_read() || !self.conflicts.is_empty()
    }

    /// Ends a read without a result. Applies the deferred announcements. Returns whether they require another read.
    pub fn give_up_read(&mut self) -> bool {
        let deferred = self.deferred.take().unwrap_or_default();
        let overflowed = std::mem::take(&mut self.overflowed);
        // If some were dropped, only events that the history is known to have are applied, and the log is read again.
        let mut again = overflowed;
        for event in deferred {
            if !overflowed || self.history().is_some_and(|history| history.holds(event.id())) {
                again |=
                    matches!(self.apply(event), AnnouncementOutcome::Unexpected | AnnouncementOutcome::Conflict);
            }
        }
        again
    }

    fn adopt(&mut self, history: &EpochHistory, entries: Vec<E>) {
        let end_before = self.end().unwrap_or(history.end());
        self.ring.keep_only(history);
        for event in entries.into_iter().filter(|event| event.id() > self.cleared_to) {
            if let Some(last) = self.ring.last_id() {
                if event.id() <= last {
                    continue;
                }
                if !follows(history, Some(last), event.id()) {
                    self.ring.clear();
                }
            }
            self.ring.push(event);
        }
        self.announced_to = Some(end_before).filter(|end| self.ring.last().is_none() && *end < history.end());
        let mut history = history.clone();
        history.reopen(self.cleared_to);
        self.history = Some(history);
    }

    /// Applies an announcement. An event that no read has shown is accepted only if it has the next id of the newest
    /// epoch.
    fn apply(&mut self, event: E) -> AnnouncementOutcome {
        let Some(history) = &mut self.history else { return AnnouncementOutcome::Duplicate };
        if history.holds(event.id()) {
            return match self.ring.event(event.id()) {
                Some(held) if held.is_same(&event) => AnnouncementOutcome::Duplicate,
                Some(held) => {
                    // Two different events must never be confused because they share an id: the next read decides
                    // which of them the log has.
                    if self.conflicts.len() < KEPT_RETRACTIONS {
                        self.conflicts.push(held.clone());
                    }
                    self.ring.clear();
                    AnnouncementOutcome::Conflict
                }
                // If the log retains nothing, a read shows only that there was an event. The announcement is then the
                // one copy of it.
                None if self.conflicts.is_empty()
                    && event.id() > history.cleared().max(self.cleared_to)
                    && (follows(history, self.ring.last_id(), event.id())
                        || self.ring.last().is_none() && self.announced_to.is_some_and(|end| event.id() > end)) =>
                {
                    self.ring.push(event);
                    self.announced_to = None;
                    AnnouncementOutcome::Added
                }
                None => AnnouncementOutcome::Duplicate,
            };
        }
        if event.id() != history.next_id() {
            return AnnouncementOutcome::Unexpected;
        }
        history.extend();
        if !follows(history, self.ring.last_id(), event.id()) {
            self.ring.clear();
        }
        self.ring.push(event);
        self.announced_to = None;
        AnnouncementOutcome::Added
    }
}

/// Whether an event can be added to a ring after its last event without leaving a hole. An empty ring accepts only the
/// last event of the log.
fn follows(history: &EpochHistory, last: Option<EventId>, id: EventId) -> bool {
    last.map_or(id == history.end(), |last| history.next_after(last, &[id][..], None) == Next::Event(id))
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
