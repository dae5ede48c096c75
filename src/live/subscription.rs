//! A subscription: a position in each of its topics, and the question what follows it. Live delivery, resuming and
//! catching up are all this one question. The cache answers it if it can, otherwise the log.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::select_all;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::recent::before_recent;
use super::snapshot::Snapshot;
use super::topic::{Following, TopicGuard};
use super::{CaughtUp, GroupCursor, Live, LiveEvent, LogClient};
use crate::broker::{BrokerError, Fault, FaultKind, ReadLimit, ReadRange};
use crate::cache::Lookup;
use crate::log::{Gap, GapReason, LogView, ReportedLoss};
use crate::mirror::WatchPhase;
use crate::names::{Bookmark, EventId, Topic};
use crate::rate_limit::{ChargedRead, Payer};

/// Longest time between an append and the arrival of its announcement.
const ANNOUNCEMENT_DELAY: Duration = Duration::from_secs(1);

/// How long a stream waits for its first snapshots before it opens.
const OPENING_SNAPSHOTS: Duration = Duration::from_secs(3);

/// Topics that one subscription opens at one time: as many as logs are read at one time.
const ROOMS_AT_ONCE: usize = 16;

/// The position at which a subscription to a topic starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The end of the log.
    Now,
    /// The position at which an earlier stream ended.
    After(EventId),
    /// Before the oldest retained event.
    Earliest,
    /// Before the newest events, this many.
    Recent(u64),
    /// Of a hash: the bookmark at which an earlier stream ended, or a snapshot. A number stands for the fields that are
    /// selected, since the client of another selection has nothing of the other fields; 0 for all fields.
    Watch(Option<Bookmark>, u64),
}

/// Whether a subscription continues an earlier stream, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// It does not continue an earlier stream.
    Fresh,
    /// It continues an earlier stream, and no event between is missing.
    Complete,
    /// It continues an earlier stream, and events between may be missing; a gap follows.
    Gap,
    /// It continues an earlier stream of a hash. No change between is missing, and a snapshot follows all the same: only
    /// the replica that made the last one knows that its client has what is stored.
    Snapshot,
}

impl Resume {
    /// The name in `stream.open`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Complete => "complete",
            Self::Gap => "gap",
            Self::Snapshot => "snapshot",
        }
    }
}

/// What a subscription yields next.
#[derive(Debug)]
pub enum Update {
    /// Events of one topic, in order.
    Events {
        /// The index of the topic, in the order in which the topics were requested.
        index: usize,
        /// The events; at least one.
        events: Vec<Arc<LiveEvent>>,
    },
    /// Events of one topic may be missing.
    Gap {
        /// The index of the topic, in the order in which the topics were requested.
        index: usize,
        /// The gap.
        gap: Gap,
    },
    /// A part of a snapshot of a hash.
    Snapshot {
        /// The index of the topic, in the order in which the topics were requested.
        index: usize,
        /// The part, as JSON.
        part: Bytes,
    },
    /// The stream can't go on.
    End(WatchEnd),
    /// Nothing follows in any topic: all are finished rooms.
    Finished,
}

/// Why a stream of a hash can't go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchEnd {
    /// It has taken the parts of several snapshots too slowly.
    TooSlow,
    /// The hash has become too large to be watched.
    TooLarge,
}

/// A subscription to some topics. It holds a cursor for each.
pub struct Subscription {
    live: Arc<Live>,
    cursors: Box<[TopicCursor]>,
    /// The index of the cursor to poll first. It moves on, so that one busy topic does not starve the others.
    first: usize,
}

struct TopicCursor {
    guard: TopicGuard,
    changes: watch::Receiver<u64>,
    /// The position at which it began.
    start: EventId,
    position: EventId,
    view: LogView,
    payer: Option<Arc<Payer>>,
    /// How many of the topic's retractions it has handled.
    retractions: u64,
    /// The losses for which it needs no gap.
    reported: Option<ReportedLoss>,
    resume: Resume,
    /// The reply of the log from when the subscription was opened, until it is yielded.
    opening_reply: Option<Box<Following>>,
    /// The log must not be read before this time.
    retry_at: Option<Instant>,
    /// The log has events after the position but no longer retains them. Their announcements may still arrive.
    awaits_announcement: bool,
    /// Of a hash.
    watch: Option<Box<WatchState>>,
}

