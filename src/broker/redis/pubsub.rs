//! One connection a replica for announcements, supervised: batched subscriptions, one change in flight at a time, pings
//! with a limit, and reconnects with jitter. After each confirmation the listener is told to invalidate the topic, so that it
//! reads what it may have missed. Writes may go over it too.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use redis::{Client, PushInfo, PushKind, Value};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::announcement::{Assembler, ChannelMessage};
use super::connections::RedisConn;
use super::keys::Keys;
use crate::broker::Listeners;
use crate::names::{RoomName, SubscriberId, Topic};

/// Channels in one SUBSCRIBE: a bounded command, and still few of them for many rooms.
const BATCH_CHANNELS: usize = 1000;
/// Longest wait for a confirmation or a pong.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Pause between pings of a quiet connection.
const PING_EVERY: Duration = Duration::from_secs(1);
const RECONNECT_FIRST: Duration = Duration::from_millis(50);
const RECONNECT_MOST: Duration = Duration::from_secs(1);

/// What the rest of the broker knows of the pub/sub connection.
pub(super) struct PubSub {
    keys: Keys,
    interests: Mutex<Interests>,
    changed: Notify,
    reset: Notify,
    probe: watch::Sender<Vec<u8>>,
    /// The connection, once the probe's channel was confirmed on it.
    conn: Mutex<Option<RedisConn>>,
}

#[derive(Default)]
struct Interests {
    /// Wanted rooms, and whether Redis has confirmed them on the present connection.
    wanted: HashMap<Topic, watch::Sender<bool>>,
    /// Rooms whose state may differ from what Redis was told.
    dirty: HashSet<Topic>,
}

impl PubSub {
    pub(super) fn new(keys: Keys) -> Self {
        Self {
            keys,
            interests: Mutex::default(),
            changed: Notify::new(),
            reset: Notify::new(),
            probe: watch::channel(Vec::new()).0,
            conn: Mutex::default(),
        }
    }

    /// Returns once Redis has confirmed the subscription.
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
        // An error means that the interest was withdrawn meanwhile: there is nothing left to wait for.
        let _ = confirmed.wait_for(|confirmed| *confirmed).await;
    }

    pub(super) fn unsubscribe(&self, topic: &Topic) {
        let mut interests = self.interests();
        interests.wanted.remove(topic);
        interests.dirty.insert(topic.clone());
        drop(interests);
        self.changed.notify_one();
    }

    /// The last probe that came back.
    pub(super) fn probes(&self) -> watch::Receiver<Vec<u8>> {
        self.probe.subscribe()
    }

    /// Which connection announcements come over now; none between two.
    pub(super) fn conn(&self) -> Option<RedisConn> {
        self.current().clone()
    }

    /// Has the connection replaced.
    pub(super) fn reset(&self) {
        self.reset.notify_one();
    }

    /// Keeps a connection up, for ever: it ends only where hearing has panicked, which is in no task of ours.
    pub(super) async fn run(&self, client: Client, listeners: Listeners) {
        let schedule = ExponentialBuilder::new()
            .with_min_delay(RECONNECT_FIRST)
            .with_max_delay(RECONNECT_MOST)
            .without_max_times()
            .with_jitter();
        let mut delays = schedule.build();
        loop {
            let handler = PushHandler::new(&self.keys, self.probe.clone(), listeners.clone());
            let panicked = CancellationToken::new();
            let alarm = panicked.clone();
            let handle = move |push: &PushInfo| {
                if catch_unwind(AssertUnwindSafe(|| handler.handle(push))).is_err() {
                    alarm.cancel();
                }
            };
            match RedisConn::connect(&client, handle).await {
                Ok(conn) => {
                    let end = tokio::select! {
                        end = self.serve(&conn, &listeners) => end,
                        () = panicked.cancelled() => return,
                    };
                    // Whoever still waits for an answer over it holds it open.
                    conn.give_up();
                    if self.current().take().is_some() {
                        delays = schedule.build();
                    }
                    tracing::warn!(reason = end, "the pub/sub connection to Redis ended; connecting again");
                }
                // The probe says once that Redis is away.
                Err(error) => tracing::debug!(%error, "no pub/sub connection to Redis"),
            }
            self.forget_confirmations();
            sleep(delays.next().unwrap_or(RECONNECT_MOST).min(RECONNECT_MOST)).await;
        }
    }

    async fn serve(&self, conn: &RedisConn, listeners: &Listeners) -> &'static str {
        tokio::select! {
            () = conn.broken() => "closed",
            why = self.tell(conn, listeners) => why,
            () = self.reset.notified() => "announcements did not arrive",
        }
    }

    /// Tells Redis what is wanted, and pings it in between.
    async fn tell(&self, conn: &RedisConn, listeners: &Listeners) -> &'static str {
        let mut own = conn.clone();
        let connection = own.connection();
        connection.set_response_timeout(ANSWER_LIMIT);
        if !answered(connection.subscribe(&[self.keys.probe("live"), self.keys.control()])).await {
            return "the first subscription was not confirmed";
        }
        // Some may have been missed since the last connection.
        listeners.moderation.removals_changed();
        *self.current() = Some(conn.clone());
        self.mark_all_dirty();
        let mut subscribed = HashSet::new();
        loop {
            let (join, leave) = self.take_changes(&subscribed);
            if !leave.is_empty() {
                if !answered(connection.unsubscribe(self.channels(&leave))).await {
                    return "leaving channels was not confirmed";
                }
                subscribed.retain(|topic| !leave.contains(topic));
            }
            if !join.is_empty() {
                if !answered(connection.subscribe(self.channels(&join))).await {
                    return "subscriptions were not confirmed";
                }
                for topic in join {
                    if let Some(confirmed) = self.interests().wanted.get(&topic) {
                        confirmed.send_replace(true);
                    }
                    listeners.log.invalidate(&topic);
                    subscribed.insert(topic);
                }
                continue;
            }
            if timeout(PING_EVERY, self.changed.notified()).await.is_err()
                && !answered(redis::cmd("PING").query_async::<String>(connection)).await
            {
                return "no pong";
            }
        }
    }

    /// At most a batch of rooms to join and to leave; more stay for the next call.
    fn take_changes(&self, subscribed: &HashSet<Topic>) -> (Vec<Topic>, Vec<Topic>) {
        let mut interests = self.interests();
        let batch: Vec<_> = interests.dirty.iter().take(BATCH_CHANNELS).cloned().collect();
        let (mut join, mut leave) = (Vec::new(), Vec::new());
        for topic in batch {
            interests.dirty.remove(&topic);
            match (interests.wanted.get(&topic), subscribed.contains(&topic)) {
                (Some(_), false) => join.push(topic),
                (None, true) => leave.push(topic),
                // Left and joined again before Redis was told: it is subscribed still.
                (Some(confirmed), true) => drop(confirmed.send_replace(true)),
                (None, false) => {}
            }
        }
        if !interests.dirty.is_empty() {
            self.changed.notify_one();
        }
        (join, leave)
    }

    fn channels(&self, topics: &[Topic]) -> Vec<String> {
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

    fn current(&self) -> MutexGuard<'_, Option<RedisConn>> {
        self.conn.lock().expect("no holder of the lock panics")
    }

    fn interests(&self) -> MutexGuard<'_, Interests> {
        self.interests.lock().expect("no holder of the lock panics")
    }
}

