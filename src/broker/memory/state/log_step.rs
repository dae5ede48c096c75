//! A step on a log.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use bytes::Bytes;

use super::MemoryState;
use super::budget::{IDEMPOTENCY_KEY_BYTES, entry_bytes, log_bytes};
use super::idempotency::{IdempotencyRecords, RecordedAnswer};
use super::ledger::Ledger;
use super::log::MemoryLog;
use super::members::RoomMembers;
use super::transaction::Transaction;
use crate::broker::memory::announcement::Announcement;
use crate::broker::memory::micros;
use crate::broker::memory::record::RecordChange;
use crate::broker::{BrokerError, Fault, FaultKind, IdempotencyKey, LogEntry, Retention};
use crate::log::{EntryKind, EpochHistory, Head};
use crate::names::{Event, EventId, RoomName, Topic};

/// A log without entries that has subscribers is renewed about this often.
const RENEW_EVERY: Duration = Duration::from_mins(1);

/// What a step on a log is for, which decides how it treats the head of an earlier process.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The step may append, so it begins an epoch of this process's own.
    Append,
    /// The step may append presence events, which readers alone cause: like [`Self::Append`], but there may be no more
    /// logs without messages than others leave room for.
    AppendPresence,
    /// The step gives out no new id, so the head stays as it is: restarts alone add no epochs to a quiet room's
    /// history. The exception is a read from a position above the head's end: a part of what was stored is gone, and a
    /// stream can only go on from that position in a later epoch.
    Read(Option<EventId>),
}

impl Purpose {
    /// Whether a head of an earlier process gets an epoch of this process.
    pub(super) fn begins_own_epoch(self, head: &Head) -> bool {
        match self {
            Self::Append | Self::AppendPresence => true,
            Self::Read(from) => from.is_some_and(|from| from > head.history.end()),
        }
    }
}

/// A log that a step has opened.
pub struct LogStep<'a> {
    topic: &'a Topic,
    log: &'a mut MemoryLog,
    retention: Retention,
    idempotency: &'a mut IdempotencyRecords,
    unused_logs: &'a mut usize,
    pub(super) members: &'a mut HashMap<RoomName, RoomMembers>,
    pub(super) ledger: &'a mut Ledger,
    pub(super) now: u64,
}

impl Transaction<'_> {
    /// The message that was appended with a key. Fails if the key was used with other content.
    pub fn recorded_append(
        &self,
        topic: &Topic,
        key: Option<&IdempotencyKey>,
    ) -> Result<Option<EventId>, BrokerError> {
        let Some(key) = key else { return Ok(None) };
        Ok(self.state.idempotency.recorded(topic, key, self.now)?.and_then(|answer| match answer {
            RecordedAnswer::Appended(id) => Some(*id),
            RecordedAnswer::Written(_) => None,
        }))
    }

    /// Whether the log has its final message.
    pub fn is_finished(&self, topic: &Topic) -> bool {
        self.state.log(topic, self.now).is_some_and(|log| log.head().history.finished().is_some())
    }

    /// Whether no message came after one of these positions, as [`Head::is_at_end`] says. Opens no log: a refused append
    /// makes none.
    pub fn is_at_end(&self, topic: &Topic, watermarks: &[EventId], positions: &[EventId]) -> bool {
        let data_set = self.state.data_set(topic);
        let Some(log) = self.state.log(topic, self.now) else {
            let new = EpochHistory::new(self.now);
            let is_start = |position: &EventId| new.resume_from(*position, data_set) == new.end();
            return watermarks.is_empty() && positions.iter().any(is_start);
        };
        let head = log.head();
        let is_at_end = |position: &EventId| head.is_at_end(head.history.resume_from(*position, data_set));
        !log.conflicts_with(watermarks) && positions.iter().any(is_at_end)
    }

    /// Opens a log: drops what has expired, and ensures the head's epoch. Makes the log if there is none.
    pub fn open_log<'a>(
        &'a mut self,
        topic: &'a Topic,
        watermarks: &[EventId],
        purpose: Purpose,
    ) -> Result<LogStep<'a>, BrokerError> {
        self.expire_log(topic);
        let now = self.now;
        let max_unused_logs = self.state.max_unused_logs();
        let MemoryState { logs, unused_logs, idempotency, members, ledger, retention, replication_id, .. } =
            &mut *self.state;
        let (log, is_new) = match logs.entry(topic.clone()) {
            Entry::Occupied(found) => (found.into_mut(), false),
            Entry::Vacant(free) => {
                ledger.require(log_bytes(topic))?;
                if purpose != Purpose::Append && *unused_logs >= max_unused_logs {
                    let detail = format!(
                        "{unused_logs} rooms were read and never written, and no more such rooms are accepted"
                    );
                    return Err(BrokerError::Unavailable(Fault::new(FaultKind::OutOfMemory, detail)));
                }
                (free.insert(MemoryLog::new(now)), true)
            }
        };
        *unused_logs -= usize::from(log.is_unused());
        let has_changed = log.ensure_epoch(watermarks, purpose, replication_id, now);
        *unused_logs += usize::from(log.is_unused());
        if is_new {
            ledger.added(log_bytes(topic), || RecordChange::head(topic, log.head(), log.touched));
        } else if has_changed {
            ledger.changed(|| RecordChange::head(topic, log.head(), log.touched));
        }
        let retention = retention.for_topic(topic);
        Ok(LogStep { topic, log, retention, idempotency, unused_logs, members, ledger, now })
    }

    /// Drops entries that are too old, and the log with the lifetime of its head.
    fn expire_log(&mut self, topic: &Topic) {
        let MemoryState { logs, unused_logs, ledger, retention, .. } = &mut *self.state;
        let Some(log) = logs.get_mut(topic) else { return };
        let retention = retention.for_topic(topic);
        log.drop_expired(self.now, retention, |entry| drop_entry(topic, &entry, ledger));
        if log.is_expired(self.now, retention) {
            drop_log(topic, log, unused_logs, ledger);
            logs.remove(topic);
        }
    }

    /// Renews a log without entries, unless it was renewed recently. None if there is no log.
    pub fn renew_log(&mut self, topic: &Topic) -> Option<&MemoryLog> {
        let MemoryState { logs, ledger, retention, .. } = &mut *self.state;
        let log = logs.get_mut(topic)?;
        let renew_after = RENEW_EVERY.min(retention.for_topic(topic).head / 4);
        // Changes do not renew the log of a hash.
        let needs_renewal = log.entries.len() == 0 || topic.hash().is_some();
        if needs_renewal && log.is_untouched(self.now, renew_after) {
            log.touched = self.now;
            ledger.changed(|| RecordChange::head(topic, log.head(), log.touched));
        }
        Some(log)
    }
}

