//! One connection a replica for announcements, supervised: batched subscriptions, one change in flight at a time, pings
//! with a limit, and reconnects with jitter. After each confirmation the listener is told to doubt the room, so that it
//! reads what it may have missed. Writes may go over it too.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use redis::{Client, PushInfo, PushKind, Value};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::announcement::{Assembler, Heard};
use super::keys::Keys;
use super::links::Link;
use crate::broker::Listener;
use crate::room::{RoomName, SubscriberId};

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
    link: Mutex<Option<Link>>,
}

#[derive(Default)]
struct Interests {
    /// Wanted rooms, and whether Redis has confirmed them on the present connection.
    wanted: HashMap<RoomName, watch::Sender<bool>>,
    /// Rooms whose state may differ from what Redis was told.
    dirty: HashSet<RoomName>,
}

impl PubSub {
    pub(super) fn new(keys: Keys) -> Self {
        Self {
            keys,
            interests: Mutex::default(),
            changed: Notify::new(),
            reset: Notify::new(),
            probe: watch::channel(Vec::new()).0,
            link: Mutex::default(),
        }
    }

    /// Returns once Redis has confirmed the subscription.
    pub(super) async fn subscribe(&self, room: &RoomName) {
        let mut confirmed = {
            let mut interests = self.interests();
            let sender = interests.wanted.entry(room.clone()).or_insert_with(|| watch::channel(false).0);
            let receiver = sender.subscribe();
            if !*receiver.borrow() {
                interests.dirty.insert(room.clone());
            }
            receiver
        };
        self.changed.notify_one();
        // An error means that the interest was withdrawn meanwhile: there is nothing left to wait for.
        let _ = confirmed.wait_for(|confirmed| *confirmed).await;
    }

    pub(super) fn unsubscribe(&self, room: &RoomName) {
        let mut interests = self.interests();
        interests.wanted.remove(room);
        interests.dirty.insert(room.clone());
        drop(interests);
        self.changed.notify_one();
    }

    /// The last probe that came back.
    pub(super) fn probes(&self) -> watch::Receiver<Vec<u8>> {
        self.probe.subscribe()
    }

    /// Which connection announcements come over now; none between two.
    pub(super) fn link(&self) -> Option<Link> {
        self.current().clone()
    }

    /// Has the connection replaced.
    pub(super) fn reset(&self) {
        self.reset.notify_one();
    }

