//! The records of the data folder: what their keys and values look like. Other records need another number of the
//! format, see `store.rs`.
//!
//! | Key | Value |
//! | --- | --- |
//! | `h`, room, or `H`, hash | a head, as JSON |
//! | `l`, room, or `L`, hash; epoch, offset | when the entry was appended; the event in its stored form |
//! | `f`, hash, field | the value |
//! | `e`, hash | when the hash expires, as JSON |
//! | `m`, room, subscriber | a member, as JSON |
//! | `o`, room, or `O`, hash; digest of a key | what was done with the idempotency key, as JSON |
//! | `r`, time in microseconds | a removal, as JSON |
//! | `w`, room | nothing: a stream has asked for the room's joins and leaves |
//!
//! Numbers are eight bytes, the most significant first. A name that is not the last part of a key has its length before
//! it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::state::{IdempotencyRecord, OVERHEAD_BYTES, RecordedAnswer, StoredMember};
use crate::broker::{HashExpiry, LogEntry, Removal, WriteEffect};
use crate::log::{Epoch, EpochHistory, Head, LateLoss};
use crate::names::{EventId, FieldName, HashName, RoomName, SubscriberId, Topic};

const HEAD: LogPrefix = LogPrefix { room: b'h', hash: b'H' };
/// Sorts after the heads, so that an entry's head is loaded before the entry.
const ENTRY: LogPrefix = LogPrefix { room: b'l', hash: b'L' };
const IDEMPOTENCY_KEY: LogPrefix = LogPrefix { room: b'o', hash: b'O' };
const FIELD: u8 = b'f';
const EXPIRY: u8 = b'e';
const MEMBER: u8 = b'm';
const REMOVAL: u8 = b'r';
const WATCHED: u8 = b'w';

/// The first byte of keys about a log, by what the log belongs to.
struct LogPrefix {
    room: u8,
    hash: u8,
}

impl LogPrefix {
    fn byte(&self, topic: &Topic) -> u8 {
        match topic {
            Topic::Room(_) => self.room,
            Topic::Hash(_) => self.hash,
        }
    }

    /// The topic with this name, if keys with this prefix begin with `byte`.
    fn topic(&self, byte: u8, name: &[u8]) -> Option<Topic> {
        let name = std::str::from_utf8(name).ok()?;
        if byte == self.room {
            RoomName::new(name).ok().map(Topic::Room)
        } else if byte == self.hash {
            HashName::new(name).ok().map(Topic::Hash)
        } else {
            None
        }
    }
}

/// A record, as it is loaded.
pub(super) enum Record {
    Head { topic: Topic, head: Head, touched: u64 },
    Entry { topic: Topic, entry: LogEntry, appended_at: u64 },
    IdempotencyKey { topic: Topic, digest: String, record: IdempotencyRecord },
    Field { hash: HashName, field: FieldName, value: Bytes },
    Expiry { hash: HashName, expiry: HashExpiry },
    Member { room: RoomName, subscriber: SubscriberId, member: StoredMember },
    PresenceWatch { room: RoomName },
    Removal { id: u64, removal: Removal },
}

/// A change of one record: the key, and its new value. None removes the record.
pub(super) struct RecordChange {
    pub(super) key: Vec<u8>,
    pub(super) value: Option<Bytes>,
}

#[derive(Serialize, Deserialize)]
struct StoredHead {
    #[serde(rename = "mark")]
    replication_id: String,
    touched: u64,
    dropped: u64,
    cleared: (u64, u64),
    epochs: Vec<StoredEpoch>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_message: Option<(u64, u64)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    finished: Option<(u64, u64)>,
}

#[derive(Serialize, Deserialize)]
struct StoredEpoch {
    epoch: u64,
    end: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lost_since: Option<(u64, u64)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    late: Option<StoredLateLoss>,
}

#[derive(Serialize, Deserialize)]
struct StoredLateLoss {
    since: (u64, u64),
    entered: u64,
}

#[derive(Serialize, Deserialize)]
struct StoredIdempotencyRecord {
    content: String,
    #[serde(flatten)]
    answer: StoredAnswer,
    until: u64,
}

