//! A replica's copy of a room's log: its history and its recent events. Pure: it neither reads nor waits, so that the model
//! checker can drive the very code that runs.

mod ring;

use std::collections::VecDeque;
use std::sync::Arc;

pub use self::ring::{Ring, RingLimits};

use crate::log::{EpochHistory, Next, ReportedLoss, next};
use crate::names::EventId;

/// An event as the copy needs to know it.
pub trait CachedEvent {
    /// Where it stands in the log.
    fn id(&self) -> EventId;
    /// What it costs to keep.
    fn bytes(&self) -> usize;
    /// Whether it is the same event, not only of the same id.
    fn is_same(&self, other: &Self) -> bool;
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
}

/// The copy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LogCache<E> {
    /// None before the first read.
    history: Option<EpochHistory>,
    ring: Ring<E>,
    /// What is announced while the log is being read, to be taken after it; bounded like the ring.
    deferred: Option<VecDeque<E>>,
    /// More than that was announced meanwhile.
    overflowed: bool,
    /// Where the log ended before the last read, if that left nothing at hand: announcements of what lies above may still
    /// come, and go on from there.
    announced_to: Option<EventId>,
    /// Up to where the log was emptied while it is being read.
    emptied: EventId,
    /// Events that were at hand when others of their ids were announced: the log will tell which of the two it has.
    conflicts: Vec<E>,
    /// Ids under which something was given out that the log does not have; the last few, and how many there were.
    retracted: VecDeque<EventId>,
    retractions: u64,
}

/// Recalled ids that are remembered; who is further behind is told from the oldest of them.
const KEPT_RETRACTIONS: usize = 16;

/// What became of an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnnouncementOutcome {
    /// It was the next one.
    Added,
    /// The copy had it.
    Duplicate,
    /// The log is being read; it is taken after that.
    Deferred,
    /// It was not the next one.
    Unexpected,
    /// The ring held another event of this id.
    Conflict,
}

/// What follows a position as far as the copy can say. It never says that there is a gap.
#[derive(Debug)]
pub enum Lookup<E> {
    Events(Vec<E>),
    Nothing,
    /// Only the log can tell.
    Unknown,
}

impl<E: CachedEvent + Clone> LogCache<E> {
    pub fn new(limits: RingLimits) -> Self {
        Self {
            history: None,
            ring: Ring::new(limits),
            deferred: None,
            overflowed: false,
            announced_to: None,
            emptied: EventId::start_of(0),
            conflicts: Vec::new(),
            retracted: VecDeque::new(),
            retractions: 0,
        }
    }

    /// Where the log ends, as far as it has been read.
    pub fn end(&self) -> Option<EventId> {
        self.history().map(EpochHistory::end)
    }

    /// The log's history, as far as it has been read.
    pub fn history(&self) -> Option<&EpochHistory> {
        self.history.as_ref()
    }

    /// After which position to read: the log's entry at the last event at hand, or at a conflict, is compared with it.
    pub fn read_from(&self) -> Option<EventId> {
        let conflict = self.conflicts.iter().map(CachedEvent::id).min();
        conflict.or(self.ring.last()).map(EventId::before)
    }

    /// How many ids were retracted so far.
    pub fn retractions(&self) -> u64 {
        self.retractions
    }

    /// The lowest id, from `start` on, that was retracted after so many.
    pub fn retracted_after(&self, retractions: u64, start: EventId) -> Option<EventId> {
        let unseen = usize::try_from(self.retractions - retractions).unwrap_or(usize::MAX);
        self.retracted.iter().rev().take(unseen).filter(|id| **id >= start).min().copied()
    }

    /// What follows a position, up to about so many bytes. An event and nothing stand; anything else is for the log to
    /// say.
    pub fn after(&self, position: EventId, reported: Option<ReportedLoss>, most_bytes: usize) -> Lookup<E> {
        let Some(history) = &self.history else { return Lookup::Unknown };
        match self.ring.after(history, position, reported, most_bytes) {
            Ok(events) => Lookup::Events(events),
            Err(Next::Nothing) => Lookup::Nothing,
            Err(Next::Event(_) | Next::Gap(_)) => Lookup::Unknown,
        }
    }