/// What a subscription to a hash has beside its position.
struct WatchState {
    phase: WatchPhase<Weak<Snapshot>>,
    /// The number of the fields that are selected.
    selection: u64,
    /// The snapshot that it has asked for.
    asked: Option<AskedSnapshot>,
}

/// A snapshot that a subscription has asked for. It is charged like what is read for this subscription alone.
struct AskedSnapshot {
    at_least: EventId,
    reply: oneshot::Receiver<Result<Arc<Snapshot>, BrokerError>>,
    charged: Option<ChargedRead<Arc<Payer>>>,
}

/// What a cursor yields next.
enum Polled {
    Following(Following),
    Part(Bytes),
    End(WatchEnd),
}

impl Subscription {
    pub(super) async fn open(
        live: &Arc<Live>,
        topics: Vec<(Topic, Start)>,
        view: LogView,
        payer: Option<&Arc<Payer>>,
        wanted: &(impl Fn(&LiveEvent) -> bool + Sync),
    ) -> Result<Self, BrokerError> {
        let snapshots_until = Instant::now() + OPENING_SNAPSHOTS;
        let opening = topics.into_iter().map(async |(topic, start)| {
            let guard = live.enter(&topic);
            TopicCursor::open(&live.log, guard, start, snapshots_until, view, payer.cloned(), wanted).await
        });
        // A few at one time: a stream of many rooms must not keep others waiting.
        let opening = stream::iter(opening).buffered(ROOMS_AT_ONCE);
        let cursors: Vec<_> = opening.try_collect().await?;
        live.subscriptions.fetch_add(1, Ordering::Relaxed);
        Ok(Self { live: live.clone(), cursors: cursors.into(), first: 0 })
    }

    /// The topics in the order in which they were requested, with the position of each and how it resumes.
    pub fn opening(&self) -> impl Iterator<Item = (&Topic, Bookmark, Resume)> {
        self.cursors.iter().map(|cursor| (cursor.guard.live_topic().topic(), cursor.bookmark(), cursor.resume))
    }

    /// The topics in the order in which they were requested, with the position of each after all that was yielded.
    pub fn bookmarks(&self) -> impl Iterator<Item = (&Topic, Bookmark)> {
        self.cursors.iter().map(|cursor| (cursor.guard.live_topic().topic(), cursor.bookmark()))
    }

    /// The topic of an index.
    pub fn topic(&self, index: usize) -> &Topic {
        self.cursors[index].guard.live_topic().topic()
    }

    /// Waits for the next update. Cancel-safe: nothing is lost if the future is dropped before it is ready.
    pub async fn next(&mut self) -> Update {
        loop {
            if self.is_finished() {
                return Update::Finished;
            }
            match self.poll().await {
                Some(update) => return update,
                // It may have passed entries that it does not yield.
                None if self.is_finished() => return Update::Finished,
                None => {}
            }
            let retry_at = self.cursors.iter().filter_map(|cursor| cursor.retry_at).min();
            let changes = self.cursors.iter_mut().map(|cursor| Box::pin(cursor.changes.changed()));
            tokio::select! {
                _ = select_all(changes) => {}
                () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => {}
            }
        }
    }

    /// Whether an update follows without a wait: events of which one is `wanted`, or any other update. Passes events that
    /// are not wanted, and the update itself.
    pub fn has_update(&mut self, wanted: impl Fn(&LiveEvent) -> bool) -> bool {
        while let Some(update) = self.next().now_or_never() {
            match update {
                Update::Events { events, .. } if !events.iter().any(|event| wanted(event)) => {}
                _ => return true,
            }
        }
        false
    }

    /// The end of the log of the first topic, as far as this replica has read it.
    pub fn end(&self) -> EventId {
        let cursor = &self.cursors[0];
        cursor.guard.live_topic().end().unwrap_or(cursor.position)
    }

    /// Whether all its topics are finished rooms, and it has yielded their final events, or gaps in their place.
    pub fn is_finished(&self) -> bool {
        self.cursors.iter().all(TopicCursor::is_finished)
    }

