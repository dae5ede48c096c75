//! The contract of a broker: what keeps rooms' logs and shared hashes, and carries events to the replicas.
//!
//! Duties of every implementation:
//! - A write is one atomic step, and success means that it is stored (P8).
//! - Whatever reads or writes a room's head begins with [`crate::follow::Head::vouch`].
//! - Appended events reach every listener that has subscribed, in the order of their ids, or the listener is told to
//!   doubt what it has. Announcements are hints; the log is the truth.
//! - Every call ends within [`CALL_LIMIT`], whatever the network does.

pub mod memory;
pub mod redis;
mod roster;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use wildmatch::WildMatch;

pub use self::roster::{
    Attendance, Attended, Card, Change, Member, MemberPage, REMOVAL_LIFETIME, Removal, Replica, Roster, Shown,
    Stamp, Step, StoredRemoval,
};
use crate::follow::{Chain, Retained};
use crate::room::{EventId, FieldName, HashName, RoomName, SubscriberId};

/// No call to a broker takes longer.
pub const CALL_LIMIT: Duration = Duration::from_secs(5);

/// An entry of a room's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its id.
    pub id: EventId,
    /// The event in its stored form; see [`crate::room::Event::decode`].
    pub stored: Bytes,
}

/// Which entries to read, oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// The first ones above a position.
    After(EventId),
    /// The last ones below an id.
    Before(EventId),
    /// The first ones there are.
    Oldest,
    /// The last ones there are.
    Newest,
}

/// A part of a room's log and all of its chain, read in one step.
#[derive(Clone, Debug)]
pub struct Slice {
    /// The log's history.
    pub chain: Chain,
    /// The oldest retained entry.
    pub oldest: Option<EventId>,
    /// How many entries the log holds.
    pub retained: u64,
    /// The entries asked for.
    pub entries: Vec<Entry>,
}

impl Retained for Slice {
    /// Right for positions at which the slice was asked to begin, or later ones inside it.
    fn first_after(&self, position: EventId) -> Option<EventId> {
        let at = self.entries.partition_point(|entry| entry.id <= position);
        self.entries.get(at).map(|entry| entry.id)
    }
}

/// Makes an append happen once, however often it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Once {
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
    pub once: Duration,
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
    pub fn of(&self, room: &RoomName) -> Retention {
        let rule = self.rules.iter().find(|(pattern, _)| pattern.matches(room.as_str()));
        rule.map_or(self.default, |(_, retention)| *retention)
    }
}

/// Hears what a broker announces. Called where announcements are read or from within an append: never blocks.
pub trait Listener: Send + Sync {
    /// An event was appended. Announcements may be missing, late, repeated or foreign.
    fn heard(&self, room: &RoomName, entry: Entry);
    /// The room's log was emptied up to a position.
    fn cleared(&self, room: &RoomName, position: EventId);
    /// Announcements of this room may have been missed.
    fn doubt(&self, room: &RoomName);
    /// There may be removals that are not known here.
    fn removed(&self);
    /// A later stay of a subscriber in a room has begun, on another replica.
    fn superseded(&self, room: &RoomName, subscriber: &SubscriberId, stamp: Stamp);
    /// The server's history is another one than before: every room may have lost something.
    fn history_changed(&self);
    /// Something on the room's channel was no announcement.
    fn junk(&self, room: &RoomName);
}

/// Subscribers by room, on one replica or on all.
pub type Occupancy = BTreeMap<RoomName, u64>;

/// Whether a publish would be delivered now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// What is wrong with commands.
    pub commands: Option<Fault>,
    /// What is wrong with hearing announcements.
    pub delivery: Option<Fault>,
    /// How long the last probe took there and back, where there is one and it came back.
    pub round_trip: Option<Duration>,
}

impl Health {
    /// Whether all is well.
    pub fn is_well(&self) -> bool {
        self.commands.is_none() && self.delivery.is_none()
    }
}

/// Keeps the logs of rooms, and carries their events.
#[async_trait]
pub trait Broker: Roster {
    /// `embedded` or `redis`.
    fn kind(&self) -> &'static str;

    /// Who hears announcements. Called once, before anything else.
    fn listen(&self, listener: Arc<dyn Listener>);

