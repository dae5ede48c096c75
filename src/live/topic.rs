//! A live topic: this replica's copy of its log, and the task that keeps the copy true.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

use super::{Live, LiveEvent, LiveSettings, LogClient};
use crate::broker::{BrokerError, ReadRange};
use crate::cache::{AnnouncementOutcome, LogCache, Lookup, Ring, RingLimits};
use crate::log::{EpochHistory, Gap, Next, ReportedLoss};
use crate::names::{EventId, Topic};

/// Most bytes that a subscriber is given at one time: a write's worth.
pub(super) const BATCH_BYTES: usize = 64 * 1024;
/// Most events fetched in one read.
const PAGE_EVENTS: u16 = 100;
/// Events in a reader's first page from the log. Later pages are as many as make up a few batches, whatever the events'
/// size, so that slow readers of large events cost little memory.
pub(super) const FIRST_PAGE_EVENTS: u16 = 8;
/// Bytes that a page should have.
const PAGE_BYTES: usize = 4 * BATCH_BYTES;
/// Pause before a subscriber asks the log again after it could not answer; jittered up to twice as long.
const READ_AGAIN: Duration = Duration::from_millis(500);
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(1);

/// What the log said.
pub(super) enum LogReply {
    Events(Vec<Arc<LiveEvent>>),
    Gap(Gap),
    Nothing,
}

pub(super) struct LiveTopic {
    topic: Topic,
    log: Arc<LogClient>,
    idle_ttl: Duration,
    read_events: usize,
    cache: Mutex<LogCache<Arc<LiveEvent>>>,
    /// Counts changes of the copy; 0 until it has been read first.
    changes: watch::Sender<u64>,
    invalidate: Notify,
    /// The copy's, so that who looks each time needs no lock.
    retractions: AtomicU64,
    subscriber_count: AtomicU64,
    vacated: Notify,
    /// What keeps the room from being read, if time alone will not mend it.
    refusal: watch::Sender<Option<BrokerError>>,
}

impl LiveTopic {
    pub(super) fn new(topic: Topic, log: Arc<LogClient>, settings: &LiveSettings) -> Self {
        let limits = RingLimits { events: settings.ring_events.max(1), bytes: settings.ring_bytes };
        Self {
            topic,
            log,
            idle_ttl: settings.idle_ttl,
            read_events: limits.events.min(PAGE_EVENTS.into()),
            cache: Mutex::new(LogCache::new(limits)),
            changes: watch::channel(0).0,
            invalidate: Notify::new(),
            retractions: AtomicU64::new(0),
            subscriber_count: AtomicU64::new(0),
            vacated: Notify::new(),
            refusal: watch::channel(None).0,
        }
    }

    pub(super) fn topic(&self) -> &Topic {
        &self.topic
    }

    pub(super) fn subscriber_count(&self) -> u64 {
        self.subscriber_count.load(Ordering::SeqCst)
    }

    /// Wakes with every change. The value is 0 until the room can be read.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Has the log read again.
    pub(super) fn invalidate(&self) {
        self.invalidate.notify_one();
    }

    /// Resolves if the room can't be read and time alone will not mend that.
    pub(super) async fn refusal(&self) -> BrokerError {
        let mut refusal = self.refusal.subscribe();
        match refusal.wait_for(Option::is_some).await.map(|refusal| refusal.clone()) {
            Ok(Some(error)) => error,
            // The sender is the room's own, so neither can be.
            _ => std::future::pending().await,
        }
    }

    /// Where the room's log ends, as far as this replica has read.
    pub(super) fn end(&self) -> Option<EventId> {
        self.cache().end()
    }

    /// Whether this is the log's history as far as this replica has read.
    pub(super) fn has_history(&self, history: &EpochHistory) -> bool {
        self.cache().history() == Some(history)
    }

    /// The log was emptied.
    pub(super) fn clear(&self, position: EventId) {
        self.cache().empty(position);
        self.invalidate();
    }

    /// What follows a position, as far as this replica's copy of the log can say.
    pub(super) fn after(&self, position: EventId, reported: Option<ReportedLoss>) -> Lookup<Arc<LiveEvent>> {
        self.cache().after(position, reported, BATCH_BYTES)
    }

    /// What follows a position, from a fresh read of about `page` events: the only way in which a gap is told, but for
    /// retractions.
    pub(super) async fn read_log(
        &self,
        position: EventId,
        reported: Option<ReportedLoss>,
        page: &mut u16,
    ) -> Result<LogReply, BrokerError> {
        let slice = self.log.read(&self.topic, ReadRange::After(position), (*page).into()).await?;
        if !self.has_history(&slice.history) {
            self.invalidate();
        }
        let bytes: usize = slice.entries.iter().map(|entry| entry.stored.len()).sum();
        if let Some(mean) = bytes.checked_div(slice.entries.len()) {
            *page = u16::try_from(PAGE_BYTES / mean.max(1)).unwrap_or(PAGE_EVENTS).clamp(1, PAGE_EVENTS);
        }
        let read = Ring::from_events(LiveEvent::decode_all(&slice.entries));
        Ok(match read.after(&slice.history, position, reported, BATCH_BYTES) {
            Ok(events) => LogReply::Events(events),
            Err(Next::Gap(gap)) => LogReply::Gap(gap),
            Err(Next::Nothing | Next::Event(_)) => LogReply::Nothing,
        })
    }

