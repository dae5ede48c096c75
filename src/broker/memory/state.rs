//! What the embedded broker holds in memory. Once it is loaded, only a [`Transaction`] changes it, so that each change is
//! counted, journalled and announced.

mod budget;
mod expiry;
mod hash_step;
mod idempotency;
mod ledger;
mod log;
mod log_step;
mod members;
mod sweep;
mod transaction;

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use bytes::Bytes;

use self::budget::{IDEMPOTENCY_KEY_BYTES, LOG_BYTES, expiry_bytes, hash_bytes, log_bytes, removal_bytes};
pub use self::budget::{OVERHEAD_BYTES, entry_bytes, field_bytes};
use self::expiry::HashExpiries;
pub use self::hash_step::HashStep;
use self::idempotency::IdempotencyRecords;
pub use self::idempotency::{IdempotencyRecord, RecordedAnswer};
use self::ledger::Ledger;
pub use self::log::MemoryLog;
pub use self::log_step::{LogStep, Purpose};
pub use self::members::{MembersRequest, MembersUpdate, RoomMembers, StoredMember};
pub use self::transaction::Transaction;
use super::journal::Lsn;
use super::micros;
use super::record::Record;
use crate::broker::{Fault, HashExpiry, MemoryUse, Removal, RetentionPolicy, SubscriberCounts};
use crate::log::{DataSet, EntryKind};
use crate::names::{Event, HashName, RoomName, Topic};

/// Logs of rooms that were read and never written may use this fraction of the memory, so that readers can't keep
/// publishers out.
const UNUSED_DIVISOR: usize = 8;

/// The logs, hashes, members and removals of this process.
pub struct MemoryState {
    logs: HashMap<Topic, MemoryLog>,
    /// How many of the logs were never written.
    unused_logs: usize,
    idempotency: IdempotencyRecords,
    hashes: BTreeMap<HashName, HashFields>,
    expiries: HashExpiries,
    /// The last change of any hash.
    hashes_lsn: Lsn,
    members: HashMap<RoomName, RoomMembers>,
    /// By the time at which each was stored, in microseconds since 1970.
    removals: BTreeMap<u64, Removal>,
    ledger: Ledger,
    retention: RetentionPolicy,
    /// Names this process in the heads of logs.
    replication_id: String,
    /// Names this process in positions of logs without a head.
    id: u64,
    /// The process's own subscribers, which are neither counted nor journalled.
    pub subscribers: SubscriberCounts,
    /// The process's own streams.
    pub streams: u64,
}

/// The values of a hash by the names of their fields.
pub type HashFields = BTreeMap<String, Bytes>;

impl MemoryState {
    pub fn new(retention: RetentionPolicy, max_bytes: usize) -> Self {
        Self {
            logs: HashMap::new(),
            unused_logs: 0,
            idempotency: IdempotencyRecords::default(),
            hashes: BTreeMap::new(),
            expiries: HashExpiries::default(),
            hashes_lsn: 0,
            members: HashMap::new(),
            removals: BTreeMap::new(),
            ledger: Ledger::new(max_bytes),
            retention,
            replication_id: uuid::Uuid::new_v4().simple().to_string(),
            id: fastrand::u64(..),
            subscribers: SubscriberCounts::new(),
            streams: 0,
        }
    }