    /// Appends an event in its stored form and announces it. `known` are the highest ids, by epoch, that the
    /// replica has appended to the room or seen in it.
    ///
    /// With `once`, the key is looked up and remembered in the same step. Never repeated by the broker: an answer that
    /// was lost is [`BrokerError::OutcomeUnknown`].
    async fn append(
        &self,
        room: &RoomName,
        known: &[EventId],
        stored: Bytes,
        once: Option<&Once>,
    ) -> Result<Appended, BrokerError>;

    /// Reads at most `limit` entries. Creates the head of a room that has none, so every room has a position.
    async fn read(
        &self,
        room: &RoomName,
        known: &[EventId],
        range: Range,
        limit: usize,
    ) -> Result<Slice, BrokerError>;

    /// Empties the room's log and keeps its head. The listeners of all replicas are told; the own one before this returns.
    async fn clear(&self, room: &RoomName, known: &[EventId]) -> Result<(), BrokerError>;

    /// Has the room's announcements come to the listener. Returns once that is confirmed; waits while the broker is
    /// away, so the caller bounds it.
    async fn subscribe(&self, room: &RoomName);

    /// Ends that.
    fn unsubscribe(&self, room: &RoomName);

    /// The chains of rooms' logs, and keeps their heads alive. `None` where the room has to be read.
    async fn chains(&self, rooms: &[RoomName]) -> Result<Vec<Option<Chain>>, BrokerError>;

    /// Says how many subscribers this replica has, by room, and how many streams. To be repeated a few times within a replica's
    /// lease: a replica that has not reported for so long counts as gone, and what it held with it.
    async fn report(&self, subscribers: &Occupancy, streams: u64) -> Result<(), BrokerError>;

    /// Rooms that have subscribers, on all live replicas.
    async fn occupancy(&self) -> Result<Occupancy, BrokerError>;

    /// Subscribers of one room, on all live replicas.
    async fn occupancy_of(&self, room: &RoomName) -> Result<u64, BrokerError>;

    /// What the broker knows of itself, without asking anybody.
    fn health(&self) -> Health;
}

/// What may be taken from a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// How many come back in a second.
    pub per_second: u32,
    /// Most that it holds.
    pub burst: u64,
}

/// What was taken from a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// How many.
    pub granted: u64,
    /// What is left.
    pub remaining: u64,
    /// When there will be enough.
    pub after: Duration,
}

/// Keeps buckets that all replicas take from.
#[async_trait]
pub trait Buckets: Send + Sync {
    /// Takes up to `most`, and nothing where there are less than `least`.
    async fn take(&self, key: &str, bucket: Bucket, least: u64, most: u64) -> Result<Taken, BrokerError>;
}

/// When a write to a field is to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// In any case.
    Always,
    /// If the field is absent.
    Absent,
    /// If the field is there.
    Present,
    /// If the value has one of these [`entity_tag`]s.
    Matches(Vec<String>),
}

/// What became of a write to a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// The field is new.
    Created,
    /// The field had a value.
    Replaced,
    /// The condition did not hold; the present value.
    Refused(Option<Bytes>),
}

/// What became of the removal of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// It is gone.
    Gone,
    /// It was not there.
    Absent,
    /// The condition did not hold; the present value.
    Refused(Option<Bytes>),
}

/// What a patch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Patched {
    /// Fields that are new.
    pub created: u64,
    /// Fields that were set and had a value before.
    pub replaced: u64,
    /// Fields that are gone.
    pub removed: u64,
}

/// Some fields of a hash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldPage {
    /// Names and values. A name that another writer made from bytes that are not UTF-8 has them replaced.
    pub fields: Vec<(String, Bytes)>,
    /// Where the next page starts.
    pub next: Option<String>,
}

/// Keeps shared hashes: plain strings by field. Every write is atomic.
#[async_trait]
pub trait HashStore: Send + Sync {
    /// A field's value.
    async fn value(&self, hash: &HashName, field: &FieldName) -> Result<Option<Bytes>, BrokerError>;

    /// The values of some fields.
    async fn values(&self, hash: &HashName, fields: &[FieldName]) -> Result<Vec<Option<Bytes>>, BrokerError>;