    /// Keeps a connection up, for ever: it ends only where hearing has panicked, which is in no task of ours.
    pub(super) async fn run(&self, client: Client, listener: Arc<dyn Listener>) {
        let schedule = ExponentialBuilder::new()
            .with_min_delay(RECONNECT_FIRST)
            .with_max_delay(RECONNECT_MOST)
            .without_max_times()
            .with_jitter();
        let mut delays = schedule.build();
        loop {
            let ear = Ear::new(&self.keys, self.probe.clone(), listener.clone());
            let panicked = CancellationToken::new();
            let alarm = panicked.clone();
            let hear = move |push: &PushInfo| {
                if catch_unwind(AssertUnwindSafe(|| ear.hear(push))).is_err() {
                    alarm.cancel();
                }
            };
            match Link::connect(&client, hear).await {
                Ok(link) => {
                    let end = tokio::select! {
                        end = self.serve(&link, listener.as_ref()) => end,
                        () = panicked.cancelled() => return,
                    };
                    // Whoever still waits for an answer over it holds it open.
                    link.give_up();
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

    async fn serve(&self, link: &Link, listener: &dyn Listener) -> &'static str {
        tokio::select! {
            () = link.broken() => "closed",
            why = self.tell(link, listener) => why,
            () = self.reset.notified() => "announcements did not arrive",
        }
    }

    /// Tells Redis what is wanted, and pings it in between.
    async fn tell(&self, link: &Link, listener: &dyn Listener) -> &'static str {
        let mut own = link.clone();
        let connection = own.connection();
        connection.set_response_timeout(ANSWER_LIMIT);
        if !answered(connection.subscribe(&[self.keys.probe("live"), self.keys.control()])).await {
            return "the first subscription was not confirmed";
        }
        // Some may have been missed since the last connection.
        listener.removed();
        *self.current() = Some(link.clone());
        self.soil_all();
        let mut subscribed = HashSet::new();
        loop {
            let (join, leave) = self.take_changes(&subscribed);
            if !leave.is_empty() {
                if !answered(connection.unsubscribe(self.channels(&leave))).await {
                    return "leaving channels was not confirmed";
                }
                subscribed.retain(|room| !leave.contains(room));
            }
            if !join.is_empty() {
                if !answered(connection.subscribe(self.channels(&join))).await {
                    return "subscriptions were not confirmed";
                }
                for room in join {
                    if let Some(confirmed) = self.interests().wanted.get(&room) {
                        confirmed.send_replace(true);
                    }
                    listener.doubt(&room);
                    subscribed.insert(room);
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
    fn take_changes(&self, subscribed: &HashSet<RoomName>) -> (Vec<RoomName>, Vec<RoomName>) {
        let mut interests = self.interests();
        let batch: Vec<_> = interests.dirty.iter().take(BATCH_CHANNELS).cloned().collect();
        let (mut join, mut leave) = (Vec::new(), Vec::new());
        for room in batch {
            interests.dirty.remove(&room);
            match (interests.wanted.get(&room), subscribed.contains(&room)) {
                (Some(_), false) => join.push(room),
                (None, true) => leave.push(room),
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

    fn channels(&self, rooms: &[RoomName]) -> Vec<String> {
        rooms.iter().map(|room| self.keys.live(room)).collect()
    }

    fn soil_all(&self) {
        let mut interests = self.interests();
        interests.dirty = interests.wanted.keys().cloned().collect();
    }

    fn forget_confirmations(&self) {
        for confirmed in self.interests().wanted.values() {
            confirmed.send_replace(false);
        }
    }

    fn current(&self) -> MutexGuard<'_, Option<Link>> {
        self.link.lock().expect("no holder of the lock panics")
    }

    fn interests(&self) -> MutexGuard<'_, Interests> {
        self.interests.lock().expect("no holder of the lock panics")
    }
}

/// What hears one connection's messages. It moves them on and waits for nothing: as long as it runs, nothing more is read.
struct Ear {
    keys: Keys,
    probe_channel: String,
    control: String,
    assembler: Mutex<Assembler>,
    probe: watch::Sender<Vec<u8>>,
    listener: Arc<dyn Listener>,
}

impl Ear {
    fn new(keys: &Keys, probe: watch::Sender<Vec<u8>>, listener: Arc<dyn Listener>) -> Self {
        let (probe_channel, control) = (keys.probe("live"), keys.control());
        Self { keys: keys.clone(), probe_channel, control, assembler: Mutex::default(), probe, listener }
    }

    fn hear(&self, push: &PushInfo) {
        let (PushKind::Message, [Value::BulkString(channel), Value::BulkString(payload)]) =
            (&push.kind, push.data.as_slice())
        else {
            return;
        };
        let Ok(channel) = std::str::from_utf8(channel) else { return };
        let listener = self.listener.as_ref();
        if channel == self.control {
            return obey(payload, listener);
        }
        let heard = self.assembler.lock().expect("no holder of the lock panics").take(channel, payload);
        if channel == self.probe_channel {
            if let Heard::Entry(entry) = heard {
                self.probe.send_replace(entry.stored.to_vec());
            }
            return;
        }
        let Some(room) = self.keys.room_of_live(channel) else { return };
        match heard {
            Heard::Entry(entry) => listener.heard(&room, entry),
            Heard::Header => {}
            Heard::Cleared(position) => listener.cleared(&room, position),
            Heard::Junk => listener.junk(&room),
        }
    }
}

/// A message for all replicas: `removed`, or `superseded <room> <subscriber> <stamp>`. A hint, as all messages are.
fn obey(message: &[u8], listener: &dyn Listener) {
    let words = std::str::from_utf8(message).unwrap_or_default();
    let mut words = words.split(' ');
    match (words.next(), words.next(), words.next(), words.next(), words.next()) {
        (Some("removed"), None, ..) => listener.removed(),
        (Some("superseded"), Some(room), Some(subscriber), Some(stamp), None) => {
            if let (Ok(room), Ok(subscriber), Ok(stamp)) =
                (RoomName::new(room), SubscriberId::new(subscriber), stamp.parse())
            {
                listener.superseded(&room, &subscriber, stamp);
            }
        }
        _ => tracing::debug!("junk on the channel of control"),
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
