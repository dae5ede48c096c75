//! The live connection: one for each replica, over which announcements come. A supervised task subscribes in batches,
//! with one change in flight at a time, pings with a time limit, and reconnects with jitter. After each confirmed
//! subscription it tells the listener to invalidate the topic, which then reads what it may have missed. Writes may use
//! the connection, too.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use redis::aio::MultiplexedConnection;
use redis::{ConnectionInfo, PushInfo, PushKind, RedisResult, Value};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::announcement::{Assembler, ChannelMessage};
use super::connections::RedisConn;
use super::error::{breaks_connection, fault_from};
use super::keys::Keys;
use super::random;
use crate::broker::{Fault, Listeners};
use crate::names::{HashName, RoomName, SubscriberId, Topic};

/// Channels in one SUBSCRIBE: bounds the command, and still takes few commands for many topics.
const BATCH_CHANNELS: usize = 1000;
/// Longest wait for a confirmation or a pong.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Pause between pings while no subscription changes.
const PING_EVERY: Duration = Duration::from_secs(1);
const MIN_RECONNECT_PAUSE: Duration = Duration::from_millis(50);
const MAX_RECONNECT_PAUSE: Duration = Duration::from_secs(1);

/// The live connection, and the topics that it should be subscribed to.
pub(super) struct PubSub {
    keys: Keys,
    interests: Mutex<Interests>,
    changed: Notify,
    reset: Notify,
    probe: watch::Sender<Vec<u8>>,
    /// The connection, once Redis has confirmed the probe's channel on it.
    conn: watch::Sender<Option<RedisConn>>,
    /// Why Redis has refused the last subscription, if it has.
    refusal: Mutex<Option<Fault>>,
    /// What the channels of keyspace notifications begin with.
    notification_prefix: Arc<str>,
    /// Whether keyspace notifications of hashes come over the present connection.
    has_notifications: AtomicBool,
}

#[derive(Default)]
struct Interests {
    /// Wanted topics, and whether Redis has confirmed them on the present connection.
    wanted: HashMap<Topic, watch::Sender<bool>>,
    /// Topics whose subscription may differ from what is wanted.
    dirty: HashSet<Topic>,
}

impl PubSub {
    pub(super) fn new(keys: Keys, database: i64) -> Self {
        Self {
            keys,
            interests: Mutex::default(),
            changed: Notify::new(),
            reset: Notify::new(),
            probe: watch::channel(Vec::new()).0,
            conn: watch::channel(None).0,
            refusal: Mutex::default(),
            notification_prefix: format!("__keyspace@{database}__:").into(),
            has_notifications: AtomicBool::new(false),
        }
    }

    /// Returns once Redis has confirmed the subscription; waits for as long as Redis is away.
    pub(super) async fn subscribe(&self, topic: &Topic) {
        let mut confirmed = {
            let mut interests = self.interests();
            let sender = interests.wanted.entry(topic.clone()).or_insert_with(|| watch::channel(false).0);
            let receiver = sender.subscribe();
            if !*receiver.borrow() {
                interests.dirty.insert(topic.clone());
            }
            receiver
        };
        self.changed.notify_one();
        // An error means that the topic was unsubscribed meanwhile: there is nothing left to wait for.
        let _ = confirmed.wait_for(|confirmed| *confirmed).await;
    }

    pub(super) fn unsubscribe(&self, topic: &Topic) {
        let mut interests = self.interests();
        interests.wanted.remove(topic);
        interests.dirty.insert(topic.clone());
        drop(interests);
        self.changed.notify_one();
    }

    /// The last probe whose announcement has arrived.
    pub(super) fn probes(&self) -> watch::Receiver<Vec<u8>> {
        self.probe.subscribe()
    }

    /// The connection over which announcements come; none while it is being replaced.
    pub(super) fn conn(&self) -> watch::Receiver<Option<RedisConn>> {
        self.conn.subscribe()
    }

    /// Why Redis has refused the last subscription, if it has.
    pub(super) fn refusal(&self) -> Option<Fault> {
        self.refusal.lock().expect("no holder of the lock panics").clone()
    }

