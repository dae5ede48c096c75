//! A subscriber: a position in each of its rooms, and the question what follows. Live delivery, resume and catching up
//! are this one question; it is answered from the ring if that can be, else from the log.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::select_all;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::mirror::Followed;
use super::room::{FIRST_PAGE_EVENTS, Found, Seat};
use super::{Encoded, Hub, Lead, Level};
use crate::broker::{BrokerError, Range};
use crate::follow::{Gap, GapReason, Settled};
use crate::room::{EventId, RoomName};

/// How long an announcement may be on its way after its event was appended.
const ON_THE_WAY: Duration = Duration::from_secs(1);

/// Where a stream of a room starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the log's end.
    Now,
    /// Where an earlier stream ended.
    After(EventId),
    /// At the oldest retained event.
    Earliest,
    /// At the last so many events.
    Recent(u64),
}

/// How a stream began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// It does not continue an earlier one.
    Fresh,
    /// Nothing is missing since the earlier one ended.
    Complete,
    /// Something may be missing; a gap follows.
    Gap,
}

impl Resume {
    /// The name in `stream.open`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Complete => "complete",
            Self::Gap => "gap",
        }
    }
}

/// What a subscriber is given next. `room` counts in the order in which the rooms were asked for.
#[derive(Debug)]
pub enum Delivery {
    /// Events, in order.
    Events {
        /// Of which room.
        room: usize,
        /// At least one.
        events: Vec<Arc<Encoded>>,
    },
    /// Events may be missing.
    Gap {
        /// In which room.
        room: usize,
        /// What may be missing.
        gap: Gap,
    },
}

/// A subscriber's cursors.
pub struct Subscription {
    hub: Arc<Hub>,
    cursors: Box<[Cursor]>,
    /// The cursor that is asked first, so that one busy room does not starve the others.
    turn: usize,
}

struct Cursor {
    seat: Seat,
    changes: watch::Receiver<u64>,
    /// Where it began.
    start: EventId,
    position: EventId,
    /// The room's recalls that are dealt with.
    recalls: u64,
    /// Which losses this stream need not be told of.
    settled: Option<Settled>,
    resume: Resume,
    /// What opening the stream found out already.
    found: Option<Box<Found>>,
    /// When the log may be asked again.
    retry_at: Option<Instant>,
    /// Events to ask the log for.
    page: u16,
    /// The log had nothing more here although there are events: their announcements may be on the way.
    awaits: bool,
}

impl Subscription {
    pub(super) async fn open(hub: &Arc<Hub>, rooms: Vec<(RoomName, Start)>) -> Result<Self, BrokerError> {
        let seats: Vec<_> = rooms.into_iter().map(|(name, start)| (hub.enter(&name), start)).collect();
        let opening = seats.into_iter().map(|(seat, start)| Cursor::open(hub, seat, start));
        let cursors = futures_util::future::try_join_all(opening).await?;
        hub.streams.fetch_add(1, Ordering::Relaxed);
        Ok(Self { hub: hub.clone(), cursors: cursors.into(), turn: 0 })
    }

    /// Where the stream starts in each room, in the order in which they were asked for.
    pub fn opening(&self) -> impl Iterator<Item = (&RoomName, EventId, Resume)> {
        self.cursors.iter().map(|cursor| (cursor.seat.room().name(), cursor.position, cursor.resume))
    }

    /// Where the stream is in each room, behind everything that it has been given.
    pub fn positions(&self) -> impl Iterator<Item = (&RoomName, EventId)> {
        self.cursors.iter().map(|cursor| (cursor.seat.room().name(), cursor.position))
    }

    /// The name of one of the rooms, as they were asked for.
    pub fn room(&self, room: usize) -> &RoomName {
        self.cursors[room].seat.room().name()
    }

    /// Waits for what follows. Loses nothing when it is dropped before it is ready.
    pub async fn next(&mut self) -> Delivery {
        loop {
            if let Some(delivery) = self.look().await {
                return delivery;
            }
            let retry_at = self.cursors.iter().filter_map(|cursor| cursor.retry_at).min();
            let changes = self.cursors.iter_mut().map(|cursor| Box::pin(cursor.changes.changed()));
            tokio::select! {
                _ = select_all(changes) => {}
                () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => {}
            }
        }
    }

    /// The place of a subscriber of one room that has nothing to be told now, and could be led.
    pub fn level(&self) -> Option<Level> {
        let [cursor] = &*self.cursors else { return None };
        let room = cursor.seat.room();
        let is_level = cursor.found.is_none()
            && cursor.recalls == room.recalls()
            && matches!(room.follow(cursor.position, cursor.settled), Followed::Nothing);
        is_level.then_some(Level { position: cursor.position, recalls: cursor.recalls })
    }

