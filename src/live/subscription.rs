//! A subscriber: a position in each of its rooms, and the question what follows. Live delivery, resume and catching up
//! are this one question; it is answered from the ring if that can be, else from the log.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::select_all;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::topic::{FIRST_PAGE_EVENTS, LogReply, TopicGuard};
use super::{CaughtUp, GroupCursor, Live, LiveEvent, LogClient};
use crate::broker::{BrokerError, ReadRange};
use crate::cache::Lookup;
use crate::log::{Gap, GapReason, ReportedLoss};
use crate::names::{EventId, Topic};

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
pub enum Update {
    /// Events, in order.
    Events {
        /// Of which room.
        index: usize,
        /// At least one.
        events: Vec<Arc<LiveEvent>>,
    },
    /// Events may be missing.
    Gap {
        /// In which room.
        index: usize,
        /// What may be missing.
        gap: Gap,
    },
}

/// A subscriber's cursors.
pub struct Subscription {
    live: Arc<Live>,
    cursors: Box<[TopicCursor]>,
    /// The cursor that is asked first, so that one busy room does not starve the others.
    turn: usize,
}

struct TopicCursor {
    guard: TopicGuard,
    changes: watch::Receiver<u64>,
    /// Where it began.
    start: EventId,
    position: EventId,
    /// The room's retractions that are dealt with.
    retractions: u64,
    /// Which losses this stream need not be told of.
    reported: Option<ReportedLoss>,
    resume: Resume,
    /// What opening the stream found out already.
    found: Option<Box<LogReply>>,
    /// When the log may be asked again.
    retry_at: Option<Instant>,
    /// Events to ask the log for.
    page: u16,
    /// The log had nothing more here although there are events: their announcements may be on the way.
    awaits_announcement: bool,
}

impl Subscription {
    pub(super) async fn open(live: &Arc<Live>, topics: Vec<(Topic, Start)>) -> Result<Self, BrokerError> {
        let guards: Vec<_> = topics.into_iter().map(|(topic, start)| (live.enter(&topic), start)).collect();
        let opening = guards.into_iter().map(|(guard, start)| TopicCursor::open(&live.log, guard, start));
        let cursors = futures_util::future::try_join_all(opening).await?;
        live.subscriptions.fetch_add(1, Ordering::Relaxed);
        Ok(Self { live: live.clone(), cursors: cursors.into(), turn: 0 })
    }

    /// Where the stream starts in each room, in the order in which they were asked for.
    pub fn opening(&self) -> impl Iterator<Item = (&Topic, EventId, Resume)> {
        self.cursors.iter().map(|cursor| (cursor.guard.live().topic(), cursor.position, cursor.resume))
    }

    /// Where the stream is in each room, behind everything that it has been given.
    pub fn positions(&self) -> impl Iterator<Item = (&Topic, EventId)> {
        self.cursors.iter().map(|cursor| (cursor.guard.live().topic(), cursor.position))
    }

    /// The name of one of the rooms, as they were asked for.
    pub fn topic(&self, index: usize) -> &Topic {
        self.cursors[index].guard.live().topic()
    }