/// What hears one connection's messages. It moves them on and waits for nothing: as long as it runs, nothing more is read.
struct PushHandler {
    keys: Keys,
    probe_channel: String,
    control: String,
    assembler: Mutex<Assembler>,
    probe: watch::Sender<Vec<u8>>,
    listeners: Listeners,
}

impl PushHandler {
    fn new(keys: &Keys, probe: watch::Sender<Vec<u8>>, listeners: Listeners) -> Self {
        let (probe_channel, control) = (keys.probe("live"), keys.control());
        Self { keys: keys.clone(), probe_channel, control, assembler: Mutex::default(), probe, listeners }
    }

    fn handle(&self, push: &PushInfo) {
        let (PushKind::Message, [Value::BulkString(channel), Value::BulkString(payload)]) =
            (&push.kind, push.data.as_slice())
        else {
            return;
        };
        let Ok(channel) = std::str::from_utf8(channel) else { return };
        if channel == self.control {
            return handle_control_message(payload, &self.listeners);
        }
        let message = self.assembler.lock().expect("no holder of the lock panics").push(channel, payload);
        if channel == self.probe_channel {
            if let ChannelMessage::LogEntry(entry) = message {
                self.probe.send_replace(entry.stored.to_vec());
            }
            return;
        }
        let Some(topic) = self.keys.topic_of_channel(channel) else { return };
        match message {
            ChannelMessage::LogEntry(entry) => self.listeners.log.announced(&topic, entry),
            ChannelMessage::Header => {}
            ChannelMessage::Cleared(position) => self.listeners.log.cleared(&topic, position),
            ChannelMessage::Malformed => self.listeners.log.malformed(&topic),
        }
    }
}

/// A message for all replicas: `removed`, or `superseded <room> <subscriber> <generation>`. A hint, as all messages are.
fn handle_control_message(message: &[u8], listeners: &Listeners) {
    let words = std::str::from_utf8(message).unwrap_or_default();
    let mut words = words.split(' ');
    match (words.next(), words.next(), words.next(), words.next(), words.next()) {
        (Some("removed"), None, ..) => listeners.moderation.removals_changed(),
        (Some("superseded"), Some(room), Some(subscriber), Some(generation), None) => {
            if let (Ok(room), Ok(subscriber), Ok(generation)) =
                (RoomName::new(room), SubscriberId::new(subscriber), generation.parse())
            {
                listeners.presence.superseded(&room, &subscriber, generation);
            }
        }
        _ => tracing::debug!("a message on the control channel can't be read"),
    }
}

async fn answered<T>(answer: impl Future<Output = redis::RedisResult<T>>) -> bool {
    match timeout(ANSWER_LIMIT, answer).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => {
            tracing::warn!(%error, "Redis refused or did not answer on the pub/sub connection");
            false
        }
        Err(_) => false,
    }
}
