//! What the data folder holds, and in which form. Another form is another format: see `store.rs`.
//!
//! | Key | Value |
//! | --- | --- |
//! | `h`, room | a head, as JSON |
//! | `l`, room, epoch, offset | when the entry was appended; the event in its stored form |
//! | `f`, hash, field | the value |
//! | `m`, room, subscriber | a member, as JSON |
//! | `o`, room, digest of a key | what the idempotency key has done, as JSON |
//! | `r`, time in microseconds | a removal, as JSON |
//! | `w`, room | nothing: somebody has asked to see who comes and goes |
//!
//! Numbers are eight bytes, the highest first. A name that something follows has its length before it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::log::{Entries, Log};
use super::roster::Present;
use super::store::StoreError;
use super::{Done, ONCE_BYTES, OVERHEAD_BYTES, State};
use crate::broker::{Entry, Removal};
use crate::follow::{Chain, Epoch, Head, Late};
use crate::room::{EventId, FieldName, HashName, RoomName, SubscriberId};

const HEAD: u8 = b'h';
/// After the heads, so that an entry's head is loaded before it.
const ENTRY: u8 = b'l';
const FIELD: u8 = b'f';
const MEMBER: u8 = b'm';
const ONCE: u8 = b'o';
const REMOVAL: u8 = b'r';
const WATCHED: u8 = b'w';

/// A key's new value, or that the key goes.
pub(super) struct Change {
    pub(super) key: Vec<u8>,
    pub(super) value: Option<Bytes>,
}

#[derive(Serialize, Deserialize)]
struct StoredHead {
    mark: String,
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
struct StoredDone {
    content: String,
    id: (u64, u64),
    until: u64,
}

impl Change {
    /// What it occupies until it is durable.
    pub(super) fn bytes(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Bytes::len) + OVERHEAD_BYTES
    }

    pub(super) fn head(room: &RoomName, log: &Log) -> Self {
        let chain = &log.head.chain;
        let epoch = |epoch: &Epoch| StoredEpoch {
            epoch: epoch.epoch,
            end: epoch.end,
            lost_since: epoch.lost_since.map(pair),
            late: epoch.late.map(|late| StoredLate { since: pair(late.since), entered: late.entered }),
        };
        let stored = StoredHead {
            mark: log.head.mark.clone(),
            touched: log.touched,
            dropped: chain.dropped(),
            cleared: pair(chain.cleared()),
            epochs: chain.epochs().iter().map(epoch).collect(),
        };
        Self { key: key(HEAD, &[], room.as_str()), value: Some(json(&stored)) }
    }

    pub(super) fn no_head(room: &RoomName) -> Self {
        Self { key: key(HEAD, &[], room.as_str()), value: None }
    }

    pub(super) fn entry(room: &RoomName, entry: &Entry, at: u64) -> Self {
        let value = [&at.to_be_bytes(), &*entry.stored].concat();
        Self { key: entry_key(room, entry.id), value: Some(value.into()) }
    }

    pub(super) fn no_entry(room: &RoomName, id: EventId) -> Self {
        Self { key: entry_key(room, id), value: None }
    }

    pub(super) fn field(hash: &HashName, field: &str, value: Option<Bytes>) -> Self {
        Self { key: key(FIELD, &[hash.as_str()], field), value }
    }

    pub(super) fn once(room: &RoomName, digest: &str, done: &Done) -> Self {
        let stored = StoredDone { content: done.content.clone(), id: pair(done.id), until: done.until };
        Self { key: key(ONCE, &[room.as_str()], digest), value: Some(json(&stored)) }
    }

    pub(super) fn member(room: &RoomName, subscriber: &SubscriberId, present: Option<&Present>) -> Self {
        Self { key: key(MEMBER, &[room.as_str()], subscriber.as_str()), value: present.map(json) }
    }

    pub(super) fn watched(room: &RoomName, watched: bool) -> Self {
        Self { key: key(WATCHED, &[], room.as_str()), value: watched.then(Bytes::new) }
    }

    pub(super) fn removal(id: u64, removal: Option<&Removal>) -> Self {
        Self { key: [&[REMOVAL][..], &id.to_be_bytes()].concat(), value: removal.map(json) }
    }