    /// The state of a subscription that could share a group cursor: it has one topic, and there is nothing to yield
    /// now. `None` if that is not so.
    pub fn caught_up(&self) -> Option<CaughtUp> {
        let [cursor] = &*self.cursors else { return None };
        let topic = cursor.guard.live_topic();
        let mirror = match cursor.watch.as_deref() {
            None => 0,
            Some(WatchState { phase: WatchPhase::Following(mirror), selection: 0, .. })
                if *mirror == topic.mirror() =>
            {
                *mirror
            }
            Some(_) => return None,
        };
        let is_caught_up = cursor.opening_reply.is_none()
            && !cursor.is_finished()
            && cursor.retractions == topic.retractions()
            && matches!(topic.after(cursor.position, cursor.reported), Lookup::Nothing);
        is_caught_up.then_some(CaughtUp { position: cursor.position, retractions: cursor.retractions, mirror })
    }

    /// A cursor for all subscribers in this state. The subscription has to be one to a single topic.
    pub fn group_cursor(&self, state: CaughtUp) -> GroupCursor {
        GroupCursor::new(self.cursors[0].guard.live_topic().clone(), state)
    }

    /// Sets the position, after a group cursor has advanced for this subscription.
    pub fn advance_to(&mut self, position: EventId) {
        let cursor = &mut self.cursors[0];
        cursor.awaits_announcement &= cursor.position == position;
        cursor.position = position;
    }

