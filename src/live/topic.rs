//! A live topic: this replica's cache of its log, and the task that keeps the cache correct.

use std::future::pending;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

use super::ring_budget::{RingBudget, RingShare};
use super::snapshot::Snapshots;
use super::watched_hash::WatchedHash;
use super::{Live, LiveEvent, LiveSettings, LogClient};
use crate::broker::{BrokerError, ReadLimit, ReadRange};
use crate::cache::{AnnouncementOutcome, LogCache, Lookup, Ring, RingLimits};
use crate::log::{EpochHistory, Gap, LogView, Next, ReportedLoss};
use crate::names::{EventId, Topic};

/// Most bytes of events that a subscriber gets at one time: about one write to its connection. So slow subscribers of
/// large events cost little memory.
pub(super) const BATCH_BYTES: usize = 64 * 1024;
/// Most events of one read.
const PAGE_EVENTS: usize = 100;
/// Bytes from which on a read of the topic's task gets no more events, so that a stream that opens takes little of the
/// broker's time.
const PAGE_BYTES: usize = 4 * BATCH_BYTES;
/// Pause before a subscriber reads the log again after a read has failed; jittered up to twice as long.
const SUBSCRIBER_RETRY_PAUSE: Duration = Duration::from_millis(500);
/// First pause before the topic's task reads the log again after a read has failed.
const MIN_RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause of the same kind.
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What follows a position, by a read of the log.
pub(super) enum Following {
    Events(Vec<Arc<LiveEvent>>),
    Gap(Gap),
    /// Nothing that the reader gets, up to this position.
    NothingUpTo(EventId),
}

pub(super) struct LiveTopic {
    topic: Topic,
    /// Of a hash.
    watched: Option<WatchedHash>,
    log: Arc<LogClient>,
    idle_ttl: Duration,
    /// The limit of a read of the topic's task.
    read_limit: ReadLimit,
    cache: Mutex<CountedCache>,
    budget: Arc<RingBudget>,
    /// The topic itself, for the budget.
    this: Weak<Self>,
    /// Counts changes of the cache; 0 until the first read is done.
    changes: watch::Sender<u64>,
    /// Notified when the log has to be read again.
    invalidated: Notify,
    /// The cache's number of retractions, to be read without its lock.
    retractions: AtomicU64,
    /// Whether the log has its final message, by the cache's last read; to be read without its lock.
    is_finished: AtomicBool,
    subscriber_count: AtomicU64,
    /// Notified when the last subscriber leaves.
    vacated: Notify,
    /// Why the log can't be read, if waiting alone will not change that.
    refusal: watch::Sender<Option<BrokerError>>,
}

/// A cache, and what the budget of all rings has counted for it.
struct CountedCache {
    cache: LogCache<Arc<LiveEvent>>,
    share: RingShare,
}

impl Drop for LiveTopic {
    fn drop(&mut self) {
        self.budget.remove(self.counted().share);
    }
}

impl LiveTopic {
    pub(super) fn new(
        topic: Topic,
        log: Arc<LogClient>,
        settings: &LiveSettings,
        budget: Arc<RingBudget>,
        snapshots: &Arc<Snapshots>,
    ) -> Arc<Self> {
        let limits = RingLimits { events: settings.ring_events.max(1), bytes: settings.ring_bytes };
        let cache = CountedCache { cache: LogCache::new(limits), share: RingShare::default() };
        let watched = topic.hash().map(|hash| WatchedHash::new(hash.clone(), log.clone(), snapshots.clone()));
        Arc::new_cyclic(|this| Self {
            topic,
            watched,
            log,
            idle_ttl: settings.idle_ttl,
            read_limit: ReadLimit { entries: limits.events.min(PAGE_EVENTS), bytes: PAGE_BYTES },
            cache: Mutex::new(cache),
            budget,
            this: this.clone(),
            changes: watch::channel(0).0,
            invalidated: Notify::new(),
            retractions: AtomicU64::new(0),
            is_finished: AtomicBool::new(false),
            subscriber_count: AtomicU64::new(0),
            vacated: Notify::new(),
            refusal: watch::channel(None).0,
        })
    }

