//! A replica's live topics: the topics that have subscribers on it. A subscriber owns a position and asks what follows
//! it. This layer depends neither on the kind of broker nor on the protocol in which events leave the process.

mod event;
mod group_cursor;
mod log_client;
mod recent;
mod ring_budget;
mod room_counts;
mod snapshot;
mod subscription;
mod topic;
mod watched_hash;
mod watermarks;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{Span, info_span};

#[cfg(test)]
pub(crate) use self::event::test_event;
pub use self::event::{ENCODINGS, LiveEvent};
pub use self::group_cursor::{CaughtUp, GroupCursor, GroupPoll};
pub use self::log_client::{AppendError, LogClient, LogPage};
pub use self::room_counts::RoomCounts;
pub use self::subscription::{Resume, Start, Subscription, Update, WatchEnd};

use self::ring_budget::RingBudget;
use self::snapshot::Snapshots;
use self::topic::{LiveTopic, TopicGuard};
use crate::broker::{
    BrokerError, CALL_LIMIT, LogEntry, LogListener, ReadLimit, ReadRange, ReplicaRegistry, SubscriberCounts,
    read_with_patience,
};
use crate::cache::AnnouncementOutcome;
use crate::log::LogView;
use crate::names::{Bookmark, EventId, HashName, RoomName, Topic};
use crate::rate_limit::Payer;
use crate::shutdown::Tasks;
use crate::timestamp;
use crate::trace;

/// How often the history of every topic that is live, or was used in the last minutes, is compared with the history of
/// its log, about.
const COMPARE_EVERY: Duration = Duration::from_secs(15);
/// Steps over which one round of comparisons is spread.
const COMPARE_STEPS: u32 = 15;
/// Shortest time between two reports of changed subscriber counts.
const REPORT_PAUSE: Duration = Duration::from_secs(1);
/// How far a server's clock may be ahead of this replica's.
const MAX_CLOCK_SKEW: Duration = Duration::from_hours(24);
/// The rings of all topics together take as much as this many full ones, beside the newest event of each.
const FULL_RINGS: usize = 256;
/// Most logs that are read at one time after the server's history has changed.
const REREAD_AT_ONCE: usize = 64;

/// Limits and periods of live topics.
#[derive(Clone, Debug)]
pub struct LiveSettings {
    /// Most events in the ring of a topic.
    pub ring_events: usize,
    /// Most bytes in the ring of a topic.
    pub ring_bytes: usize,
    /// How long a topic stays live after its last subscriber has left.
    pub idle_ttl: Duration,
    /// Longest time between two reports of the replica's subscriber counts. Changed counts are reported within a
    /// second.
    pub report_every: Duration,
}

/// The live topics of a replica.
pub struct Live {
    log: Arc<LogClient>,
    registry: Arc<dyn ReplicaRegistry>,
    settings: LiveSettings,
    topics: Mutex<HashMap<Topic, Arc<LiveTopic>>>,
    rings: Arc<RingBudget>,
    snapshots: Arc<Snapshots>,
    subscriptions: AtomicU64,
    tasks: Tasks,
    malformed: AtomicU64,
    history_changed: Notify,
}

impl Live {
    /// Without live topics yet. The broker behind `log` has to be started with it as its log listener.
    pub fn new(
        log: Arc<LogClient>,
        registry: Arc<dyn ReplicaRegistry>,
        settings: LiveSettings,
        tasks: &Tasks,
    ) -> Arc<Self> {
        Arc::new(Self {
            log,
            registry,
            rings: RingBudget::new(settings.ring_bytes.saturating_mul(FULL_RINGS)),
            snapshots: Arc::default(),
            settings,
            topics: Mutex::default(),
            subscriptions: AtomicU64::new(0),
            tasks: tasks.clone(),
            malformed: AtomicU64::new(0),
            history_changed: Notify::new(),
        })
    }

    /// Starts the background tasks: the comparison of histories, the report of subscriber counts, and the re-reading of
    /// logs after the server's history has changed.
    pub fn start(self: &Arc<Self>) {
        let live = self.clone();
        self.tasks.supervise("comparison", async move { live.compare_for_ever().await });
        let live = self.clone();
        self.tasks.supervise("subscriber counts", async move { live.report_for_ever().await });
        self.tasks.supervise("snapshots", Snapshots::sweep(Arc::downgrade(&self.snapshots)));
        let live = self.clone();
        self.tasks.supervise("history", async move {
            loop {
                live.history_changed.notified().await;
                live.reread(live.recent_topics()).await;
            }
        });
    }

    /// How many topics are live, including those whose last subscriber left less than the idle TTL ago.
    pub fn topic_count(&self) -> usize {
        self.topics().len()
    }

