//! What the data folder holds, and in which form. Another form is another format: see `store.rs`.
//!
//! | Key | Value |
//! | --- | --- |
//! | `h`, room, or `H`, hash | a head, as JSON |
//! | `l`, room, or `L`, hash, epoch, offset | when the entry was appended; the event in its stored form |
//! | `f`, hash, field | the value |
//! | `m`, room, subscriber | a member, as JSON |
//! | `o`, room, or `O`, hash, digest of a key | what the idempotency key has record, as JSON |
//! | `r`, time in microseconds | a removal, as JSON |
//! | `w`, room | nothing: somebody has asked to see who comes and goes |
//!
//! Numbers are eight bytes, the highest first. A name that something follows has its length before it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::entries::{Entries, Log};
use super::presence::StoredMember;
use super::store::StoreError;
use super::{IDEMPOTENCY_BYTES, IdempotencyRecord, OVERHEAD_BYTES, State};
use crate::broker::{LogEntry, Removal};
use crate::log::{Epoch, EpochHistory, Head, LateLoss};
use crate::names::{EventId, FieldName, HashName, RoomName, SubscriberId, Topic};

const HEAD: LogKind = LogKind { room: b'h', hash: b'H' };
/// After the heads in the order of keys, so that an entry's head is loaded before it.
const ENTRY: LogKind = LogKind { room: b'l', hash: b'L' };
const IDEMPOTENCY: LogKind = LogKind { room: b'o', hash: b'O' };
const FIELD: u8 = b'f';
const MEMBER: u8 = b'm';
const REMOVAL: u8 = b'r';
const WATCHED: u8 = b'w';

/// How keys about a log begin, by what the log belongs to.
struct LogKind {
    room: u8,
    hash: u8,
}

impl LogKind {
    fn of(&self, topic: &Topic) -> u8 {
        match topic {
            Topic::Room(_) => self.room,
            Topic::Hash(_) => self.hash,
        }
    }

    /// The topic with this name, if a key of this kind begins like that.
    fn topic(&self, kind: u8, name: &[u8]) -> Option<Topic> {
        let name = std::str::from_utf8(name).ok()?;
        if kind == self.room {
            RoomName::new(name).ok().map(Topic::Room)
        } else if kind == self.hash {
            HashName::new(name).ok().map(Topic::Hash)
        } else {
            None
        }
    }
}

/// A key's new value, or that the key goes.
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
}

#[derive(Serialize, Deserialize)]
struct StoredEpoch {
    epoch: u64,
    end: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lost_since: Option<(u64, u64)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    late: Option<StoredLate>,
}

#[derive(Serialize, Deserialize)]
struct StoredLate {
    since: (u64, u64),
    entered: u64,
}

#[derive(Serialize, Deserialize)]
struct StoredIdempotencyRecord {
    content: String,
    id: (u64, u64),
    until: u64,
}

impl RecordChange {
    /// What it occupies until it is durable.
    pub(super) fn bytes(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Bytes::len) + OVERHEAD_BYTES
    }

    pub(super) fn head(topic: &Topic, log: &Log) -> Self {
        let history = &log.head.history;
        let epoch = |epoch: &Epoch| StoredEpoch {
            epoch: epoch.epoch,
            end: epoch.end,
            lost_since: epoch.lost_since.map(pair),
            late: epoch.late.map(|late| StoredLate { since: pair(late.since), entered: late.entered }),
        };
        let stored = StoredHead {
            replication_id: log.head.replication_id.clone(),
            touched: log.touched,
            dropped: history.dropped(),
            cleared: pair(history.cleared()),
            epochs: history.epochs().iter().map(epoch).collect(),
        };
        Self { key: key(HEAD.of(topic), &[], topic.name()), value: Some(json(&stored)) }
    }

    pub(super) fn no_head(topic: &Topic) -> Self {
        Self { key: key(HEAD.of(topic), &[], topic.name()), value: None }
    }

    pub(super) fn entry(topic: &Topic, entry: &LogEntry, at: u64) -> Self {
        let value = [&at.to_be_bytes(), &*entry.stored].concat();
        Self { key: entry_key(topic, entry.id), value: Some(value.into()) }
    }

    pub(super) fn no_entry(topic: &Topic, id: EventId) -> Self {
        Self { key: entry_key(topic, id), value: None }
    }

    pub(super) fn field(hash: &HashName, field: &str, value: Option<Bytes>) -> Self {
        Self { key: key(FIELD, &[hash.as_str()], field), value }
    }

    pub(super) fn idempotency_key(topic: &Topic, digest: &str, record: &IdempotencyRecord) -> Self {
        let stored =
            StoredIdempotencyRecord { content: record.content.clone(), id: pair(record.id), until: record.until };
        Self { key: key(IDEMPOTENCY.of(topic), &[topic.name()], digest), value: Some(json(&stored)) }
    }

    pub(super) fn member(room: &RoomName, subscriber: &SubscriberId, present: Option<&StoredMember>) -> Self {
        Self { key: key(MEMBER, &[room.as_str()], subscriber.as_str()), value: present.map(json) }
    }

    pub(super) fn watched(room: &RoomName, watched: bool) -> Self {
        Self { key: key(WATCHED, &[], room.as_str()), value: watched.then(Bytes::new) }
    }

    pub(super) fn removal(id: u64, removal: Option<&Removal>) -> Self {
        Self { key: [&[REMOVAL][..], &id.to_be_bytes()].concat(), value: removal.map(json) }
    }

    pub(super) fn no_idempotency_key(topic: &Topic, digest: &str) -> Self {
        Self { key: key(IDEMPOTENCY.of(topic), &[topic.name()], digest), value: None }
    }
}