    /// An announcement.
    pub fn announce(&mut self, event: E) -> AnnouncementOutcome {
        match &mut self.deferred {
            None => self.take(event),
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

    /// From now on announcements wait, since the log is being read.
    pub fn begin_read(&mut self) {
        self.deferred = Some(VecDeque::new());
        self.emptied = EventId::start_of(0);
    }

    /// The log was emptied up to there: nothing of that is given out any more.
    pub fn empty(&mut self, position: EventId) {
        self.ring.keep_above(position);
        self.emptied = self.emptied.max(position);
    }

    /// Compares what was given out with what was read from [`Self::read_from`]. Only a forger announces what the log does
    /// not have under an id that the log gives out.
    pub fn compare(&mut self, history: &EpochHistory, entries: &[E]) {
        let conflicts = std::mem::take(&mut self.conflicts);
        let last = self.ring.back().cloned();
        let is_beyond = |id| entries.last().is_some_and(|entry| entry.id() < id);
        // Of a conflict that the log no longer has, nobody can tell.
        let given = conflicts.into_iter().map(|event| (event, false)).chain(last.map(|event| (event, true)));
        for (event, believed) in given {
            let id = event.id();
            if !history.holds(id) || id <= history.cleared() {
                continue;
            }
            if is_beyond(id) {
                self.ring.clear();
                self.conflicts.push(event);
                continue;
            }
            let found = entries.iter().find(|entry| entry.id() == id);
            if found.map_or(believed, |entry| entry.is_same(&event)) {
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

    /// The read is over: takes the whole history, the entries that after the last one at hand (or the newest ones), and
    /// what waited. Says whether that calls for another read.
    pub fn end_read(&mut self, history: &EpochHistory, entries: Vec<E>) -> bool {
        self.adopt(history, entries);
        self.give_up_read() || !self.conflicts.is_empty()
    }

    /// The read is over without a result. Says whether what waited calls for another one.
    pub fn give_up_read(&mut self) -> bool {
        let deferred = self.deferred.take().unwrap_or_default();
        let overflowed = std::mem::take(&mut self.overflowed);
        // Where some are missing, only what the log is known to have is taken, and it is read again.
        let mut again = overflowed;
        for event in deferred {
            if !overflowed || self.history().is_some_and(|history| history.holds(event.id())) {
                again |=
                    matches!(self.take(event), AnnouncementOutcome::Unexpected | AnnouncementOutcome::Conflict);
            }
        }
        again
    }

    fn adopt(&mut self, history: &EpochHistory, entries: Vec<E>) {
        let before = self.end().unwrap_or(history.end());
        self.ring.keep_only(history);
        for event in entries.into_iter().filter(|event| event.id() > self.emptied) {
            if let Some(last) = self.ring.last() {
                if event.id() <= last {
                    continue;
                }
                if !follows(history, Some(last), event.id()) {
                    self.ring.clear();
                }
            }
            self.ring.push(event);
        }
        self.announced_to = Some(before).filter(|before| self.ring.last().is_none() && *before < history.end());
        self.history = Some(history.clone());
    }

    /// Takes an announcement unread only if it is the next offset of the newest epoch that has been read.
    fn take(&mut self, event: E) -> AnnouncementOutcome {
        let Some(history) = &mut self.history else { return AnnouncementOutcome::Duplicate };
        if history.holds(event.id()) {
            return match self.ring.event(event.id()) {
                Some(held) if held.is_same(&event) => AnnouncementOutcome::Duplicate,
                Some(held) => {
                    // Two different events must never pass for one because they share an id: the log decides, for all
                    // of them.
                    if self.conflicts.len() < KEPT_RETRACTIONS {
                        self.conflicts.push(held.clone());
                    }
                    self.ring.clear();
                    AnnouncementOutcome::Conflict
                }
                // Of a room whose log keeps nothing, a read shows that there was an event, and only this has it.
                None if self.conflicts.is_empty()
                    && event.id() > history.cleared().max(self.emptied)
                    && (follows(history, self.ring.last(), event.id())
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
        if !follows(history, self.ring.last(), event.id()) {
            self.ring.clear();
        }
        self.ring.push(event);
        self.announced_to = None;
        AnnouncementOutcome::Added
    }
}

/// Whether an event can go into a ring after its last one, without a hole. Into an empty one, only the log's last.
fn follows(history: &EpochHistory, last: Option<EventId>, id: EventId) -> bool {
    last.map_or(id == history.end(), |last| next(history, &[id][..], last, None) == Next::Event(id))
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