    /// About `limit` fields from where an earlier page ended. A field that is there all the while is on some page; a
    /// large hash that changes meanwhile may show one twice.
    async fn page(&self, hash: &HashName, from: Option<&str>, limit: usize) -> Result<FieldPage, BrokerError>;

    /// Sets a field.
    async fn set(
        &self,
        hash: &HashName,
        field: &FieldName,
        value: Bytes,
        condition: &Condition,
    ) -> Result<Written, BrokerError>;

    /// Removes a field.
    async fn remove(
        &self,
        hash: &HashName,
        field: &FieldName,
        condition: &Condition,
    ) -> Result<Removed, BrokerError>;

    /// Sets fields and removes those that map to nothing, all at once.
    async fn patch(
        &self,
        hash: &HashName,
        changes: &BTreeMap<FieldName, Option<Bytes>>,
    ) -> Result<Patched, BrokerError>;

    /// Removes the hash; whether there was one.
    async fn clear(&self, hash: &HashName) -> Result<bool, BrokerError>;

    /// Adds to a field that holds a whole number (64 bits, signed), or to 0.
    async fn increment(&self, hash: &HashName, field: &FieldName, by: i64) -> Result<i64, BrokerError>;
}

/// The entity tag of a value, without quotes: it comes from the value alone, so it holds for other writers too.
pub fn entity_tag(value: &[u8]) -> String {
    sha1_hex(value)
}

/// SHA-1 in hexadecimal digits, as Redis's `sha1hex` gives it.
pub fn sha1_hex(bytes: &[u8]) -> String {
    use sha1::{Digest, Sha1};
    use std::fmt::Write;
    Sha1::digest(bytes).iter().fold(String::with_capacity(40), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Why a broker could not do as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// It surely was not done.
    #[error("not done: {0}")]
    Unavailable(Fault),
    /// It may have been done: the answer was lost.
    #[error("outcome unknown: {0}")]
    OutcomeUnknown(Fault),
    /// The key holds something else than a log or a hash.
    #[error("the key holds a value of another type")]
    WrongType,
    /// The field's value is not a whole number, or the sum is out of range.
    #[error("the value is not a whole number, or the sum does not fit")]
    NotANumber,
    /// The idempotency key was used for something else.
    #[error("the idempotency key was used for something else")]
    KeyReused,
    /// No page starts there.
    #[error("after: no page starts there; it has to be the `next` of the page before")]
    UnknownPage,
}

/// What is wrong, by name and in detail.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", kind.name())]
pub struct Fault {
    /// Its kind.
    pub kind: FaultKind,
    /// For the log; may name servers, never secrets.
    pub detail: String,
}

/// Kinds of faults of a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// No connection.
    Unreachable,
    /// No answer in time.
    TimedOut,
    /// Announcements do not arrive.
    Deaf,
    /// No memory left for writes.
    OutOfMemory,
    /// The server takes no writes: it is a replica.
    ReadOnly,
    /// The server takes no writes: too few replicas follow it.
    NoReplicas,
    /// The server takes no writes: it can't save.
    Misconfigured,
    /// The server is still loading its data.
    Loading,
    /// The server is held by a long script.
    Busy,
    /// The server refuses this user.
    NotPermitted,
    /// No space left on the disk of the data folder.
    DiskFull,
    /// The disk of the data folder fails.
    DiskFailed,
    /// Anything else.
    Failed,
}

impl FaultKind {
    /// The stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed_out",
            Self::Deaf => "deaf",
            Self::OutOfMemory => "out_of_memory",
            Self::ReadOnly => "read_only",
            Self::NoReplicas => "no_replicas",
            Self::Misconfigured => "misconfigured",
            Self::Loading => "loading",
            Self::Busy => "busy",
            Self::NotPermitted => "not_permitted",
            Self::DiskFull => "disk_full",
            Self::DiskFailed => "disk_failed",
            Self::Failed => "failed",
        }
    }
}

impl FaultKind {
    /// Whether what is there can still be read and heard.
    pub const fn is_of_writes_alone(self) -> bool {
        matches!(
            self,
            Self::OutOfMemory | Self::NoReplicas | Self::Misconfigured | Self::DiskFull | Self::DiskFailed
        )
    }
}

impl Fault {
    /// A fault of this kind.
    pub fn new(kind: FaultKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }
}