    pub(super) fn no_once(room: &RoomName, digest: &str) -> Self {
        Self { key: key(ONCE, &[room.as_str()], digest), value: None }
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

fn entry_key(room: &RoomName, id: EventId) -> Vec<u8> {
    let mut key = key(ENTRY, &[room.as_str()], "");
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
        match *kind {
            HEAD => {
                let room = RoomName::new(std::str::from_utf8(rest).ok()?).ok()?;
                let (head, touched) = head(serde_json::from_slice(value).ok()?)?;
                self.logs.insert(room, Log { head, entries: Entries::default(), touched, ticket: 0 });
                self.bytes += OVERHEAD_BYTES;
            }
            ENTRY => {
                let (room, rest) = name(rest)?;
                let log = self.logs.get_mut(&RoomName::new(room).ok()?)?;
                let (epoch, offset) = rest.split_first_chunk()?;
                let id = EventId::new(u64::from_be_bytes(*epoch), u64::from_be_bytes(offset.try_into().ok()?));
                let (at, stored) = value.split_first_chunk()?;
                let entry = Entry { id, stored: Bytes::copy_from_slice(stored) };
                self.bytes += log.entries.add(entry, u64::from_be_bytes(*at));
            }
            FIELD => {
                let (hash, field) = name(rest)?;
                let field = FieldName::new(std::str::from_utf8(field).ok()?).ok()?;
                self.insert(&HashName::new(hash).ok()?, &field, Bytes::copy_from_slice(value));
            }
            ONCE => {
                let (room, digest) = name(rest)?;
                let place = (RoomName::new(room).ok()?, std::str::from_utf8(digest).ok()?.into());
                let StoredDone { content, id: of, until } = serde_json::from_slice(value).ok()?;
                self.once.insert(place, Done { content, id: id(of), until });
                self.bytes += ONCE_BYTES;
            }
            MEMBER => {
                let (room, subscriber) = name(rest)?;
                let subscriber = SubscriberId::new(std::str::from_utf8(subscriber).ok()?).ok()?;
                let present = Present { is_ghost: true, ..serde_json::from_slice(value).ok()? };
                self.put_member(RoomName::new(room).ok()?, subscriber, present);
            }
            REMOVAL => {
                let id = u64::from_be_bytes(rest.try_into().ok()?);
                self.put_removal(id, serde_json::from_slice(value).ok()?);
            }
            WATCHED => {
                let room = RoomName::new(std::str::from_utf8(rest).ok()?).ok()?;
                self.rolls.entry(room).or_default().watched = true;
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
        late: stored.late.map(|late| Late { since: id(late.since), entered: late.entered }),
    };
    let epochs = stored.epochs.into_iter().map(epoch).collect();
    let chain = Chain::from_parts(epochs, stored.dropped, id(stored.cleared))?;
    Some((Head { mark: stored.mark, chain }, stored.touched))
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
        let epochs = vec![
            Epoch::new(5, 3),
            Epoch {
                lost_since: Some(EventId::new(5, 2)),
                late: Some(Late { since: EventId::new(5, 1), entered: 5 }),
                ..Epoch::new(9, 4)
            },
        ];
        let chain = Chain::from_parts(epochs, 4, EventId::new(5, 2)).unwrap();
        let head = Head { mark: "mark".into(), chain };
        let log = Log { head: head.clone(), entries: Entries::default(), touched: 77, ticket: 0 };
        let entry = Entry { id: EventId::new(9, 4), stored: Bytes::from_static(b"\x00stored") };
        let done = Done { content: "c".into(), id: entry.id, until: 99 };
        let subscriber = SubscriberId::new("ann").unwrap();
        let (owner, card) = ("o".into(), "\"subscriber\":\"ann\"".into());
        let address = Some("192.0.2.1".parse().unwrap());
        let present = Present { stamp: 7, since: "now".into(), owner, address, card, is_ghost: false };
        let removal =
            Removal { room: Some(room.clone()), subscriber: Some(subscriber.clone()), ..Removal::default() };
        let changes = [
            Change::head(&room, &log),
            Change::entry(&room, &entry, 66),
            Change::field(&hash, "é f", Some(Bytes::from_static(b"\xff"))),
            Change::once(&room, "digest", &done),
            Change::member(&room, &subscriber, Some(&present)),
            Change::watched(&room, true),
            Change::removal(88, Some(&removal)),
        ];
        assert!(changes[0].key < changes[1].key, "a head is loaded before its entries");
        let mut state = State::default();
        for change in &changes {
            state.restore(&change.key, change.value.as_ref().unwrap()).unwrap();
        }
        let log = &state.logs[&room];
        assert_eq!((&log.head, log.touched), (&head, 77));
        assert_eq!(log.entries.select(crate::broker::Range::Oldest, 9), [entry]);
        assert_eq!(state.hashes[&hash]["é f"], b"\xff"[..]);
        let kept = &state.once[&(room.clone(), "digest".into())];
        assert_eq!((kept.content.as_str(), kept.id, kept.until), ("c", EventId::new(9, 4), 99));
        let roll = &state.rolls[&room];
        assert!(roll.watched);
        assert_eq!(roll.members[&subscriber], Present { is_ghost: true, ..present });
        assert_eq!(state.removals[&88], removal);
        // What goes has the key that it had.
        assert_eq!(Change::no_head(&room).key, changes[0].key);
        assert_eq!(Change::no_entry(&room, EventId::new(9, 4)).key, changes[1].key);
        assert_eq!(Change::no_once(&room, "digest").key, changes[3].key);
    }

    proptest! {
        #[test]
        fn junk_is_named_and_never_a_panic(
            kind in prop::sample::select(vec![HEAD, ENTRY, FIELD, MEMBER, ONCE, REMOVAL, WATCHED, b'x']),
            rest in prop::collection::vec(any::<u8>(), 0..40),
            value in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let key = [&[kind][..], &rest].concat();
            let _ = State::default().restore(&key, &value);
        }
    }
}