    pub(super) fn topic(&self) -> &Topic {
        &self.topic
    }

    /// The mirror and the snapshots of a hash.
    pub(super) fn watched(&self) -> Option<&WatchedHash> {
        self.watched.as_ref()
    }

    /// The number of a hash's mirror; 0 in a room, and if there is no mirror now.
    pub(super) fn mirror(&self) -> u64 {
        self.watched.as_ref().map_or(0, WatchedHash::mirror)
    }

    pub(super) fn subscriber_count(&self) -> u64 {
        self.subscriber_count.load(Ordering::SeqCst)
    }

    /// Changes with every change of the cache. The value is 0 until the first read is done.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Makes the topic's task read the log again.
    pub(super) fn invalidate(&self) {
        self.invalidated.notify_one();
    }

    /// Resolves if the log can't be read and waiting alone will not change that.
    pub(super) async fn refusal(&self) -> BrokerError {
        let mut refusal = self.refusal.subscribe();
        match refusal.wait_for(Option::is_some).await.map(|refusal| refusal.clone()) {
            Ok(Some(error)) => error,
            // The topic owns the sender, so the channel can't close, and the value is `Some`.
            _ => std::future::pending().await,
        }
    }

    /// The end of the log, as far as the cache knows. `None` before the first read.
    pub(super) fn end(&self) -> Option<EventId> {
        self.counted().cache.end()
    }

    /// The history of the log, as far as the cache knows. `None` before the first read.
    pub(super) fn history(&self) -> Option<EpochHistory> {
        self.counted().cache.history().cloned()
    }

    /// Whether the cache has this history.
    pub(super) fn has_history(&self, history: &EpochHistory) -> bool {
        self.counted().cache.history() == Some(history)
    }

    /// Whether this position is part of the log's history, as far as the cache knows.
    pub(super) fn holds(&self, position: EventId) -> bool {
        self.counted().cache.holds(position)
    }

    /// The log was cleared up to a position.
    pub(super) fn clear_to(&self, position: EventId) {
        self.change_cache(|cache| cache.clear_to(position));
        self.invalidate();
    }

    /// What follows a position, as far as the cache can tell.
    pub(super) fn after(&self, position: EventId, reported: Option<ReportedLoss>) -> Lookup<Arc<LiveEvent>> {
        self.counted().cache.after(position, reported, BATCH_BYTES)
    }

    /// The events at the end of the log that the cache has, newest first.
    pub(super) fn newest(&self) -> Vec<Arc<LiveEvent>> {
        self.counted().cache.newest().cloned().collect()
    }

    /// Whether a stream at this position has had the final message of the log, and has no gap to get first. Only a read of
    /// the log tells that a message is final, since an announcement can be forged.
    pub(super) fn is_finished_at(&self, position: EventId, reported: Option<ReportedLoss>) -> bool {
        if !self.is_finished.load(Ordering::SeqCst) {
            return false;
        }
        let cache = &self.counted().cache;
        let is_after = cache.history().is_some_and(|history| history.is_finished_at(position));
        is_after && !matches!(cache.after(position, reported, 1), Lookup::Unknown)
    }

    /// Reads whether the log still has its final message, if the cache has it. Another replica may have cleared the log
    /// a moment ago.
    pub(super) async fn check_finish(&self) -> Result<(), BrokerError> {
        let finished = |history: &EpochHistory| history.finished();
        let Some(cached) = self.counted().cache.history().and_then(finished) else { return Ok(()) };
        let slice = self.log.read(&self.topic, ReadRange::Newest, LogView::All, ReadLimit::HISTORY).await?;
        if slice.history.finished() != Some(cached) {
            self.change_cache(|cache| cache.reopen(cached));
            self.invalidate();
        }
        Ok(())
    }

