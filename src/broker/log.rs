//! The contract for logs: how entries are appended, read, announced and retained.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use wildmatch::WildMatch;

use super::BrokerError;
use crate::log::{DataSet, EpochHistory, LogView, Retained};
use crate::names::{Event, EventId, HashName, Topic};

/// An entry of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// The entry's id.
    pub id: EventId,
    /// The event in its stored form; see [`crate::names::Event::decode`].
    pub stored: Bytes,
}

/// Which entries to read. Entries are returned oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadRange {
    /// The first entries above a position.
    After(EventId),
    /// The last entries below an id.
    Before(EventId),
    /// The first entries of the log.
    Oldest,
    /// The last entries of the log.
    Newest,
}

impl ReadRange {
    /// Whether the limit leaves out the oldest entries of the range.
    pub fn is_backward(self) -> bool {
        matches!(self, Self::Before(_) | Self::Newest)
    }
}

/// How much to read. The first entry of the range is read whatever its size, if any entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadLimit {
    /// The maximum number of entries.
    pub entries: usize,
    /// The number of bytes from which on there are no more entries.
    pub bytes: usize,
}

impl ReadLimit {
    /// No entries, only the history.
    pub const HISTORY: Self = Self { entries: 0, bytes: 0 };
}

/// A part of a log as a reader sees it, and the log's whole epoch history, read in one step.
///
/// A reader of messages sees a log that has no presence events. A reader of all sees no presence events from before a
/// message that was dropped.
#[derive(Clone, Debug)]
pub struct LogSlice {
    /// The log's epoch history.
    pub history: EpochHistory,
    /// The position of the log's last message, if presence events follow it.
    pub last_message: Option<EventId>,
    /// What the reader sees.
    pub view: LogView,
    /// The oldest retained entry.
    pub oldest: Option<EventId>,
    /// The number of entries in the log. It may be too large if entries were asked for.
    pub retained: u64,
    /// The entries that were asked for.
    pub entries: Vec<LogEntry>,
    /// Whether the range has no entries beyond these.
    pub is_end: bool,
}

/// What a read that stores nothing has found.
#[derive(Clone, Debug)]
pub enum Peek {
    /// A part of the log.
    Slice(LogSlice),
    /// The log has no head. The position is [`DataSet::unwritten_position`].
    Unwritten(EventId),
    /// Only a [`LogStore::read`] can tell, because the head has to change.
    NeedsRead,
}

impl LogSlice {
    /// An empty log without a head, at a position that nothing stores.
    pub fn unwritten(position: EventId) -> Self {
        let history = EpochHistory::new(position.epoch);
        Self {
            history,
            last_message: None,
            view: LogView::All,
            oldest: None,
            retained: 0,
            entries: Vec::new(),
            is_end: true,
        }
    }

    /// The position after the last message: presence events do not change it.
    pub fn message_end(&self) -> EventId {
        self.last_message.unwrap_or(self.history.end())
    }

    /// The size of the entries.
    pub fn bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.stored.len()).sum()
    }
}

impl Retained for LogSlice {
    /// Correct for the position at which the slice begins, and for later positions inside it.
    fn first_after(&self, position: EventId) -> Option<EventId> {
        let index = self.entries.partition_point(|entry| entry.id <= position);
        self.entries.get(index).map(|entry| entry.id)
    }

    fn complete_since(&self, id: EventId) -> EventId {
        let entry = self.entries.iter().find(|entry| entry.id == id).filter(|_| self.view == LogView::Messages);
        let event = entry.and_then(|entry| Event::decode(&entry.stored).ok());
        event.and_then(|event| event.last_message).unwrap_or(id.before())
    }

    fn complete_to_end(&self) -> Option<EventId> {
        self.last_message.filter(|_| self.view == LogView::Messages)
    }
}

/// Identifies an append, so that repeating it has no second effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// A digest of the caller and the caller's key. Keys of two callers never collide, and are not stored in clear.
    pub key: String,
    /// A digest of the published content. Using the key again with other content is an error.
    pub content: String,
}

/// The outcome of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The entry's id.
    pub id: EventId,
    /// Whether an earlier call with the same idempotency key appended the entry.
    pub replayed: bool,
}

/// How much of a log is kept, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// The maximum number of entries. A broker may keep somewhat more.
    pub events: u64,
    /// The maximum size of the entries in bytes. The newest entry is kept whatever its size. A broker may keep up to
    /// half more.
    pub bytes: u64,
    /// Entries older than this are dropped when the next event is appended, at the latest. The whole log is dropped
    /// this long after its last event.
    pub age: Duration,
    /// The head outlives the log by this time, so that a room that was quiet for long causes no gap.
    pub head: Duration,
    /// How long an idempotency key is remembered.
    pub idempotency_window: Duration,
}

/// The log of a hash is for watchers that were away for a moment: others get a snapshot. It costs nothing once nobody has
/// watched the hash for so long.
const HASH_LOG_EVENTS: u64 = 1000;
const HASH_LOG_BYTES: u64 = 4 * 1024 * 1024;
const HASH_LOG_AGE: Duration = Duration::from_mins(10);