fn json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("numbers and texts are JSON").into()
}

fn pair(id: EventId) -> (u64, u64) {
    (id.epoch, id.offset)
}

fn id((epoch, offset): (u64, u64)) -> EventId {
    EventId::new(epoch, offset)
}

fn key(kind: u8, names: &[&str], last: &str) -> Vec<u8> {
    let mut key = vec![kind];
    for name in names {
        key.push(u8::try_from(name.len()).expect("names have at most 128 bytes"));
        key.extend(name.as_bytes());
    }
    key.extend(last.as_bytes());
    key
}

fn entry_key(topic: &Topic, id: EventId) -> Vec<u8> {
    let mut key = key(ENTRY.of(topic), &[topic.name()], "");
    key.extend(id.epoch.to_be_bytes());
    key.extend(id.offset.to_be_bytes());
    key
}

impl State {
    /// Takes back what a change has left in the folder.
    pub(super) fn restore(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.restored(key, value).ok_or_else(|| {
            let key = String::from_utf8_lossy(key);
            StoreError::Damaged(format!("{key:?} can't be read"))
        })
    }

    fn restored(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let (kind, rest) = key.split_first()?;
        if let Some(topic) = HEAD.topic(*kind, rest) {
            let (head, touched) = head(serde_json::from_slice(value).ok()?)?;
            self.logs.insert(topic, Log { head, entries: Entries::default(), touched, lsn: 0 });
            self.bytes += OVERHEAD_BYTES;
            return Some(());
        }
        if let Some((name, rest)) = name(rest) {
            if let Some(topic) = ENTRY.topic(*kind, name.as_bytes()) {
                let log = self.logs.get_mut(&topic)?;
                let (epoch, offset) = rest.split_first_chunk()?;
                let id = EventId::new(u64::from_be_bytes(*epoch), u64::from_be_bytes(offset.try_into().ok()?));
                let (at, stored) = value.split_first_chunk()?;
                let entry = LogEntry { id, stored: Bytes::copy_from_slice(stored) };
                self.bytes += log.entries.add(entry, u64::from_be_bytes(*at));
                return Some(());
            }
            if let Some(topic) = IDEMPOTENCY.topic(*kind, name.as_bytes()) {
                let place = (topic, std::str::from_utf8(rest).ok()?.into());
                let StoredIdempotencyRecord { content, id: of, until } = serde_json::from_slice(value).ok()?;
                self.idempotency.insert(place, IdempotencyRecord { content, id: id(of), until });
                self.bytes += IDEMPOTENCY_BYTES;
                return Some(());
            }
        }
        match *kind {
            FIELD => {
                let (hash, field) = name(rest)?;
                let field = FieldName::new(std::str::from_utf8(field).ok()?).ok()?;
                self.insert(&HashName::new(hash).ok()?, &field, Bytes::copy_from_slice(value));
            }
            MEMBER => {
                let (room, subscriber) = name(rest)?;
                let subscriber = SubscriberId::new(std::str::from_utf8(subscriber).ok()?).ok()?;
                let present = StoredMember { is_stale: true, ..serde_json::from_slice(value).ok()? };
                self.put_member(RoomName::new(room).ok()?, subscriber, present);
            }
            REMOVAL => {
                let id = u64::from_be_bytes(rest.try_into().ok()?);
                self.put_removal(id, serde_json::from_slice(value).ok()?);
            }
            WATCHED => {
                let room = RoomName::new(std::str::from_utf8(rest).ok()?).ok()?;
                self.members.entry(room).or_default().watched = true;
            }
            _ => return None,
        }
        Some(())
    }
}

