//! A cursor that many subscribers of one topic share while they are all at the same position: what follows is asked
//! once and delivered to all of them.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use super::LiveEvent;
use super::topic::{Following, LiveTopic};
use crate::cache::Lookup;
use crate::log::LogView;
use crate::names::{EventId, WatchBase};

/// The cursor of a group of subscribers that have all caught up to one position of a topic.
///
/// It never yields a gap. If there may be one, every subscriber has to poll for itself, since a gap depends on what was
/// reported to that subscriber before.
pub struct GroupCursor {
    topic: Arc<LiveTopic>,
    changes: watch::Receiver<u64>,
    position: EventId,
    retractions: u64,
    /// The number of the mirror whose state the members have; 0 in a room.
    mirror: u64,
}

/// What follows the position of a group.
#[derive(Debug)]
pub enum GroupPoll {
    /// These events, in order. The caller delivers them to every member of the group, and then calls
    /// [`GroupCursor::advance`].
    Events(Vec<Arc<LiveEvent>>),
    /// Nothing yet.
    Nothing,
    /// Only the log can tell: [`GroupCursor::read_log`] asks it.
    NeedsLog,
    /// The log could not be read, and is not to be read again before this time.
    RetryAt(Instant),
    /// The group may have got something that the log does not have, or all that there will be: every subscriber has to poll
    /// for itself.
    PollEach,
}

impl GroupCursor {
    pub(super) fn new(topic: Arc<LiveTopic>, state: CaughtUp) -> Self {
        let mut changes = topic.changes();
        // The topic may have changed after the position was determined.
        changes.mark_changed();
        let CaughtUp { position, retractions, mirror } = state;
        Self { topic, changes, position, retractions, mirror }
    }

    /// The position of the group.
    pub fn position(&self) -> EventId {
        self.position
    }

    /// What the members have of a hash. None in a room.
    pub fn base(&self) -> Option<WatchBase> {
        self.topic.watched().map(|_| WatchBase::Mirror(self.mirror))
    }

    /// Whether a subscriber has received more than the group.
    pub fn is_behind(&self, subscriber: &CaughtUp) -> bool {
        let has_newer_state = self.mirror != subscriber.mirror && subscriber.mirror == self.topic.mirror();
        self.position < subscriber.position || self.retractions < subscriber.retractions || has_newer_state
    }

    /// Returns when the topic may have changed.
    pub async fn changed(&mut self) {
        // The topic owns the sender, so the channel can't close.
        let _ = self.changes.changed().await;
    }

    /// What follows, as far as the cache can tell.
    pub fn poll(&mut self) -> GroupPoll {
        self.changes.mark_unchanged();
        let is_finished = self.topic.is_finished_at(self.position, None);
        if is_finished || self.topic.retractions() != self.retractions || self.topic.mirror() != self.mirror {
            return GroupPoll::PollEach;
        }
        // Whether an event or nothing follows does not depend on what was reported to a subscriber.
        match self.topic.after(self.position, None) {
            Lookup::Events(events) => GroupPoll::from_events(events),
            Lookup::Nothing => GroupPoll::Nothing,
            Lookup::Unknown => GroupPoll::NeedsLog,
        }
    }

    /// What follows, by one read of the log for the whole group. `view` is what the group's members get.
    pub async fn read_log(&mut self, view: LogView) -> GroupPoll {
        match self.topic.read_log(self.position, None, view).await.map(|(following, _)| following) {
            Ok(Following::Events(events)) => GroupPoll::from_events(events),
            Ok(Following::NothingUpTo(position)) => {
                self.position = position;
                if self.topic.is_finished_at(position, None) { GroupPoll::PollEach } else { GroupPoll::Nothing }
            }
            Ok(Following::Gap(_)) => GroupPoll::PollEach,
            Err(error) => GroupPoll::RetryAt(self.topic.retry_at(&error)),
        }
    }

    /// The events between a subscriber's position and the group's. `None` if the cache lacks some of them, if the
    /// subscriber is ahead of the group, or if the two have handled different retractions.
    pub fn catch_up(&self, subscriber: &CaughtUp) -> Option<Vec<Arc<LiveEvent>>> {
        if subscriber.mirror != self.mirror {
            return None;
        }
        let mut position = subscriber.position;
        let mut missed = Vec::new();
        while subscriber.retractions == self.retractions && position < self.position {
            let Lookup::Events(events) = self.topic.after(position, None) else { return None };
            missed.extend(events.into_iter().take_while(|event| event.id() <= self.position));
            position = missed.last().filter(|event| event.id() > position)?.id();
        }
        (subscriber.retractions == self.retractions && position == self.position).then_some(missed)
    }

    /// Moves to the position after these events.
    pub fn advance(&mut self, events: &[Arc<LiveEvent>]) {
        self.position = events.last().map_or(self.position, |last| last.id());
    }
}

impl GroupPoll {
    fn from_events(events: Vec<Arc<LiveEvent>>) -> Self {
        if events.is_empty() { Self::Nothing } else { Self::Events(events) }
    }
}

/// The state of a subscriber of one topic that has received all there is, as far as this replica has read the log.
/// Equal states can share a group cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaughtUp {
    pub(super) position: EventId,
    pub(super) retractions: u64,
    /// The number of the mirror whose state it has; 0 in a room.
    pub(super) mirror: u64,
}