    /// When to ask again after the log could not answer.
    pub(super) fn retry_at(&self, error: &BrokerError) -> Instant {
        tracing::debug!(topic = %self.topic, %error, "the log can't be read");
        Instant::now() + READ_AGAIN.mul_f64(1.0 + fastrand::f64())
    }

    /// How many ids were retracted so far.
    pub(super) fn retractions(&self) -> u64 {
        self.retractions.load(Ordering::SeqCst)
    }

    /// The lowest id above a position that was retracted since there were so many; counts on.
    pub(super) fn retracted_since(&self, seen: &mut u64, position: EventId) -> Option<EventId> {
        if *seen == self.retractions() {
            return None;
        }
        let cache = self.cache();
        let before = std::mem::replace(seen, cache.retractions());
        cache.retracted_after(before, position)
    }

    /// An announcement.
    pub(super) fn announce(&self, event: Arc<LiveEvent>) -> AnnouncementOutcome {
        let taken = self.cache().announce(event);
        match taken {
            AnnouncementOutcome::Added => self.wake(),
            AnnouncementOutcome::Duplicate | AnnouncementOutcome::Deferred => {}
            AnnouncementOutcome::Unexpected | AnnouncementOutcome::Conflict => self.invalidate(),
        }
        taken
    }

    /// Keeps the room subscribed and read until it has been empty for a while. Owns its place in the hub.
    pub(super) async fn run(topic: Arc<Self>, live: Arc<Live>) {
        loop {
            tokio::select! {
                () = topic.log.subscribe(&topic.topic) => break,
                () = topic.idle() => if live.close(&topic) { return },
            }
        }
        loop {
            tokio::select! {
                () = topic.read_until_done() => {}
                () = topic.idle() => if live.close(&topic) { return } else { continue },
            }
            let unverified = topic.log.watermarks().unverified_wait(&topic.topic);
            tokio::select! {
                () = topic.invalidate.notified() => {}
                () = sleep(unverified.unwrap_or_default()), if unverified.is_some() => {}
                () = topic.idle() => if live.close(&topic) { return },
            }
        }
    }

    /// Resolves when nobody has been in the room for the idle_ttl time.
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
            .with_min_delay(RETRY_FIRST)
            .with_max_delay(RETRY_MOST)
            .without_max_times()
            .with_jitter();
        let mut delays = schedule.build();
        while let Err(error) = self.read().await {
            self.refusal.send_replace(matches!(error, BrokerError::WrongType).then(|| error.clone()));
            tracing::debug!(topic = %self.topic, %error, "the room's log can't be read; trying again");
            sleep(delays.next().unwrap_or(RETRY_MOST)).await;
        }
        self.refusal.send_replace(None);
    }

    /// Reads forward from the ring's last event, or the newest events where there is none to go on from.
    async fn read(&self) -> Result<(), BrokerError> {
        /// Announcements wait until the read is done, however it ends.
        struct Reading<'a>(&'a LiveTopic);
        impl Drop for Reading<'_> {
            fn drop(&mut self) {
                let mut cache = self.0.cache();
                let (again, is_read) = (cache.give_up_read(), cache.end().is_some());
                drop(cache);
                if again {
                    self.0.invalidate();
                }
                if is_read {
                    self.0.wake();
                }
            }
        }
        let from = {
            let mut cache = self.cache();
            cache.begin_read();
            cache.read_from()
        };
        let page = self.read_events;
        let reading = Reading(self);
        let range = from.map_or(ReadRange::Newest, ReadRange::After);
        let mut slice = self.log.read(&self.topic, range, page).await?;
        let mut events = LiveEvent::decode_all(&slice.entries);
        self.compare(&slice.history, &events);
        if from.is_some() && events.last().is_some_and(|event| event.id() != slice.history.end()) {
            slice = self.log.read(&self.topic, ReadRange::Newest, page).await?;
            events = LiveEvent::decode_all(&slice.entries);
        }
        if self.cache().end_read(&slice.history, events) {
            self.invalidate();
        }
        drop(reading);
        Ok(())
    }

    fn compare(&self, history: &EpochHistory, events: &[Arc<LiveEvent>]) {
        let mut cache = self.cache();
        let before = cache.retractions();
        cache.compare(history, events);
        if cache.retractions() > before {
            self.retractions.store(cache.retractions(), Ordering::SeqCst);
            tracing::warn!(topic = %self.topic, "an announced event was not the log's: its subscribers are told of a gap");
        }
    }

    fn wake(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn cache(&self) -> MutexGuard<'_, LogCache<Arc<LiveEvent>>> {
        self.cache.lock().expect("no holder of the lock panics")
    }
}

/// A subscriber's place in a room; leaves it when dropped.
pub(super) struct TopicGuard(Arc<LiveTopic>);

impl TopicGuard {
    /// Under the lock of the hub's rooms, so that the room is not let go meanwhile.
    pub(super) fn new(topic: &Arc<LiveTopic>) -> Self {
        topic.subscriber_count.fetch_add(1, Ordering::SeqCst);
        Self(topic.clone())
    }

    pub(super) fn live(&self) -> &Arc<LiveTopic> {
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