    /// Leads those who are at a place; the subscription is of one room.
    pub fn lead(&self, place: Level) -> Lead {
        Lead::new(self.hub.clone(), self.cursors[0].seat.room().clone(), place.position, place.recalls)
    }

    /// The subscriber has been led to a position.
    pub fn led_to(&mut self, position: EventId) {
        let cursor = &mut self.cursors[0];
        cursor.awaits &= cursor.position == position;
        cursor.position = position;
    }

    async fn look(&mut self) -> Option<Delivery> {
        let count = self.cursors.len();
        for step in 0..count {
            let room = (self.turn + step) % count;
            let delivery = match self.cursors[room].look(&self.hub).await {
                Found::Events(events) => Delivery::Events { room, events },
                Found::Gap(gap) => Delivery::Gap { room, gap },
                Found::Nothing => continue,
            };
            self.turn = room + 1;
            return Some(delivery);
        }
        None
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.hub.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Cursor {
    async fn open(hub: &Hub, seat: Seat, start: Start) -> Result<Self, BrokerError> {
        let mut changes = seat.room().changes();
        tokio::select! {
            // The room's task outlives every seat in it, so the channel can't close meanwhile.
            _ = changes.wait_for(|count| *count > 0) => {}
            error = seat.room().refusal() => return Err(error),
        }
        let name = seat.room().name();
        let recalls = seat.room().recalls();
        let end = seat.room().end().unwrap_or(EventId::start_of(0));
        let position = match start {
            Start::Now | Start::Recent(0) => end,
            Start::After(position) => position,
            Start::Earliest => {
                let slice = hub.read(name, Range::Oldest, 1).await?;
                slice.oldest.map_or(slice.chain.end(), EventId::before)
            }
            Start::Recent(count) => {
                let slice = hub.read(name, Range::Newest, usize::try_from(count).unwrap_or(usize::MAX)).await?;
                slice.entries.first().map_or(slice.chain.end(), |entry| entry.id.before())
            }
        };
        let mut cursor = Self {
            seat,
            changes,
            start: position,
            position,
            recalls,
            // A stream that does not continue another one is owed nothing of what came before it.
            settled: Some(Settled { from: EventId::start_of(0), to: position }),
            resume: Resume::Fresh,
            found: None,
            retry_at: None,
            page: FIRST_PAGE_EVENTS,
            awaits: false,
        };
        if matches!(start, Start::After(_)) {
            cursor.resume = Resume::Complete;
            cursor.settled = None;
            if matches!(cursor.seat.room().follow(position, None), Followed::Unsure) {
                let found = cursor.ask(hub).await?;
                if matches!(found, Found::Gap(_)) {
                    cursor.resume = Resume::Gap;
                }
                cursor.found = Some(Box::new(found));
            }
        }
        Ok(cursor)
    }

    /// What follows now; the position moves on with it.
    async fn look(&mut self, hub: &Hub) -> Found {
        self.changes.mark_unchanged();
        let found = match self.found.take().map(|found| *found).or_else(|| self.recall()) {
            Some(found) => found,
            None => match self.seat.room().follow(self.position, self.settled) {
                Followed::Events(events) => Found::Events(events),
                Followed::Nothing => Found::Nothing,
                Followed::Unsure if self.retry_at.is_some_and(|at| at > Instant::now()) => return Found::Nothing,
                Followed::Unsure => match self.ask(hub).await {
                    // A log that keeps nothing can't tell an event that was missed from one that is on its way.
                    Ok(Found::Gap(Gap { reason: GapReason::Expired, .. })) if !self.awaits => {
                        self.awaits = true;
                        self.retry_at = Some(Instant::now() + ON_THE_WAY);
                        return Found::Nothing;
                    }
                    Ok(found) => found,
                    Err(error) => {
                        self.retry_at = Some(self.seat.room().ask_again_at(&error));
                        return Found::Nothing;
                    }
                },
            },
        };
        self.retry_at = None;
        match &found {
            Found::Events(events) => {
                self.awaits = false;
                self.position = events.last().map_or(self.position, |event| event.id());
            }
            Found::Gap(gap) => {
                self.awaits = false;
                self.position = gap.to;
                self.settled = Some(Settled::with(self.settled, *gap));
            }
            Found::Nothing => {}
        }
        found
    }

    async fn ask(&mut self, hub: &Hub) -> Result<Found, BrokerError> {
        self.seat.room().ask_log(hub, self.position, self.settled, &mut self.page).await
    }

    /// A gap, if something was given out here that turned out not to be the log's.
    fn recall(&mut self) -> Option<Found> {
        let recalled = self.seat.room().recalled_since(&mut self.recalls, self.start);
        let id = recalled.filter(|id| *id <= self.position)?;
        Some(Found::Gap(Gap { from: id.before(), to: self.position, reason: GapReason::Diverged }))
    }
}