    /// What follows a position, by a read of the log, and the number of bytes that were read. Apart from retractions, this is
    /// the only source of gaps.
    pub(super) async fn read_log(
        &self,
        position: EventId,
        reported: Option<ReportedLoss>,
        view: LogView,
    ) -> Result<(Following, usize), BrokerError> {
        let limit = ReadLimit { entries: PAGE_EVENTS, bytes: BATCH_BYTES };
        let slice = self.log.read_for_stream(&self.topic, ReadRange::After(position), view, limit).await?;
        if !self.has_history(&slice.history) {
            self.invalidate();
        }
        let read = Ring::from_events(LiveEvent::decode_all(&self.topic, &slice.entries), view, slice.last_message);
        // All that was read: the rest of a larger page would be read again.
        let following = match read.after(&slice.history, position, reported, usize::MAX) {
            Ok(events) => Following::Events(events),
            Err(Next::Gap(gap)) => Following::Gap(gap),
            Err(Next::Nothing) => Following::NothingUpTo(slice.history.end()),
            Err(Next::Event(_)) => Following::NothingUpTo(position),
        };
        Ok((following, slice.bytes()))
    }

    /// When a subscriber may read the log again after a read has failed.
    pub(super) fn retry_at(&self, error: &BrokerError) -> Instant {
        tracing::debug!(topic = %self.topic, %error, "a subscriber's read of the log failed; it is repeated");
        Instant::now() + SUBSCRIBER_RETRY_PAUSE.mul_f64(1.0 + fastrand::f64())
    }

    /// How many ids have been retracted so far.
    pub(super) fn retractions(&self) -> u64 {
        self.retractions.load(Ordering::SeqCst)
    }

    /// The lowest id at or above `start` among those retracted after the first `seen` ones. Sets `seen` to their
    /// number.
    pub(super) fn retracted_since(&self, seen: &mut u64, start: EventId) -> Option<EventId> {
        if *seen == self.retractions() {
            return None;
        }
        let cache = &self.counted().cache;
        let before = std::mem::replace(seen, cache.retractions());
        cache.retracted_after(before, start)
    }

    /// Receives an announcement.
    pub(super) fn receive(&self, event: Arc<LiveEvent>) -> AnnouncementOutcome {
        let is_final = event.event().is_final;
        let outcome = self.change_cache(|cache| cache.receive(event));
        if is_final {
            self.invalidate();
        }
        match outcome {
            AnnouncementOutcome::Added => self.wake(),
            AnnouncementOutcome::Duplicate | AnnouncementOutcome::Deferred => {}
            AnnouncementOutcome::Unexpected | AnnouncementOutcome::Conflict => self.invalidate(),
        }
        outcome
    }