    /// Whether keyspace notifications of hashes come over the present connection.
    pub(super) fn has_notifications(&self) -> bool {
        self.has_notifications.load(Ordering::Relaxed)
    }

    /// Asks whether the server sends keyspace notifications of hashes.
    async fn find_notifications(&self, connection: &mut MultiplexedConnection) -> bool {
        let mut command = redis::cmd("CONFIG");
        command.arg("GET").arg("notify-keyspace-events");
        let query = command.query_async::<HashMap<String, String>>(connection);
        let Ok(Ok(settings)) = timeout(ANSWER_LIMIT, query).await else { return false };
        let flags = settings.get("notify-keyspace-events").map_or("", String::as_str);
        let has = |flag| flags.contains(flag);
        // `A` stands for all classes of events.
        has('K') && (has('A') || has('g') && has('h'))
    }

    /// Subscribes to what the server tells of these hashes. Without the right to, they are compared at intervals instead.
    /// Returns false if the connection has failed.
    async fn subscribe_to_notifications(&self, connection: &mut MultiplexedConnection, topics: &[Topic]) -> bool {
        let hashes = topics.iter().filter_map(Topic::hash).filter(|_| self.has_notifications());
        let channels: Vec<_> = hashes.map(|hash| self.notification_channel(hash)).collect();
        if channels.is_empty() {
            return true;
        }
        match timeout(ANSWER_LIMIT, connection.subscribe(&channels)).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) if !breaks_connection(&error) => {
                self.has_notifications.store(false, Ordering::Relaxed);
                tracing::warn!(
                    %error, channel = channels[0],
                    "Redis sends keyspace notifications, and its user may not receive them: add the channels \
                     __keyspace@*__:<keys of hashes> to its rights"
                );
                true
            }
            Ok(Err(_)) | Err(_) => false,
        }
    }

    fn notification_channel(&self, hash: &HashName) -> String {
        format!("{}{}", self.notification_prefix, self.keys.hash(hash))
    }

    /// Replaces the connection.
    pub(super) fn reset(&self) {
        self.reset.notify_one();
    }

    /// Keeps a connection up, for ever. Returns only if a listener has panicked: that happens in the library's task,
    /// which nobody supervises, and this task is supervised.
    pub(super) async fn run(&self, server: ConnectionInfo, listeners: Listeners) {
        let schedule = ExponentialBuilder::new()
            .with_min_delay(MIN_RECONNECT_PAUSE)
            .with_max_delay(MAX_RECONNECT_PAUSE)
            .without_max_times()
            .with_jitter();
        let mut pauses = schedule.build();
        loop {
            let handler = PushHandler::new(self, listeners.clone());
            let panicked = CancellationToken::new();
            let on_panic = panicked.clone();
            let handle = move |push: &PushInfo| {
                if catch_unwind(AssertUnwindSafe(|| handler.handle(push))).is_err() {
                    on_panic.cancel();
                }
            };
            match RedisConn::connect(&server, handle).await {
                Ok(conn) => {
                    let reason = tokio::select! {
                        reason = self.serve(&conn, &listeners) => reason,
                        () = panicked.cancelled() => return,
                    };
                    // Clones that wait for answers keep the connection open: this stops its announcements.
                    conn.mark_broken();
                    if self.conn.send_replace(None).is_some() {
                        pauses = schedule.build();
                    }
                    tracing::warn!(reason, "the pub/sub connection to Redis has ended; reconnecting");
                }
                // The probe logs once that Redis is away.
                Err(error) => tracing::debug!(%error, "no pub/sub connection to Redis"),
            }
            self.forget_confirmations();
            sleep(pauses.next().unwrap_or(MAX_RECONNECT_PAUSE).min(MAX_RECONNECT_PAUSE)).await;
        }
    }

    /// Uses a connection until it ends. Returns why it has ended.
    async fn serve(&self, conn: &RedisConn, listeners: &Listeners) -> &'static str {
        tokio::select! {
            () = conn.until_broken() => "closed",
            reason = self.keep_subscribed(conn, listeners) => reason,
            () = self.reset.notified() => "announcements did not arrive",
        }
    }

    /// Subscribes to what is wanted, and pings while nothing changes. Returns why it has failed.
    async fn keep_subscribed(&self, conn: &RedisConn, listeners: &Listeners) -> &'static str {
        let mut own = conn.clone();
        let connection = own.connection();
        connection.set_response_timeout(ANSWER_LIMIT);
        let own_channels = [self.keys.probe("live"), self.keys.control()];
        let confirmed = timeout(ANSWER_LIMIT, connection.subscribe(&own_channels)).await;
        let refusal = confirmed.as_ref().ok().and_then(|answer| answer.as_ref().err()).map(fault_from);
        let is_confirmed = matches!(confirmed, Ok(Ok(())));
        *self.refusal.lock().expect("no holder of the lock panics") = refusal;
        if !is_confirmed {
            return "the first subscription was not confirmed";
        }
        let mut sends_notifications = self.find_notifications(connection).await;
        self.has_notifications.store(sends_notifications, Ordering::Relaxed);
        // Removals may have been missed since the last connection.
        listeners.moderation.removals_changed();
        self.conn.send_replace(Some(conn.clone()));
        self.mark_all_dirty();
        let mut subscribed = HashSet::new();
        loop {
            let (to_subscribe, to_unsubscribe) = self.next_changes(&subscribed);
            if !to_unsubscribe.is_empty() {
                let mut channels = self.live_channels(&to_unsubscribe);
                channels.extend(
                    to_unsubscribe.iter().filter_map(Topic::hash).map(|hash| self.notification_channel(hash)),
                );
                if answer_in_time(connection.unsubscribe(channels)).await.is_none() {
                    return "an unsubscription was not confirmed";
                }
                subscribed.retain(|topic| !to_unsubscribe.contains(topic));
            }
            if !to_subscribe.is_empty() {
                if answer_in_time(connection.subscribe(self.live_channels(&to_subscribe))).await.is_none() {
                    return "a subscription was not confirmed";
                }
                if !self.subscribe_to_notifications(connection, &to_subscribe).await {
                    return "a subscription to keyspace notifications was not confirmed";
                }
                for topic in to_subscribe {
                    if let Some(confirmed) = self.interests().wanted.get(&topic) {
                        confirmed.send_replace(true);
                    }
                    listeners.log.invalidate(&topic);
                    subscribed.insert(topic);
                }
                continue;
            }
            if timeout(PING_EVERY, self.changed.notified()).await.is_err() {
                // A connection that loses bytes can lose a whole answer. The next one is then taken for it.
                let nonce = random();
                let mut ping = redis::cmd("PING");
                ping.arg(nonce);
                if answer_in_time(ping.query_async(connection)).await != Some(nonce) {
                    return "a ping was not answered with its nonce";
                }
                // The setting may have been changed.
                if self.find_notifications(connection).await != sends_notifications {
                    sends_notifications = !sends_notifications;
                    self.has_notifications.store(sends_notifications, Ordering::Relaxed);
                    let hashes: Vec<_> =
                        subscribed.iter().filter(|topic| topic.hash().is_some()).cloned().collect();
                    for topics in hashes.chunks(BATCH_CHANNELS) {
                        if !self.subscribe_to_notifications(connection, topics).await {
                            return "a subscription to keyspace notifications was not confirmed";
                        }
                    }
                }
            }
        }
    }

    /// Topics to subscribe to and to unsubscribe from, at most a batch; the rest stays for the next call.
    fn next_changes(&self, subscribed: &HashSet<Topic>) -> (Vec<Topic>, Vec<Topic>) {
        let mut interests = self.interests();
        let batch: Vec<_> = interests.dirty.iter().take(BATCH_CHANNELS).cloned().collect();
        let (mut to_subscribe, mut to_unsubscribe) = (Vec::new(), Vec::new());
        for topic in batch {
            interests.dirty.remove(&topic);
            match (interests.wanted.get(&topic), subscribed.contains(&topic)) {
                (Some(_), false) => to_subscribe.push(topic),
                (None, true) => to_unsubscribe.push(topic),
                // Unsubscribed and wanted again before Redis was told: the subscription still holds.
                (Some(confirmed), true) => drop(confirmed.send_replace(true)),
                (None, false) => {}
            }
        }
        if !interests.dirty.is_empty() {
            self.changed.notify_one();
        }
        (to_subscribe, to_unsubscribe)
    }

    fn live_channels(&self, topics: &[Topic]) -> Vec<String> {
        topics.iter().map(|topic| self.keys.live(topic)).collect()
    }

    fn mark_all_dirty(&self) {
        let mut interests = self.interests();
        interests.dirty = interests.wanted.keys().cloned().collect();
    }

    fn forget_confirmations(&self) {
        for confirmed in self.interests().wanted.values() {
            confirmed.send_replace(false);
        }
    }

    fn interests(&self) -> MutexGuard<'_, Interests> {
        self.interests.lock().expect("no holder of the lock panics")
    }
}