    /// Waits for what follows. Loses nothing when it is dropped before it is ready.
    pub async fn next(&mut self) -> Update {
        loop {
            if let Some(delivery) = self.poll().await {
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
    pub fn caught_up(&self) -> Option<CaughtUp> {
        let [cursor] = &*self.cursors else { return None };
        let room = cursor.guard.live();
        let is_caught_up = cursor.found.is_none()
            && cursor.retractions == room.retractions()
            && matches!(room.after(cursor.position, cursor.reported), Lookup::Nothing);
        is_caught_up.then_some(CaughtUp { position: cursor.position, retractions: cursor.retractions })
    }

    /// Leads those who are at a place; the subscription is of one room.
    pub fn group_cursor(&self, place: CaughtUp) -> GroupCursor {
        GroupCursor::new(self.cursors[0].guard.live().clone(), place.position, place.retractions)
    }

    /// The subscriber has been led to a position.
    pub fn advance_to(&mut self, position: EventId) {
        let cursor = &mut self.cursors[0];
        cursor.awaits_announcement &= cursor.position == position;
        cursor.position = position;
    }

    async fn poll(&mut self) -> Option<Update> {
        let count = self.cursors.len();
        for step in 0..count {
            let index = (self.turn + step) % count;
            let delivery = match self.cursors[index].poll().await {
                LogReply::Events(events) => Update::Events { index, events },
                LogReply::Gap(gap) => Update::Gap { index, gap },
                LogReply::Nothing => continue,
            };
            self.turn = index + 1;
            return Some(delivery);
        }
        None
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.live.subscriptions.fetch_sub(1, Ordering::Relaxed);
    }
}

impl TopicCursor {
    async fn open(log: &LogClient, guard: TopicGuard, start: Start) -> Result<Self, BrokerError> {
        let mut changes = guard.live().changes();
        tokio::select! {
            // The room's task outlives every guard in it, so the channel can't close meanwhile.
            _ = changes.wait_for(|count| *count > 0) => {}
            error = guard.live().refusal() => return Err(error),
        }
        let topic = guard.live().topic();
        let retractions = guard.live().retractions();
        let end = guard.live().end().unwrap_or(EventId::start_of(0));
        let position = match start {
            Start::Now | Start::Recent(0) => end,
            Start::After(position) => position,
            Start::Earliest => {
                let slice = log.read(topic, ReadRange::Oldest, 1).await?;
                slice.oldest.map_or(slice.history.end(), EventId::before)
            }
            Start::Recent(count) => {
                let slice =
                    log.read(topic, ReadRange::Newest, usize::try_from(count).unwrap_or(usize::MAX)).await?;
                slice.entries.first().map_or(slice.history.end(), |entry| entry.id.before())
            }
        };
        let mut cursor = Self {
            guard,
            changes,
            start: position,
            position,
            retractions,
            // A stream that does not continue another one is owed nothing of what came before it.
            reported: Some(ReportedLoss { from: EventId::start_of(0), to: position }),
            resume: Resume::Fresh,
            found: None,
            retry_at: None,
            page: FIRST_PAGE_EVENTS,
            awaits_announcement: false,
        };
        if matches!(start, Start::After(_)) {
            cursor.resume = Resume::Complete;
            cursor.reported = None;
            if matches!(cursor.guard.live().after(position, None), Lookup::Unknown) {
                let found = cursor.read_log().await?;
                if matches!(found, LogReply::Gap(_)) {
                    cursor.resume = Resume::Gap;
                }
                cursor.found = Some(Box::new(found));
            }
        }
        Ok(cursor)
    }

    /// What follows now; the position moves on with it.
    async fn poll(&mut self) -> LogReply {
        self.changes.mark_unchanged();
        let found = match self.found.take().map(|found| *found).or_else(|| self.retraction()) {
            Some(found) => found,
            None => match self.guard.live().after(self.position, self.reported) {
                Lookup::Events(events) => LogReply::Events(events),
                Lookup::Nothing => LogReply::Nothing,
                Lookup::Unknown if self.retry_at.is_some_and(|at| at > Instant::now()) => return LogReply::Nothing,
                Lookup::Unknown => match self.read_log().await {
                    // A log that keeps nothing can't tell an event that was missed from one that is on its way.
                    Ok(LogReply::Gap(Gap { reason: GapReason::Expired, .. })) if !self.awaits_announcement => {
                        self.awaits_announcement = true;
                        self.retry_at = Some(Instant::now() + ON_THE_WAY);
                        return LogReply::Nothing;
                    }
                    Ok(found) => found,
                    Err(error) => {
                        self.retry_at = Some(self.guard.live().retry_at(&error));
                        return LogReply::Nothing;
                    }
                },
            },
        };
        self.retry_at = None;
        match &found {
            LogReply::Events(events) => {
                self.awaits_announcement = false;
                self.position = events.last().map_or(self.position, |event| event.id());
            }
            LogReply::Gap(gap) => {
                self.awaits_announcement = false;
                self.position = gap.to;
                self.reported = Some(ReportedLoss::with(self.reported, *gap));
            }
            LogReply::Nothing => {}
        }
        found
    }

    async fn read_log(&mut self) -> Result<LogReply, BrokerError> {
        self.guard.live().read_log(self.position, self.reported, &mut self.page).await
    }

    /// A gap, if something was given out here that turned out not to be the log's.
    fn retraction(&mut self) -> Option<LogReply> {
        let retracted = self.guard.live().retracted_since(&mut self.retractions, self.start);
        let id = retracted.filter(|id| *id <= self.position)?;
        Some(LogReply::Gap(Gap { from: id.before(), to: self.position, reason: GapReason::Diverged }))
    }
}