    /// How many messages on topics' channels were not valid announcements, since the start.
    pub fn malformed_announcements(&self) -> u64 {
        self.malformed.load(Ordering::Relaxed)
    }

    /// How many subscriptions are open.
    pub fn subscription_count(&self) -> u64 {
        self.subscriptions.load(Ordering::Relaxed)
    }

    /// How many subscribers this replica has, by room; without rooms that have none.
    pub fn subscriber_counts(&self) -> SubscriberCounts {
        let topics = self.topics();
        let counts = topics.iter().filter_map(|(topic, live)| {
            let room: RoomName = topic.room()?.clone();
            Some((room, live.subscriber_count())).filter(|(_, count)| *count > 0)
        });
        counts.collect()
    }

    /// Opens a subscription to some topics, each from its own start. [`Start::Recent`] counts the events that are `wanted`.
    /// `payer` is charged for what is read of the logs for this subscription alone.
    /// Fails if the broker can't be read or delivers no announcements for longer than a moment. Otherwise waits for the
    /// logs to be read, without a limit of its own.
    pub async fn subscribe(
        self: &Arc<Self>,
        topics: Vec<(Topic, Start)>,
        view: LogView,
        payer: Option<Arc<Payer>>,
        wanted: impl Fn(&LiveEvent) -> bool + Sync,
    ) -> Result<Subscription, BrokerError> {
        let open = || async {
            match self.log.health().follow_fault() {
                Some(fault) => Err(BrokerError::Unavailable(fault)),
                None => Subscription::open(self, topics.clone(), view, payer.as_ref(), &wanted).await,
            }
        };
        read_with_patience(open).await
    }

    /// Clears a topic's log. Once it returns, this replica's cache has none of the cleared events.
    pub async fn clear(&self, topic: &Topic) -> Result<(), BrokerError> {
        let position = self.log.clear(topic).await?;
        if let Some(live) = self.get(topic) {
            live.clear_to(position);
        }
        Ok(())
    }

    /// The bookmark of a client that has these fields of a hash and no others, if they are the state of a mirror.
    pub async fn bookmark_of(&self, hash: &HashName, fields: &[(String, Bytes)]) -> Option<Bookmark> {
        let topic = self.get(&hash.clone().into())?;
        topic.watched()?.bookmark_of(&topic, fields).await
    }

    fn enter(self: &Arc<Self>, topic: &Topic) -> TopicGuard {
        let mut topics = self.topics();
        let live = match topics.entry(topic.clone()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                self.log.watermarks().hold(topic);
                let log = self.log.clone();
                let live = LiveTopic::new(topic.clone(), log, &self.settings, self.rings.clone(), &self.snapshots);
                let live = entry.insert(live);
                self.tasks.spawn(LiveTopic::run(live.clone(), self.clone()));
                live
            }
        };
        TopicGuard::new(live)
    }

    /// Drops a topic unless it has got a subscriber meanwhile. Returns whether it was dropped.
    fn close(&self, live: &Arc<LiveTopic>) -> bool {
        let mut topics = self.topics();
        if live.subscriber_count() > 0 {
            return false;
        }
        topics.remove(live.topic());
        self.log.watermarks().release(live.topic());
        // Still under the lock, so that the topic's next subscription to announcements begins after this one has ended.
        self.log.unsubscribe(live.topic());
        true
    }

    fn get(&self, topic: &Topic) -> Option<Arc<LiveTopic>> {
        self.topics().get(topic).cloned()
    }

    fn topics(&self) -> MutexGuard<'_, HashMap<Topic, Arc<LiveTopic>>> {
        self.topics.lock().expect("no holder of the lock panics")
    }

    /// Compares the known histories with the logs, again and again. This finds announcements that never arrived, because
    /// pub/sub may lose messages, and logs that were lost alone.
    async fn compare_for_ever(&self) {
        let mut ticks = interval(COMPARE_EVERY / COMPARE_STEPS);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut due: Vec<Topic> = Vec::new();
        let mut batch_size = 0;
        loop {
            ticks.tick().await;
            if due.is_empty() {
                due = self.topics().keys().cloned().collect();
                due.extend(self.recent_topics());
                batch_size = due.len().div_ceil(COMPARE_STEPS as usize);
            }
            let batch = due.split_off(due.len().saturating_sub(batch_size));
            if batch.is_empty() {
                continue;
            }
            // While the broker is unavailable, there is nothing to compare. When it is back, it invalidates every
            // topic.
            let Some(histories) = self.log.histories(&batch).await else { continue };
            let mut lost = Vec::new();
            for (topic, history) in batch.into_iter().zip(histories) {
                let live = self.get(&topic);
                let is_known = history.is_some_and(|history| match &live {
                    Some(live) => live.has_history(&history),
                    None => !self.log.conflicts_with(&topic, &history),
                });
                match live {
                    _ if is_known => {}
                    Some(live) => live.invalidate(),
                    None => lost.push(topic),
                }
            }
            self.reread(lost).await;
        }
    }

    async fn report_for_ever(&self) {
        let mut ticks = interval(REPORT_PAUSE.min(self.settings.report_every));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut reported: Option<SubscriberCounts> = None;
        let mut due = Instant::now();
        loop {
            ticks.tick().await;
            let counts = self.subscriber_counts();
            if reported.as_ref() == Some(&counts) && Instant::now() < due {
                continue;
            }
            due = Instant::now() + self.settings.report_every.saturating_sub(REPORT_PAUSE / 2);
            let report = timeout(CALL_LIMIT, self.registry.report(&counts, self.subscription_count())).await;
            reported = matches!(report, Ok(Ok(()))).then_some(counts);
        }
    }

    /// The topics that are not live now, and in which this replica knows of events.
    fn recent_topics(&self) -> Vec<Topic> {
        let mut topics = self.log.watermarks().topics_with_events();
        let live = self.topics();
        topics.retain(|topic| !live.contains_key(topic));
        topics
    }

    /// Reads the logs of topics. The read finds a loss by the topic's watermarks, so that a client that resumes later gets
    /// a gap for it.
    async fn reread(&self, topics: Vec<Topic>) {
        let reads = topics.into_iter().map(|topic| async move {
            if let Err(error) = self.log.read(&topic, ReadRange::Newest, LogView::All, ReadLimit::HISTORY).await {
                tracing::debug!(%topic, %error, "the log of a topic whose history has changed could not be read");
            }
        });
        futures_util::stream::iter(reads).buffer_unordered(REREAD_AT_ONCE).collect::<()>().await;
    }
}