    /// The topic's task: it subscribes to the topic's announcements, and reads the log whenever the cache may be
    /// incomplete. It ends, and drops the topic from `live`, when the topic has had no subscribers for the idle TTL.
    pub(super) async fn run(topic: Arc<Self>, live: Arc<Live>) {
        let keep_mirror = async {
            match topic.watched() {
                Some(watched) => watched.run(&topic).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = Self::keep_cache(&topic, &live) => {}
            () = keep_mirror => {}
        }
    }

    async fn keep_cache(topic: &Arc<Self>, live: &Arc<Live>) {
        loop {
            tokio::select! {
                () = topic.log.subscribe(&topic.topic) => break,
                () = topic.idle() => if live.close(topic) { return },
            }
        }
        loop {
            tokio::select! {
                () = topic.read_until_done() => {}
                () = topic.idle() => if live.close(topic) { return } else { continue },
            }
            let unverified = topic.log.watermarks().unverified_wait(&topic.topic);
            tokio::select! {
                () = topic.invalidated.notified() => {}
                () = sleep(unverified.unwrap_or_default()), if unverified.is_some() => {}
                () = topic.idle() => if live.close(topic) { return },
            }
        }
    }

    /// Resolves when the topic has had no subscribers for the idle TTL.
    async fn idle(&self) {
        loop {
            while self.subscriber_count() > 0 {
                self.vacated.notified().await;
            }
            sleep(self.idle_ttl).await;
            if self.subscriber_count() == 0 {
                return;
            }
        }
    }

    async fn read_until_done(&self) {
        let schedule = ExponentialBuilder::new()
            .with_min_delay(MIN_RETRY_PAUSE)
            .with_max_delay(MAX_RETRY_PAUSE)
            .without_max_times()
            .with_jitter();
        let mut delays = schedule.build();
        while let Err(error) = self.read().await {
            self.refusal.send_replace(matches!(error, BrokerError::WrongType).then(|| error.clone()));
            tracing::debug!(topic = %self.topic, %error, "reading the log into the cache failed; it is repeated");
            sleep(delays.next().unwrap_or(MAX_RETRY_PAUSE)).await;
        }
        self.refusal.send_replace(None);
    }

    /// Reads the log into the cache: one page forward from [`LogCache::read_from`], or the newest page if the cache is
    /// empty or if the first page does not reach the end of the log.
    async fn read(&self) -> Result<(), BrokerError> {
        /// Ends the read of the cache, however this function ends: announcements are deferred until then.
        struct ReadGuard<'a>(&'a LiveTopic);
        impl Drop for ReadGuard<'_> {
            fn drop(&mut self) {
                let (again, is_read) = self.0.change_cache(|cache| (cache.give_up_read(), cache.end().is_some()));
                if again {
                    self.0.invalidate();
                }
                if is_read {
                    self.0.wake();
                }
            }
        }
        let from = self.change_cache(|cache| {
            cache.begin_read();
            cache.read_from()
        });
        let guard = ReadGuard(self);
        let range = from.map_or(ReadRange::Newest, ReadRange::After);
        let mut slice = self.log.read(&self.topic, range, LogView::All, self.read_limit).await?;
        let mut events = LiveEvent::decode_all(&self.topic, &slice.entries);
        self.compare(&slice.history, &events);
        if from.is_some() && events.last().is_some_and(|event| event.id() != slice.history.end()) {
            slice = self.log.read(&self.topic, ReadRange::Newest, LogView::All, self.read_limit).await?;
            events = LiveEvent::decode_all(&self.topic, &slice.entries);
        }
        if self.change_cache(|cache| cache.end_read(&slice.history, events)) {
            self.invalidate();
        }
        drop(guard);
        Ok(())
    }

    fn compare(&self, history: &EpochHistory, events: &[Arc<LiveEvent>]) {
        self.change_cache(|cache| {
            let before = cache.retractions();
            cache.compare(history, events);
            if cache.retractions() > before {
                self.retractions.store(cache.retractions(), Ordering::SeqCst);
                tracing::warn!(topic = %self.topic, "an announced event is not in the log; subscribers that may have it get a gap");
            }
        });
    }

    /// Wakes all who wait for a change.
    pub(super) fn wake(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Changes the cache. Other topics drop events for it if all rings together have become too large.
    fn change_cache<T>(&self, change: impl FnOnce(&mut LogCache<Arc<LiveEvent>>) -> T) -> T {
        let mut counted = self.counted();
        let outcome = change(&mut counted.cache);
        let is_finished = counted.cache.history().is_some_and(|history| history.finished().is_some());
        self.is_finished.store(is_finished, Ordering::SeqCst);
        let bytes = counted.cache.older_bytes();
        if bytes != counted.share.bytes() {
            let (share, displaced) = self.budget.change(&self.this, counted.share, bytes);
            counted.share = share;
            // The other topics' locks are not taken while this one is held.
            drop(counted);
            for other in displaced {
                other.counted().cache.drop_older();
            }
        }
        outcome
    }

    fn counted(&self) -> MutexGuard<'_, CountedCache> {
        self.cache.lock().expect("no holder of the lock panics")
    }
}

/// Counts as a subscriber of a topic until it is dropped.
pub(super) struct TopicGuard(Arc<LiveTopic>);

impl TopicGuard {
    /// The caller holds the lock of the live topics, so that the topic is not dropped meanwhile.
    pub(super) fn new(topic: &Arc<LiveTopic>) -> Self {
        topic.subscriber_count.fetch_add(1, Ordering::SeqCst);
        Self(topic.clone())
    }

    pub(super) fn live_topic(&self) -> &Arc<LiveTopic> {
        &self.0
    }
}

impl Drop for TopicGuard {
    fn drop(&mut self) {
        if self.0.subscriber_count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.vacated.notify_one();
        }
    }
}