    /// Begins a step at this time, in microseconds since 1970.
    pub fn begin(&mut self, now: u64) -> Transaction<'_> {
        Transaction { state: self, now }
    }

    /// Collects changes for a journal from now on.
    pub fn start_journal(&mut self) {
        self.ledger.start_journal();
    }

    /// A log, unless the lifetime of its head has passed.
    pub fn log(&self, topic: &Topic, now: u64) -> Option<&MemoryLog> {
        self.logs.get(topic).filter(|log| !log.is_expired(now, self.retention.for_topic(topic)))
    }

    /// How to judge positions of logs without a head: those of an earlier process are not valid.
    pub fn data_set(&self, topic: &Topic) -> DataSet {
        let retention = self.retention.for_topic(topic);
        DataSet { id: self.id, head_lifetime: micros(retention.age + retention.head) }
    }

    /// The last change of a log, to be replaced by a later one.
    pub fn log_lsn_mut(&mut self, topic: &Topic) -> Option<&mut Lsn> {
        self.logs.get_mut(topic).map(|log| &mut log.lsn)
    }

    pub fn log_count(&self) -> usize {
        self.logs.len()
    }

    /// A hash's fields and values, unless it has expired.
    pub fn fields(&self, hash: &HashName, now: u64) -> Option<&HashFields> {
        self.hashes.get(hash).filter(|_| !self.expiries.is_due(hash, now))
    }

    /// The first names of hashes that begin with `prefix` and come after `after`, without those that have expired.
    pub fn hash_names(&self, prefix: &str, after: &str, count: usize, now: u64) -> Vec<HashName> {
        let start = if after < prefix { Bound::Included(prefix) } else { Bound::Excluded(after) };
        let names = self.hashes.range::<str, _>((start, Bound::Unbounded)).map(|(name, _)| name);
        let with_prefix = names.take_while(|name| name.as_str().starts_with(prefix));
        with_prefix.filter(|name| !self.expiries.is_due(name, now)).take(count).cloned().collect()
    }

    /// When a hash expires, if it does and has not yet.
    pub fn expiry(&self, hash: &HashName, now: u64) -> Option<HashExpiry> {
        self.expiries.get(hash).filter(|_| !self.expiries.is_due(hash, now))
    }

    /// A hash that has expired and is still in the memory.
    pub fn due_hash(&self, now: u64) -> Option<HashName> {
        self.expiries.first_due(now)
    }

    pub fn hash_count(&self) -> usize {
        self.hashes.len()
    }

    /// The last change of any hash.
    pub fn hashes_lsn(&self) -> Lsn {
        self.hashes_lsn
    }

    pub fn hashes_lsn_mut(&mut self) -> &mut Lsn {
        &mut self.hashes_lsn
    }

    pub fn members(&self, room: &RoomName) -> Option<&RoomMembers> {
        self.members.get(room)
    }

    /// The removals by the time at which each was stored, in microseconds since 1970.
    pub fn removals(&self) -> &BTreeMap<u64, Removal> {
        &self.removals
    }

    pub fn used_bytes(&self) -> usize {
        self.ledger.used_bytes()
    }

    /// How much of the memory is in use.
    pub fn memory_use(&self) -> MemoryUse {
        MemoryUse { used: self.ledger.used_bytes() as u64, limit: self.ledger.max_bytes() as u64 }
    }

    /// Why writes fail, if there is no room for them.
    pub fn fault(&mut self) -> Option<Fault> {
        self.ledger.fault()
    }

    /// How many logs there may be that were never written.
    fn max_unused_logs(&self) -> usize {
        self.ledger.max_bytes() / UNUSED_DIVISOR / LOG_BYTES
    }

    /// Adds a record of the data folder. Does not check the limit. None if the record is an entry of a log without a head.
    pub fn load(&mut self, record: Record) -> Option<()> {
        let bytes = match record {
            Record::Head { topic, head, touched } => {
                let log = MemoryLog::from_stored(head, touched);
                self.unused_logs += usize::from(log.is_unused());
                let bytes = log_bytes(&topic);
                self.logs.insert(topic, log);
                bytes
            }
            Record::Entry { topic, entry, appended_at } => {
                let bytes = entry_bytes(&entry.stored);
                let is_presence = Event::decode(&entry.stored).is_ok_and(|event| event.is_presence());
                let kind = if is_presence { EntryKind::Presence } else { EntryKind::Message };
                self.logs.get_mut(&topic)?.entries.push(kind, entry, appended_at);
                bytes
            }
            Record::IdempotencyKey { topic, digest, record } => {
                self.idempotency.load(topic, digest, record);
                IDEMPOTENCY_KEY_BYTES
            }
            Record::Field { hash, field, value } => {
                let bytes = field_bytes(field.as_str(), &value);
                let new_hash = if self.hashes.contains_key(&hash) { 0 } else { hash_bytes(&hash) };
                self.hashes.entry(hash).or_default().insert(field.as_str().into(), value);
                bytes + new_hash
            }
            Record::Expiry { hash, expiry } => {
                let bytes = expiry_bytes(&hash);
                self.expiries.set(hash, Some(expiry));
                bytes
            }
            Record::Member { room, subscriber, member } => {
                let member = StoredMember { is_stale: true, ..member };
                let bytes = member.bytes();
                self.members.entry(room).or_default().members.insert(subscriber, member);
                bytes
            }
            Record::PresenceWatch { room } => {
                self.members.entry(room).or_default().is_watched = true;
                OVERHEAD_BYTES
            }
            Record::Removal { id, removal } => {
                let bytes = removal_bytes(&removal);
                self.removals.insert(id, removal);
                bytes
            }
        };
        self.ledger.loaded(bytes);
        Some(())
    }
}

#[cfg(test)]
mod tests;