#[derive(Serialize, Deserialize)]
enum StoredAnswer {
    #[serde(rename = "id")]
    Appended((u64, u64)),
    #[serde(rename = "done")]
    Written(WriteEffect),
}

impl RecordChange {
    /// The memory that the change uses until it is durable.
    pub(super) fn bytes(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Bytes::len) + OVERHEAD_BYTES
    }

    pub(super) fn head(topic: &Topic, head: &Head, touched: u64) -> Self {
        let history = &head.history;
        let epoch = |epoch: &Epoch| StoredEpoch {
            epoch: epoch.number,
            end: epoch.end,
            lost_since: epoch.lost_since.map(pair),
            late: epoch.late_loss.map(|late| StoredLateLoss { since: pair(late.since), entered: late.entered }),
        };
        let stored = StoredHead {
            replication_id: head.replication_id.clone(),
            touched,
            dropped: history.dropped(),
            cleared: pair(history.cleared()),
            epochs: history.epochs().iter().map(epoch).collect(),
            last_message: head.last_message.map(pair),
            finished: history.finished().map(pair),
        };
        Self { key: key(HEAD.byte(topic), &[], topic.name()), value: Some(json(&stored)) }
    }

    pub(super) fn no_head(topic: &Topic) -> Self {
        Self { key: key(HEAD.byte(topic), &[], topic.name()), value: None }
    }

    pub(super) fn entry(topic: &Topic, entry: &LogEntry, appended_at: u64) -> Self {
        let value = [&appended_at.to_be_bytes(), &*entry.stored].concat();
        Self { key: entry_key(topic, entry.id), value: Some(value.into()) }
    }

    pub(super) fn no_entry(topic: &Topic, id: EventId) -> Self {
        Self { key: entry_key(topic, id), value: None }
    }

    pub(super) fn idempotency_key(topic: &Topic, digest: &str, record: &IdempotencyRecord) -> Self {
        let answer = match &record.answer {
            RecordedAnswer::Appended(id) => StoredAnswer::Appended(pair(*id)),
            RecordedAnswer::Written(effect) => StoredAnswer::Written(effect.clone()),
        };
        let stored = StoredIdempotencyRecord { content: record.content.clone(), answer, until: record.until };
        Self { key: key(IDEMPOTENCY_KEY.byte(topic), &[topic.name()], digest), value: Some(json(&stored)) }
    }

    pub(super) fn no_idempotency_key(topic: &Topic, digest: &str) -> Self {
        Self { key: key(IDEMPOTENCY_KEY.byte(topic), &[topic.name()], digest), value: None }
    }

    pub(super) fn field(hash: &HashName, field: &str, value: Option<Bytes>) -> Self {
        Self { key: key(FIELD, &[hash.as_str()], field), value }
    }

    pub(super) fn expiry(hash: &HashName, expiry: Option<&HashExpiry>) -> Self {
        Self { key: key(EXPIRY, &[], hash.as_str()), value: expiry.map(json) }
    }

    pub(super) fn member(room: &RoomName, subscriber: &SubscriberId, member: Option<&StoredMember>) -> Self {
        Self { key: key(MEMBER, &[room.as_str()], subscriber.as_str()), value: member.map(json) }
    }

    pub(super) fn watched(room: &RoomName, is_watched: bool) -> Self {
        Self { key: key(WATCHED, &[], room.as_str()), value: is_watched.then(Bytes::new) }
    }

    pub(super) fn removal(id: u64, removal: Option<&Removal>) -> Self {
        Self { key: [&[REMOVAL][..], &id.to_be_bytes()].concat(), value: removal.map(json) }
    }
}

fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("numbers and texts are JSON").into()
}

fn pair(id: EventId) -> (u64, u64) {
    (id.epoch, id.offset)
}

fn key(prefix: u8, names: &[&str], last: &str) -> Vec<u8> {
    let mut key = vec![prefix];
    for name in names {
        key.push(u8::try_from(name.len()).expect("names have at most 128 bytes"));
        key.extend(name.as_bytes());
    }
    key.extend(last.as_bytes());
    key
}

