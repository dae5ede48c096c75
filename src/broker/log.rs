//! The contract for logs: what is appended, read, announced and kept.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use wildmatch::WildMatch;

use super::BrokerError;
use crate::log::{EpochHistory, Retained};
use crate::names::{EventId, RoomName, Topic};

/// An entry of a room's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its id.
    pub id: EventId,
    /// The event in its stored form; see [`crate::names::Event::decode`].
    pub stored: Bytes,
}

/// Which entries to read, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadRange {
    /// The first ones above a position.
    After(EventId),
    /// The last ones below an id.
    Before(EventId),
    /// The first ones there are.
    Oldest,
    /// The last ones there are.
    Newest,
}

/// A part of a room's log and all of its history, read in one step.
#[derive(Clone, Debug)]
pub struct LogSlice {
    /// The log's history.
    pub history: EpochHistory,
    /// The oldest retained entry.
    pub oldest: Option<EventId>,
    /// How many entries the log holds.
    pub retained: u64,
    /// The entries asked for.
    pub entries: Vec<LogEntry>,
}

impl Retained for LogSlice {
    /// Right for positions at which the slice was asked to begin, or later ones inside it.
    fn first_after(&self, position: EventId) -> Option<EventId> {
        let at = self.entries.partition_point(|entry| entry.id <= position);
        self.entries.get(at).map(|entry| entry.id)
    }
}

/// Makes an append happen once, however often it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// A digest of the caller and its key: keys of two callers never meet, and are not stored in clear.
    pub key: String,
    /// A digest of what is published: the same key with other content is a mistake.
    pub content: String,
}

/// What became of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The event's id.
    pub id: EventId,
    /// It had been appended by an earlier call with the same key.
    pub replayed: bool,
}

/// How long logs are kept, and how much of them.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Most entries of a room; a broker may keep somewhat more.
    pub events: u64,
    /// Most bytes of them; the newest entry is kept whatever its size. A broker may keep up to half more.
    pub bytes: u64,
    /// Entries older than this are dropped, with the next events at the latest, and the whole log this long after its
    /// last event.
    pub age: Duration,
    /// Its head outlives it by this, so that quiet rooms cost nobody a gap.
    pub head: Duration,
    /// How long an idempotency key is remembered.
    pub idempotency_window: Duration,
}

/// Which rooms are kept in which way.
#[derive(Clone, Debug)]
pub struct RetentionPolicy {
    /// Rooms that no rule names.
    pub default: Retention,
    /// The first that matches a room's name decides.
    pub rules: Vec<(WildMatch, Retention)>,
}

impl RetentionPolicy {
    /// How a room is kept.
    pub fn for_topic(&self, topic: &Topic) -> Retention {
        let is_match = |room: &RoomName| self.rules.iter().find(|(pattern, _)| pattern.matches(room.as_str()));
        let rule = topic.room().and_then(is_match);
        rule.map_or(self.default, |(_, retention)| *retention)
    }
}

/// Receives what a broker announces about logs. It is called where announcements are read, or from within an append, so it
/// must not block.
pub trait LogListener: Send + Sync {
    /// An entry was appended. Announcements may be missing, late, repeated or forged.
    fn announced(&self, topic: &Topic, entry: LogEntry);

    /// The log was emptied up to a position.
    fn cleared(&self, topic: &Topic, position: EventId);

    /// Announcements of this topic may have been missed.
    fn invalidate(&self, topic: &Topic);

    /// The server has another history than before: every log may have lost entries.
    fn history_changed(&self);

    /// A message on the topic's channel was not an announcement.
    fn malformed(&self, topic: &Topic);
}

/// Keeps logs, and announces what is appended to them.
#[async_trait]
pub trait LogStore: Send + Sync {
    /// Appends an entry in its stored form and announces it. `watermarks` are the highest ids, by epoch, that the replica has
    /// appended to the log or seen in it.
    ///
    /// With `key`, the idempotency key is looked up and remembered in the same step. The broker never repeats an append: if its
    /// answer is lost, the error is [`BrokerError::OutcomeUnknown`].
    async fn append(
        &self,
        topic: &Topic,
        watermarks: &[EventId],
        stored: Bytes,
        key: Option<&IdempotencyKey>,
    ) -> Result<Appended, BrokerError>;

    /// Reads at most `limit` entries. Creates the head of a log that has none, so that every topic has a position.
    async fn read(
        &self,
        topic: &Topic,
        watermarks: &[EventId],
        range: ReadRange,
        limit: usize,
    ) -> Result<LogSlice, BrokerError>;

    /// Empties the log and keeps its head. Returns the position up to which it was emptied. Other replicas' listeners are
    /// told by an announcement.
    async fn clear(&self, topic: &Topic, watermarks: &[EventId]) -> Result<EventId, BrokerError>;

    /// Subscribes the listener to the topic's announcements. Returns once the broker has confirmed it; waits while the broker
    /// is away, so the caller bounds it.
    async fn subscribe(&self, topic: &Topic);

    /// Ends the subscription.
    fn unsubscribe(&self, topic: &Topic);

    /// The epoch histories of some logs; keeps their heads alive. `None` for a log that has to be read.
    async fn histories(&self, topics: &[Topic]) -> Result<Vec<Option<EpochHistory>>, BrokerError>;
}