/// Presence events have this part of a log's retention, beside the messages.
const PRESENCE_SHARE: u64 = 4;

impl Retention {
    /// The retention of the log's presence events. They have limits of their own, so that a caller who may not publish
    /// displaces no message.
    #[must_use]
    pub fn for_presence(self) -> Self {
        Self { events: self.events.div_ceil(PRESENCE_SHARE), bytes: self.bytes.div_ceil(PRESENCE_SHARE), ..self }
    }
}

/// Which logs are retained in which way.
#[derive(Clone, Debug)]
pub struct RetentionPolicy {
    /// Applies to topics that no rule matches.
    pub default: Retention,
    /// Patterns of room names. The first rule that matches applies.
    pub rules: Vec<(WildMatch, Retention)>,
}

impl RetentionPolicy {
    /// The retention of a topic's log.
    pub fn for_topic(&self, topic: &Topic) -> Retention {
        let Topic::Room(room) = topic else { return self.for_hashes() };
        let rule = self.rules.iter().find(|(pattern, _)| pattern.matches(room.as_str()));
        rule.map_or(self.default, |(_, retention)| *retention)
    }

    fn for_hashes(&self) -> Retention {
        Retention {
            events: HASH_LOG_EVENTS,
            bytes: HASH_LOG_BYTES,
            age: HASH_LOG_AGE,
            head: HASH_LOG_AGE,
            idempotency_window: self.default.idempotency_window,
        }
    }
}

/// Receives a broker's announcements about logs. It is called by the task that reads announcements, or from within an
/// append, so it must not block.
pub trait LogListener: Send + Sync {
    /// An entry was appended. Announcements may be missing, late, repeated or forged.
    fn announced(&self, topic: &Topic, entry: LogEntry);

    /// The log was emptied up to a position.
    fn cleared(&self, topic: &Topic, position: EventId);

    /// Announcements of this topic may have been missed.
    fn invalidate(&self, topic: &Topic);

    /// The server's history has changed: every log may have lost entries.
    fn history_changed(&self);

    /// Some client has changed a hash. The client may be a gateway, of whose step an announcement follows.
    fn hash_touched(&self, hash: &HashName);

    /// So many calls of [`Self::hash_touched`] belong to the step whose announcement comes next.
    fn hash_accounted(&self, hash: &HashName, count: u32);

    /// A message on the topic's channel was not an announcement.
    fn malformed(&self, topic: &Topic);
}

/// Keeps logs, and announces the entries that are appended to them.
///
/// `watermarks` are the highest ids, by epoch, that the replica has appended to the log or seen in it.
#[async_trait]
pub trait LogStore: Send + Sync {
    /// Appends an entry in its stored form, and announces it. An entry that is [final](Event::is_stored_final) finishes the
    /// log: until it is cleared, or its head expires, no further one is appended. The error is then
    /// [`BrokerError::Finished`].
    ///
    /// With `after`, the entry is appended only if no message came after one of these positions, and none can be missing
    /// there; see [`crate::log::Head::is_at_end`]. Else the error is [`BrokerError::HeadMoved`].
    ///
    /// With a `key`, the key is looked up, before all that, and remembered in the same step. The broker never
    /// repeats an append: if the answer is lost, the error is [`BrokerError::OutcomeUnknown`].
    async fn append(
        &self,
        topic: &Topic,
        watermarks: &[EventId],
        stored: Bytes,
        after: Option<&[EventId]>,
        key: Option<&IdempotencyKey>,
    ) -> Result<Appended, BrokerError>;

    /// Reads entries up to a limit. Creates the head of a log that has none, so that every topic has a position. A head
    /// that only readers know may live shorter than others.
    async fn read(
        &self,
        topic: &Topic,
        watermarks: &[EventId],
        range: ReadRange,
        view: LogView,
        limit: ReadLimit,
    ) -> Result<LogSlice, BrokerError>;

    /// Reads like [`Self::read`], but stores nothing for a log without a head.
    async fn peek(
        &self,
        topic: &Topic,
        watermarks: &[EventId],
        range: ReadRange,
        view: LogView,
        limit: ReadLimit,
    ) -> Result<Peek, BrokerError>;

    /// How to judge a position of this topic that may have been told while it had no head.
    async fn data_set(&self, topic: &Topic) -> Result<DataSet, BrokerError>;

    /// Empties the log and keeps its head. A finished log takes entries again. Returns the position up to which the log was
    /// emptied. Announces it to the listeners of all replicas.
    async fn clear(&self, topic: &Topic, watermarks: &[EventId]) -> Result<EventId, BrokerError>;

    /// Subscribes the listener to the topic's announcements. Returns once the broker has confirmed the subscription.
    /// Waits while the broker is away, so the caller has to set a deadline.
    async fn subscribe(&self, topic: &Topic);

    /// Ends the subscription.
    fn unsubscribe(&self, topic: &Topic);

    /// The epoch histories of some logs. Renews the lifetime of their heads. `None` for a log that has to be read.
    async fn histories(&self, topics: &[Topic]) -> Result<Vec<Option<EpochHistory>>, BrokerError>;
}