fn head(stored: StoredHead) -> Option<(Head, u64)> {
    let epoch = |stored: StoredEpoch| Epoch {
        epoch: stored.epoch,
        end: stored.end,
        lost_since: stored.lost_since.map(id),
        late: stored.late.map(|late| LateLoss { since: id(late.since), entered: late.entered }),
    };
    let epochs = stored.epochs.into_iter().map(epoch).collect();
    let history = EpochHistory::from_parts(epochs, stored.dropped, id(stored.cleared))?;
    Some((Head { replication_id: stored.replication_id, history }, stored.touched))
}

/// A name with its length before it, and what follows.
fn name(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_first()?;
    let (name, rest) = rest.split_at_checked((*length).into())?;
    Some((std::str::from_utf8(name).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_stored_reads_as_what_it_was() {
        let (room, hash) = (RoomName::new("a").unwrap(), HashName::new("h").unwrap());
        let topic = Topic::from(room.clone());
        let epochs = vec![
            Epoch::new(5, 3),
            Epoch {
                lost_since: Some(EventId::new(5, 2)),
                late: Some(LateLoss { since: EventId::new(5, 1), entered: 5 }),
                ..Epoch::new(9, 4)
            },
        ];
        let history = EpochHistory::from_parts(epochs, 4, EventId::new(5, 2)).unwrap();
        let head = Head { replication_id: "mark".into(), history };
        let log = Log { head: head.clone(), entries: Entries::default(), touched: 77, lsn: 0 };
        let entry = LogEntry { id: EventId::new(9, 4), stored: Bytes::from_static(b"\x00stored") };
        let record = IdempotencyRecord { content: "c".into(), id: entry.id, until: 99 };
        let subscriber = SubscriberId::new("ann").unwrap();
        let (owner, profile) = ("o".into(), "\"subscriber\":\"ann\"".into());
        let address = Some("192.0.2.1".parse().unwrap());
        let present = StoredMember { generation: 7, since: "now".into(), owner, address, profile, is_stale: false };
        let removal =
            Removal { room: Some(room.clone()), subscriber: Some(subscriber.clone()), ..Removal::default() };
        let changes = [
            RecordChange::head(&topic, &log),
            RecordChange::entry(&topic, &entry, 66),
            RecordChange::field(&hash, "é f", Some(Bytes::from_static(b"\xff"))),
            RecordChange::idempotency_key(&topic, "digest", &record),
            RecordChange::member(&room, &subscriber, Some(&present)),
            RecordChange::watched(&room, true),
            RecordChange::removal(88, Some(&removal)),
        ];
        assert!(changes[0].key < changes[1].key, "a head is loaded before its entries");
        let mut state = State::default();
        for change in &changes {
            state.restore(&change.key, change.value.as_ref().unwrap()).unwrap();
        }
        let log = &state.logs[&topic];
        assert_eq!((&log.head, log.touched), (&head, 77));
        assert_eq!(log.entries.select(crate::broker::ReadRange::Oldest, 9), [entry]);
        assert_eq!(state.hashes[&hash]["é f"], b"\xff"[..]);
        let kept = &state.idempotency[&(topic.clone(), "digest".into())];
        assert_eq!((kept.content.as_str(), kept.id, kept.until), ("c", EventId::new(9, 4), 99));
        let roll = &state.members[&room];
        assert!(roll.watched);
        assert_eq!(roll.members[&subscriber], StoredMember { is_stale: true, ..present });
        assert_eq!(state.removals[&88], removal);
        // What goes has the key that it had.
        assert_eq!(RecordChange::no_head(&topic).key, changes[0].key);
        assert_eq!(RecordChange::no_entry(&topic, EventId::new(9, 4)).key, changes[1].key);
        assert_eq!(RecordChange::no_idempotency_key(&topic, "digest").key, changes[3].key);
    }

    proptest! {
        #[test]
        fn junk_is_named_and_never_a_panic(
            kind in prop::sample::select(b"hHlLoOfmrwx".to_vec()),
            rest in prop::collection::vec(any::<u8>(), 0..40),
            value in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let key = [&[kind][..], &rest].concat();
            let _ = State::default().restore(&key, &value);
        }
    }
}