/// Whether a server can have given out this id. Its epoch is a time in microseconds; an epoch far in the future would
/// push all later ones above the largest number that can be represented.
fn is_plausible(id: EventId) -> bool {
    u128::from(id.epoch) <= (timestamp::since_1970() + MAX_CLOCK_SKEW).as_micros()
}

impl LogListener for Live {
    fn announced(&self, topic: &Topic, entry: LogEntry) {
        // Only live topics are subscribed to. An announcement that arrives after the topic was dropped has no use.
        let Some(live) = self.get(topic) else { return };
        let event = LiveEvent::new(topic, &entry).ok().filter(|_| is_plausible(entry.id));
        let Some(event) = event else { return self.malformed(topic) };
        let span = match event.event().traceparent.as_deref().filter(|_| trace::is_enabled()) {
            None => Span::none(),
            Some(publish) => {
                let (id, subscribers) = (entry.id, live.subscriber_count());
                let span = info_span!(
                    parent: None, "deliver", room = topic.name(), %id, subscribers, otel.kind = "consumer"
                );
                trace::set_parent(&span, publish);
                span
            }
        };
        let _delivering = span.entered();
        let watermarks = self.log.watermarks();
        match live.receive(Arc::new(event)) {
            AnnouncementOutcome::Added | AnnouncementOutcome::Duplicate => watermarks.add(topic, entry.id),
            AnnouncementOutcome::Deferred | AnnouncementOutcome::Unexpected => {
                watermarks.add_unverified(topic, entry.id);
            }
            AnnouncementOutcome::Conflict => self.malformed(topic),
        }
    }

    fn hash_touched(&self, hash: &HashName) {
        if let Some(topic) = self.get(&hash.clone().into()) {
            topic.watched().inspect(|watched| watched.touched());
        }
    }

    fn hash_accounted(&self, hash: &HashName, count: u32) {
        if let Some(topic) = self.get(&hash.clone().into()) {
            topic.watched().inspect(|watched| watched.accounted(count));
        }
    }

    fn cleared(&self, topic: &Topic, position: EventId) {
        match self.get(topic) {
            Some(live) if is_plausible(position) => live.clear_to(position),
            Some(_) => self.malformed(topic),
            None => {}
        }
    }

    fn invalidate(&self, topic: &Topic) {
        if let Some(live) = self.get(topic) {
            live.invalidate();
        }
    }

    fn history_changed(&self) {
        for live in self.topics().values() {
            live.invalidate();
        }
        self.history_changed.notify_one();
    }

    fn malformed(&self, topic: &Topic) {
        self.malformed.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(%topic, "a message on the topic's channel is not a valid announcement; the log is read again");
        self.invalidate(topic);
    }
}