/// Handles what Redis pushes over one connection. It must not wait: the connection reads nothing until it returns.
struct PushHandler {
    keys: Keys,
    /// What the channels of keyspace notifications begin with.
    notification_prefix: Arc<str>,
    probe_channel: String,
    control_channel: String,
    assembler: Mutex<Assembler>,
    probe: watch::Sender<Vec<u8>>,
    listeners: Listeners,
}

impl PushHandler {
    fn new(pubsub: &PubSub, listeners: Listeners) -> Self {
        let PubSub { keys, notification_prefix, probe, .. } = pubsub;
        Self {
            keys: keys.clone(),
            notification_prefix: notification_prefix.clone(),
            probe_channel: keys.probe("live"),
            control_channel: keys.control(),
            assembler: Mutex::default(),
            probe: probe.clone(),
            listeners,
        }
    }

    fn handle(&self, push: &PushInfo) {
        let (PushKind::Message, [Value::BulkString(channel), Value::BulkString(payload)]) =
            (&push.kind, push.data.as_slice())
        else {
            return;
        };
        let Ok(channel) = std::str::from_utf8(channel) else { return };
        if channel == self.control_channel {
            return handle_control_message(payload, &self.listeners);
        }
        if let Some(key) = channel.strip_prefix(&*self.notification_prefix) {
            if let Some(hash) = self.keys.hash_of_key(key) {
                self.listeners.log.hash_touched(&hash);
            }
            return;
        }
        let message = self.assembler.lock().expect("no holder of the lock panics").push(channel, payload);
        if channel == self.probe_channel {
            if let ChannelMessage::LogEntry(entry, _) = message {
                self.probe.send_replace(entry.stored.to_vec());
            }
            return;
        }
        let Some(topic) = self.keys.topic_of_channel(channel) else { return };
        match message {
            ChannelMessage::LogEntry(entry, notifications) => {
                if let Topic::Hash(hash) = &topic {
                    self.listeners.log.hash_accounted(hash, notifications);
                }
                self.listeners.log.announced(&topic, entry);
            }
            ChannelMessage::Header => {}
            ChannelMessage::Cleared(position) => self.listeners.log.cleared(&topic, position),
            ChannelMessage::Malformed => self.listeners.log.malformed(&topic),
        }
    }
}

/// Handles a message to all replicas: `removed`, or `superseded <room> <subscriber> <generation>`. Like announcements,
/// these messages are hints.
fn handle_control_message(message: &[u8], listeners: &Listeners) {
    let message = std::str::from_utf8(message).unwrap_or_default();
    let mut words = message.split(' ');
    match (words.next(), words.next(), words.next(), words.next(), words.next()) {
        (Some("removed"), None, ..) => listeners.moderation.removals_changed(),
        (Some("superseded"), Some(room), Some(subscriber), Some(generation), None) => {
            if let (Ok(room), Ok(subscriber), Ok(generation)) =
                (RoomName::new(room), SubscriberId::new(subscriber), generation.parse())
            {
                listeners.presence.superseded(&room, &subscriber, generation);
            }
        }
        _ => tracing::debug!("ignored a malformed message on Redis's control channel"),
    }
}

/// The answer to a command. `None` if it is an error, or too late.
async fn answer_in_time<T>(answer: impl Future<Output = RedisResult<T>>) -> Option<T> {
    let answer = timeout(ANSWER_LIMIT, answer).await.ok()?;
    answer
        .inspect_err(|error| tracing::warn!(%error, "a command on the pub/sub connection to Redis has failed"))
        .ok()
}
