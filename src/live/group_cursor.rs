//! What follows in one room for many subscribers who are all at the same position: asked once, given to all.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use super::LiveEvent;
use super::topic::{FIRST_PAGE_EVENTS, LiveTopic, LogReply};
use crate::cache::Lookup;
use crate::names::EventId;

/// Leads subscribers who are level: at one position, with nothing of their own to be told.
///
/// It never tells a gap. Where there may be one, each subscriber has to read_log for itself, since it depends on what that one
/// was told before.
pub struct GroupCursor {
    topic: Arc<LiveTopic>,
    changes: watch::Receiver<u64>,
    position: EventId,
    retractions: u64,
    page: u16,
}

/// What follows for all.
#[derive(Debug)]
pub enum GroupPoll {
    /// These events, in order. IdempotencyKey they are [gone past](GroupCursor::advance), all are to get them.
    Events(Vec<Arc<LiveEvent>>),
    /// Nothing yet.
    Nothing,
    /// The log has to be asked.
    NeedsLog,
    /// The log can't be asked before that.
    RetryAt(Instant),
    /// Each has to read_log for itself.
    Diverged,
}

impl GroupCursor {
    pub(super) fn new(topic: Arc<LiveTopic>, position: EventId, retractions: u64) -> Self {
        let mut changes = topic.changes();
        // What came between the position and now is news, too.
        changes.mark_changed();
        Self { topic, changes, position, retractions, page: FIRST_PAGE_EVENTS }
    }

    /// Where all of them are.
    pub fn position(&self) -> EventId {
        self.position
    }

    /// Whether a subscriber has been told more than those who are led.
    pub fn is_behind(&self, place: &CaughtUp) -> bool {
        self.position < place.position || self.retractions < place.retractions
    }

    /// Returns when there may be something new.
    pub async fn changed(&mut self) {
        // The sender is the room's own, so the channel can't close.
        let _ = self.changes.changed().await;
    }

    /// What follows, as far as this replica can say at once.
    pub fn poll(&mut self) -> GroupPoll {
        self.changes.mark_unchanged();
        if self.topic.retractions() != self.retractions {
            return GroupPoll::Diverged;
        }
        // With nothing reported, events and nothing are the same for everybody.
        match self.topic.after(self.position, None) {
            Lookup::Events(events) => GroupPoll::from_events(events),
            Lookup::Nothing => GroupPoll::Nothing,
            Lookup::Unknown => GroupPoll::NeedsLog,
        }
    }

    /// What follows, from the log: one read for all.
    pub async fn read_log(&mut self) -> GroupPoll {
        match self.topic.read_log(self.position, None, &mut self.page).await {
            Ok(LogReply::Events(events)) => GroupPoll::from_events(events),
            Ok(LogReply::Nothing) => GroupPoll::Nothing,
            Ok(LogReply::Gap(_)) => GroupPoll::Diverged,
            Err(error) => GroupPoll::RetryAt(self.topic.retry_at(&error)),
        }
    }

    /// The events between a subscriber's position and that of all, if they are at hand.
    pub fn catch_up(&self, place: &CaughtUp) -> Option<Vec<Arc<LiveEvent>>> {
        let mut position = place.position;
        let mut missed = Vec::new();
        while place.retractions == self.retractions && position < self.position {
            let Lookup::Events(events) = self.topic.after(position, None) else { return None };
            missed.extend(events.into_iter().take_while(|event| event.id() <= self.position));
            position = missed.last().filter(|event| event.id() > position)?.id();
        }
        (place.retractions == self.retractions && position == self.position).then_some(missed)
    }

    /// Moves behind the events that are ahead.
    pub fn advance(&mut self, events: &[Arc<LiveEvent>]) {
        self.position = events.last().map_or(self.position, |last| last.id());
    }
}

impl GroupPoll {
    fn from_events(events: Vec<Arc<LiveEvent>>) -> Self {
        if events.is_empty() { Self::Nothing } else { Self::Events(events) }
    }
}

/// The place of a subscriber that is level with its room, as far as this replica has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaughtUp {
    pub(super) position: EventId,
    pub(super) retractions: u64,
}