    async fn poll(&mut self) -> Option<Update> {
        let count = self.cursors.len();
        for step in 0..count {
            let index = (self.first + step) % count;
            let update = match self.cursors[index].poll().await {
                Polled::Following(Following::Events(events)) => Update::Events { index, events },
                Polled::Following(Following::Gap(gap)) => Update::Gap { index, gap },
                Polled::Following(Following::NothingUpTo(_)) => continue,
                Polled::Part(part) => Update::Snapshot { index, part },
                Polled::End(end) => Update::End(end),
            };
            self.first = index + 1;
            return Some(update);
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
    async fn open(
        log: &LogClient,
        guard: TopicGuard,
        start: Start,
        snapshots_until: Instant,
        view: LogView,
        payer: Option<Arc<Payer>>,
        wanted: &(impl Fn(&LiveEvent) -> bool + Sync),
    ) -> Result<Self, BrokerError> {
        let mut changes = guard.live_topic().changes();
        tokio::select! {
            // The topic owns the sender, so the channel can't close.
            _ = changes.wait_for(|count| *count > 0) => {}
            error = guard.live_topic().refusal() => return Err(error),
        }
        guard.live_topic().check_finish().await?;
        let topic = guard.live_topic().topic();
        let retractions = guard.live_topic().retractions();
        let end = guard.live_topic().end().unwrap_or(EventId::start_of(0));
        let position = match start {
            Start::Now | Start::Recent(0) | Start::Watch(None, _) => end,
            Start::After(position) | Start::Watch(Some(Bookmark { id: position, .. }), _) => {
                match guard.live_topic().history() {
                    // Read before the data set.
                    Some(history) => log.resume_from(topic, &history, position).await?,
                    None => position,
                }
            }
            Start::Earliest => {
                let slice = log.read(topic, ReadRange::Oldest, view, ReadLimit::HISTORY).await?;
                slice.oldest.map_or(slice.history.end(), EventId::before)
            }
            Start::Recent(count) => {
                before_recent(log, guard.live_topic(), end, count, view, payer.as_ref(), wanted).await?
            }
        };
        let mut cursor = Self {
            guard,
            changes,
            start: position,
            position,
            view,
            payer,
            retractions,
            // A stream that does not continue another one needs no gap for what was before it.
            reported: Some(ReportedLoss { from: EventId::start_of(0), to: position }),
            resume: Resume::Fresh,
            opening_reply: None,
            retry_at: None,
            awaits_announcement: false,
            watch: None,
        };
        if let Start::Watch(bookmark, selection) = start {
            let phase = WatchPhase::new(bookmark);
            cursor.watch = Some(Box::new(WatchState { phase, selection, asked: None }));
            cursor.resume = if bookmark.is_some() { Resume::Snapshot } else { Resume::Fresh };
            // A hash that can't be watched is refused now, if that is known in time. Else the stream waits.
            if !cursor.has_base()
                && let Ok(snapshot) = timeout_at(snapshots_until, Box::pin(cursor.snapshot())).await
            {
                let snapshot = snapshot?;
                if snapshot.is_other_type && bookmark.is_none() {
                    return Err(BrokerError::WrongType);
                }
                cursor.change_phase(|phase| phase.begin(Arc::downgrade(&snapshot)));
            }
        }
        let is_following = |watch: &WatchState| matches!(watch.phase, WatchPhase::Following(_));
        if matches!(start, Start::After(_)) || cursor.watch.as_deref().is_some_and(is_following) {
            cursor.resume = if cursor.has_base() { Resume::Complete } else { Resume::Snapshot };
            cursor.reported = None;
            if matches!(cursor.guard.live_topic().after(position, None), Lookup::Unknown) {
                let reply = cursor.read_log().await?;
                if matches!(reply, Following::Gap(_)) {
                    cursor.resume = Resume::Gap;
                }
                cursor.opening_reply = Some(Box::new(reply));
            }
        }
        Ok(cursor)
    }

    fn bookmark(&self) -> Bookmark {
        let base = self.watch.as_ref().map(|watch| watch.phase.base());
        Bookmark { id: self.position, base }
    }

    /// Whether it has yielded the final message of a room, or a gap in its place. Presence events that follow keep no
    /// stream open.
    fn is_finished(&self) -> bool {
        let topic = self.guard.live_topic();
        let has_gap = || matches!(self.opening_reply.as_deref(), Some(Following::Gap(_)));
        topic.is_finished_at(self.position, self.reported) && !has_gap() && self.retractions == topic.retractions()
    }

    /// Whether it has the state of a hash's present mirror. True of a room.
    fn has_base(&self) -> bool {
        let (Some(watch), Some(watched)) = (self.watch.as_deref(), self.guard.live_topic().watched()) else {
            return true;
        };
        watch.phase.follows(watched.number(watch.selection))
    }

    /// A snapshot of a hash, at the position or a later one. Cancel-safe.
    async fn snapshot(&mut self) -> Result<Arc<Snapshot>, BrokerError> {
        let (Some(watch), Some(watched)) = (self.watch.as_deref_mut(), self.guard.live_topic().watched()) else {
            return Err(BrokerError::WrongType);
        };
        // A stream that has followed the log since it asked would go back.
        watch.asked.take_if(|asked| asked.at_least < self.position);
        let asked = watch.asked.get_or_insert_with(|| AskedSnapshot {
            at_least: self.position,
            reply: watched.ask(self.position),
            charged: self.payer.clone().map(ChargedRead::new),
        });
        let snapshot = (&mut asked.reply).await.unwrap_or_else(|_| {
            let detail = "the topic's task has ended";
            Err(BrokerError::Unavailable(Fault::new(FaultKind::Failed, detail)))
        });
        let charged = watch.asked.take().and_then(|asked| asked.charged);
        charged.inspect(|charged| charged.has_read(snapshot.as_ref().map_or(0, |snapshot| snapshot.bytes())));
        snapshot
    }

    /// What follows now. The position moves on accordingly.
    async fn poll(&mut self) -> Polled {
        if self.watch.is_none() {
            return Polled::Following(self.poll_log(None).await);
        }
        // In a box, since streams of rooms need no memory for it.
        Box::pin(self.poll_watch()).await
    }

    async fn poll_watch(&mut self) -> Polled {
        let topic = self.guard.live_topic().clone();
        loop {
            let (Some(WatchState { phase, selection, .. }), Some(watched)) =
                (self.watch.as_deref_mut(), topic.watched())
            else {
                return Polled::Following(self.poll_log(None).await);
            };
            match phase {
                WatchPhase::NeedsSnapshot { .. } if self.retry_at.is_some_and(|at| at > Instant::now()) => {
                    return Polled::Following(Following::NothingUpTo(self.position));
                }
                WatchPhase::NeedsSnapshot { .. } => {
                    self.changes.mark_unchanged();
                    match self.snapshot().await {
                        Ok(snapshot) => {
                            self.retry_at = None;
                            self.change_phase(|phase| phase.begin(Arc::downgrade(&snapshot)));
                        }
                        Err(BrokerError::TooLargeToWatch) => return Polled::End(WatchEnd::TooLarge),
                        Err(error) => {
                            self.retry_at = Some(topic.retry_at(&error));
                            return Polled::Following(Following::NothingUpTo(self.position));
                        }
                    }
                }
                WatchPhase::Snapshot { snapshot, parts, .. } => {
                    let is_first = *parts == 0;
                    let Some(snapshot) = snapshot.upgrade() else {
                        if phase.too_slow() {
                            continue;
                        }
                        return Polled::End(WatchEnd::TooSlow);
                    };
                    let number = snapshot.mirror ^ *selection;
                    let has_followed = phase.follows_log();
                    if has_followed && self.position < snapshot.position {
                        // Changes of which the cache may not know yet, up to where the snapshot was read.
                        let following = self.poll_log(Some(snapshot.position)).await;
                        if !matches!(following, Following::NothingUpTo(_)) || self.retry_at.is_some() {
                            return Polled::Following(following);
                        }
                    }
                    if is_first {
                        (self.start, self.position) = (snapshot.position, snapshot.position);
                        self.retractions = topic.retractions();
                    }
                    // A stream that has followed the log may still have to hear of a loss before the snapshot.
                    if is_first && !has_followed {
                        self.reported = Some(ReportedLoss { from: EventId::start_of(0), to: snapshot.position });
                    }
                    let part = self.change_phase(|phase| phase.next_part(number, snapshot.parts.len()));
                    return Polled::Part(snapshot.parts[part.unwrap_or(0)].clone());
                }
                WatchPhase::Following(_) => {
                    let selection = *selection;
                    let following = self.poll_log(None).await;
                    let is_caught_up = matches!(following, Following::NothingUpTo(_)) && self.retry_at.is_none();
                    let present = watched.number(selection);
                    if !is_caught_up || self.change_phase(|phase| phase.caught_up(present)) != Some(true) {
                        return Polled::Following(following);
                    }
                }
            }
        }
    }

    fn change_phase<T>(&mut self, change: impl FnOnce(&mut WatchPhase<Weak<Snapshot>>) -> T) -> Option<T> {
        self.watch.as_deref_mut().map(|watch| change(&mut watch.phase))
    }

    /// What follows in the log, up to a position if there is one, which the log has. The position moves on accordingly.
    async fn poll_log(&mut self, until: Option<EventId>) -> Following {
        self.changes.mark_unchanged();
        let mut reply = match self.opening_reply.take().map(|reply| *reply).or_else(|| self.retraction()) {
            Some(reply) => reply,
            None => match self.lookup(until) {
                Lookup::Events(events) => Following::Events(events),
                Lookup::Nothing => Following::NothingUpTo(self.position),
                Lookup::Unknown if self.retry_at.is_some_and(|at| at > Instant::now()) => {
                    return Following::NothingUpTo(self.position);
                }
                // In a box, since most streams wait and need no memory for a read.
                Lookup::Unknown => match Box::pin(self.read_log()).await {
                    // If the log retains nothing, an event that was missed looks like one whose announcement has not
                    // arrived yet. So there is some time for the announcement before the gap.
                    Ok(Following::Gap(Gap { reason: GapReason::Expired, .. })) if !self.awaits_announcement => {
                        self.awaits_announcement = true;
                        self.retry_at = Some(Instant::now() + ANNOUNCEMENT_DELAY);
                        return Following::NothingUpTo(self.position);
                    }
                    Ok(reply) => reply,
                    Err(error) => {
                        self.retry_at = Some(self.guard.live_topic().retry_at(&error));
                        return Following::NothingUpTo(self.position);
                    }
                },
            },
        };
        self.retry_at = None;
        if let (Following::Events(events), Some(until)) = (&mut reply, until) {
            events.retain(|event| event.id() <= until);
            if events.is_empty() {
                reply = Following::NothingUpTo(until);
            }
        }
        match &reply {
            Following::Events(events) => {
                self.awaits_announcement = false;
                self.position = events.last().map_or(self.position, |event| event.id());
            }
            Following::Gap(gap) => {
                self.awaits_announcement = false;
                self.position = gap.to;
                self.reported = Some(ReportedLoss::after_gap(self.reported, *gap));
                self.change_phase(WatchPhase::gap);
            }
            Following::NothingUpTo(position) => self.position = *position,
        }
        reply
    }

    /// What the cache can tell. It may not know yet of what the log has up to a position.
    fn lookup(&self, until: Option<EventId>) -> Lookup<Arc<LiveEvent>> {
        let topic = self.guard.live_topic();
        match topic.after(self.position, self.reported) {
            Lookup::Nothing if until.is_some_and(|until| !topic.holds(until)) => Lookup::Unknown,
            lookup => lookup,
        }
    }

    async fn read_log(&mut self) -> Result<Following, BrokerError> {
        let charged = self.payer.clone().map(ChargedRead::new);
        let read = self.guard.live_topic().read_log(self.position, self.reported, self.view).await;
        charged.inspect(|charged| charged.has_read(read.as_ref().map_or(0, |(_, bytes)| *bytes)));
        read.map(|(following, _)| following)
    }

    /// A gap, if an event that this cursor may have yielded was retracted.
    fn retraction(&mut self) -> Option<Following> {
        let retracted = self.guard.live_topic().retracted_since(&mut self.retractions, self.start);
        let id = retracted.filter(|id| *id <= self.position)?;
        Some(Following::Gap(Gap { from: id.before(), to: self.position, reason: GapReason::Diverged }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::memory::{MemoryBroker, MemorySettings};
    use crate::broker::{Condition, HashWrite, WriteContext};
    use crate::config::Settings;
    use crate::http::test_app;
    use crate::live::test_event;
    use crate::names::{FieldName, HashName, RoomName};
    use crate::rate_limit::tests::owed_bytes;
    use crate::rate_limit::{RateKey, RateLimitSettings, RateLimiter};

    #[tokio::test]
    async fn what_a_subscription_alone_reads_of_the_log_is_owed() {
        let app = test_app();
        let topic = Topic::from(RoomName::new("a").unwrap());
        // Together they are more than one read of the topic's task.
        let event = test_event("x".repeat(60_000));
        for _ in 0..10 {
            app.log.append(&topic, &event, None, &RateKey::All).await.unwrap();
        }
        let payer = payer(1);
        let open = app.live.subscribe(vec![(topic, Start::Earliest)], LogView::All, Some(payer.clone()), |_| true);
        let mut subscription = open.await.unwrap();
        assert!(matches!(subscription.next().await, Update::Events { .. }));
        assert!(owed_bytes(&payer) > 0);
    }

    #[tokio::test]
    async fn a_snapshot_for_a_subscription_is_owed_once() {
        let app = test_app();
        let hash = HashName::new("a").unwrap();
        for field in ["a", "b"] {
            let write = HashWrite::Set {
                field: FieldName::new(field).unwrap(),
                value: "x".repeat(200_000).into(),
                condition: Condition::Always,
            };
            app.hashes.write(&hash, &write, WriteContext { key: None, by: None, watermarks: &[] }).await.unwrap();
        }
        let payer = payer(5);
        let topics = vec![(Topic::from(hash), Start::Watch(None, 0))];
        let open = app.live.subscribe(topics, LogView::All, Some(payer.clone()), |_| true);
        let mut subscription = open.await.unwrap();
        while subscription.caught_up().is_none() {
            assert!(matches!(subscription.next().await, Update::Snapshot { .. }));
        }
        let owed = owed_bytes(&payer);
        assert!((1..600_000).contains(&owed), "{owed}");
    }

    /// A payer with a low rate, with which a debt lasts long.
    fn payer(rate: u32) -> Arc<Payer> {
        let settings = RateLimitSettings { rate_per_subject: rate, ..Settings::defaults().limits.limits() };
        let broker = MemoryBroker::new(MemorySettings {
            replica: "test".into(),
            lease: Duration::from_secs(1),
            retention: Settings::defaults().retention.policy(),
            max_bytes: 1024 * 1024,
        });
        let limiter = RateLimiter::new(settings, Arc::new(broker));
        limiter.payer_for_streams(RateKey::Subject("ann".into())).unwrap()
    }
}
