//! What follows in one room for many subscribers who are all at the same position: asked once, given to all.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use super::mirror::Followed;
use super::room::{FIRST_PAGE_EVENTS, Found, Room};
use super::{Encoded, Hub};
use crate::room::EventId;

/// Leads subscribers who are level: at one position, with nothing of their own to be told.
///
/// It never tells a gap. Where there may be one, each subscriber has to ask for itself, since it depends on what that one
/// was told before.
pub struct Lead {
    hub: Arc<Hub>,
    room: Arc<Room>,
    changes: watch::Receiver<u64>,
    position: EventId,
    recalls: u64,
    page: u16,
}

/// What follows for all.
#[derive(Debug)]
pub enum Ahead {
    /// These events, in order. Once they are [gone past](Lead::go_past), all are to get them.
    Events(Vec<Arc<Encoded>>),
    /// Nothing yet.
    Nothing,
    /// The log has to be asked.
    Unsure,
    /// The log can't be asked before that.
    Later(Instant),
    /// Each has to ask for itself.
    Parted,
}

impl Lead {
    pub(super) fn new(hub: Arc<Hub>, room: Arc<Room>, position: EventId, recalls: u64) -> Self {
        let mut changes = room.changes();
        // What came between the position and now is news, too.
        changes.mark_changed();
        Self { hub, room, changes, position, recalls, page: FIRST_PAGE_EVENTS }
    }

    /// Where all of them are.
    pub fn position(&self) -> EventId {
        self.position
    }

    /// Whether a subscriber has been told more than those who are led.
    pub fn is_behind(&self, place: &Level) -> bool {
        self.position < place.position || self.recalls < place.recalls
    }

    /// Returns when there may be something new.
    pub async fn changed(&mut self) {
        // The sender is the room's own, so the channel can't close.
        let _ = self.changes.changed().await;
    }

    /// What follows, as far as this replica can say at once.
    pub fn look(&mut self) -> Ahead {
        self.changes.mark_unchanged();
        if self.room.recalls() != self.recalls {
            return Ahead::Parted;
        }
        // With nothing settled, events and nothing are the same for everybody.
        match self.room.follow(self.position, None) {
            Followed::Events(events) => Ahead::of(events),
            Followed::Nothing => Ahead::Nothing,
            Followed::Unsure => Ahead::Unsure,
        }
    }

    /// What follows, from the log: one read for all.
    pub async fn ask(&mut self) -> Ahead {
        match self.room.ask_log(&self.hub, self.position, None, &mut self.page).await {
            Ok(Found::Events(events)) => Ahead::of(events),
            Ok(Found::Nothing) => Ahead::Nothing,
            Ok(Found::Gap(_)) => Ahead::Parted,
            Err(error) => Ahead::Later(self.room.ask_again_at(&error)),
        }
    }

    /// The events between a subscriber's position and that of all, if they are at hand.
    pub fn catch_up(&self, place: &Level) -> Option<Vec<Arc<Encoded>>> {
        let mut position = place.position;
        let mut missed = Vec::new();
        while place.recalls == self.recalls && position < self.position {
            let Followed::Events(events) = self.room.follow(position, None) else { return None };
            missed.extend(events.into_iter().take_while(|event| event.id() <= self.position));
            position = missed.last().filter(|event| event.id() > position)?.id();
        }
        (place.recalls == self.recalls && position == self.position).then_some(missed)
    }

    /// Moves behind the events that are ahead.
    pub fn go_past(&mut self, events: &[Arc<Encoded>]) {
        self.position = events.last().map_or(self.position, |last| last.id());
    }
}

impl Ahead {
    fn of(events: Vec<Arc<Encoded>>) -> Self {
        if events.is_empty() { Self::Nothing } else { Self::Events(events) }
    }
}

/// The place of a subscriber that is level with its room, as far as this replica has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    pub(super) position: EventId,
    pub(super) recalls: u64,
}