/// Accounts for an entry that was dropped.
pub(super) fn drop_entry(topic: &Topic, entry: &LogEntry, ledger: &mut Ledger) {
    ledger.removed(entry_bytes(&entry.stored), || RecordChange::no_entry(topic, entry.id));
}

/// Empties a log that is being removed, and accounts for it. An expired log still has entries if the clock was set back
/// after them.
pub(super) fn drop_log(topic: &Topic, log: &mut MemoryLog, unused_logs: &mut usize, ledger: &mut Ledger) {
    log.entries.clear(|entry| drop_entry(topic, &entry, ledger));
    *unused_logs -= usize::from(log.is_unused());
    ledger.removed(log_bytes(topic), || RecordChange::no_head(topic));
}

impl LogStep<'_> {
    /// The log as the step has left it so far.
    pub fn log(&self) -> &MemoryLog {
        self.log
    }

    /// Fails if there is no room for so many more bytes.
    pub fn require(&mut self, bytes: usize) -> Result<(), BrokerError> {
        self.ledger.require(bytes)
    }

    /// Appends a message that is not final, announces it, and trims the log. Does not check the limit; see [`Self::require`].
    pub fn append(&mut self, stored: Bytes) -> EventId {
        self.append_entry(EntryKind::Message, stored, false)
    }

    /// Appends a presence event like a message.
    pub fn append_presence(&mut self, event: &Event) {
        self.append_entry(EntryKind::Presence, event.encode(), false);
    }

    fn append_entry(&mut self, kind: EntryKind, stored: Bytes, is_final: bool) -> EventId {
        let Self { topic, log, retention, unused_logs, ledger, now, .. } = self;
        **unused_logs -= usize::from(log.is_unused());
        let (id, last_message) = log.head_mut().extend(kind);
        if is_final {
            log.head_mut().history.finish();
        }
        **unused_logs += usize::from(log.is_unused());
        // The log of a hash lives as long as somebody watches the hash.
        if topic.hash().is_none() {
            log.touched = *now;
        }
        let entry = LogEntry { id, stored: Event::with_last_message(stored, last_message) };
        ledger.changed(|| RecordChange::head(topic, log.head(), log.touched));
        ledger.added(entry_bytes(&entry.stored), || RecordChange::entry(topic, &entry, *now));
        ledger.announce(Announcement::Appended((*topic).clone(), entry.clone()));
        log.entries.push(kind, entry, *now);
        log.entries.trim(*retention, |entry| drop_entry(topic, &entry, ledger));
        id
    }

    /// Appends a message, which may be final, and records its key if it has one.
    pub fn append_once(&mut self, stored: Bytes, key: Option<&IdempotencyKey>) -> Result<EventId, BrokerError> {
        self.require(entry_bytes(&stored) + key.map_or(0, |_| IDEMPOTENCY_KEY_BYTES))?;
        let is_final = Event::is_stored_final(&stored);
        let id = self.append_entry(EntryKind::Message, stored, is_final);
        if let Some(key) = key {
            let until = self.now.saturating_add(micros(self.retention.idempotency_window));
            self.idempotency.record(self.topic, key, RecordedAnswer::Appended(id), until, self.ledger);
        }
        Ok(id)
    }

    /// Empties the log, keeps its head, and announces it. Returns the position up to which the log was emptied.
    pub fn clear(&mut self) -> EventId {
        let Self { topic, log, ledger, .. } = self;
        log.head_mut().history.clear();
        log.entries.clear(|entry| drop_entry(topic, &entry, ledger));
        ledger.changed(|| RecordChange::head(topic, log.head(), log.touched));
        let position = log.head().history.cleared();
        ledger.announce(Announcement::Cleared((*topic).clone(), position));
        position
    }
}