fn entry_key(topic: &Topic, id: EventId) -> Vec<u8> {
    let mut key = key(ENTRY.byte(topic), &[topic.name()], "");
    key.extend(id.epoch.to_be_bytes());
    key.extend(id.offset.to_be_bytes());
    key
}

impl Record {
    /// Reads a record of the data folder. None if it is malformed.
    pub(super) fn parse(key: &[u8], value: &[u8]) -> Option<Self> {
        let (prefix, rest) = key.split_first()?;
        if let Some(topic) = HEAD.topic(*prefix, rest) {
            let (head, touched) = parse_head(value)?;
            return Some(Self::Head { topic, head, touched });
        }
        if let Some((name, rest)) = split_name(rest) {
            if let Some(topic) = ENTRY.topic(*prefix, name.as_bytes()) {
                let (epoch, offset) = rest.split_first_chunk()?;
                let id = EventId::new(u64::from_be_bytes(*epoch), u64::from_be_bytes(offset.try_into().ok()?));
                let (appended_at, stored) = value.split_first_chunk()?;
                let entry = LogEntry { id, stored: Bytes::copy_from_slice(stored) };
                return Some(Self::Entry { topic, entry, appended_at: u64::from_be_bytes(*appended_at) });
            }
            if let Some(topic) = IDEMPOTENCY_KEY.topic(*prefix, name.as_bytes()) {
                let digest = std::str::from_utf8(rest).ok()?.to_owned();
                let StoredIdempotencyRecord { content, answer, until } = serde_json::from_slice(value).ok()?;
                let answer = match answer {
                    StoredAnswer::Appended(id) => RecordedAnswer::Appended(event_id(id)),
                    StoredAnswer::Written(effect) => RecordedAnswer::Written(effect),
                };
                let record = IdempotencyRecord { content, answer, until };
                return Some(Self::IdempotencyKey { topic, digest, record });
            }
        }
        Some(match *prefix {
            FIELD => {
                let (hash, field) = split_name(rest)?;
                let field = FieldName::new(std::str::from_utf8(field).ok()?).ok()?;
                Self::Field { hash: HashName::new(hash).ok()?, field, value: Bytes::copy_from_slice(value) }
            }
            EXPIRY => {
                let hash = HashName::new(std::str::from_utf8(rest).ok()?).ok()?;
                Self::Expiry { hash, expiry: serde_json::from_slice(value).ok()? }
            }
            MEMBER => {
                let (room, subscriber) = split_name(rest)?;
                let subscriber = SubscriberId::new(std::str::from_utf8(subscriber).ok()?).ok()?;
                let member = serde_json::from_slice(value).ok()?;
                Self::Member { room: RoomName::new(room).ok()?, subscriber, member }
            }
            REMOVAL => {
                let id = u64::from_be_bytes(rest.try_into().ok()?);
                Self::Removal { id, removal: serde_json::from_slice(value).ok()? }
            }
            WATCHED => Self::PresenceWatch { room: RoomName::new(std::str::from_utf8(rest).ok()?).ok()? },
            _ => return None,
        })
    }
}

/// A head, and when its log was last touched.
fn parse_head(value: &[u8]) -> Option<(Head, u64)> {
    let stored: StoredHead = serde_json::from_slice(value).ok()?;
    let epoch = |stored: StoredEpoch| Epoch {
        number: stored.epoch,
        end: stored.end,
        lost_since: stored.lost_since.map(event_id),
        late_loss: stored.late.map(|late| LateLoss { since: event_id(late.since), entered: late.entered }),
    };
    let epochs = stored.epochs.into_iter().map(epoch).collect();
    let history = EpochHistory::from_parts(epochs, stored.dropped, event_id(stored.cleared))?;
    let history = history.with_finished(stored.finished.map(event_id));
    let last_message = stored.last_message.map(event_id);
    Some((Head { replication_id: stored.replication_id, history, last_message }, stored.touched))
}

fn event_id((epoch, offset): (u64, u64)) -> EventId {
    EventId::new(epoch, offset)
}

/// A name with its length before it, and what follows it.
fn split_name(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_first()?;
    let (name, rest) = rest.split_at_checked((*length).into())?;
    Some((std::str::from_utf8(name).ok()?, rest))
}

#[cfg(test)]
pub(super) mod tests;
