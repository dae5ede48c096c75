//! Drops what has expired, so that rooms without clients leave the memory.

use std::time::Duration;

use super::MemoryState;
use super::budget::{OVERHEAD_BYTES, removal_bytes};
use super::log_step::{drop_entry, drop_log};
use super::transaction::Transaction;
use crate::broker::REMOVAL_LIFETIME;
use crate::broker::memory::micros;
use crate::broker::memory::record::RecordChange;
use crate::names::Topic;

/// In a room without messages, presence events are dropped this long after the last stream. While logs without messages
/// use more than half of what they may, the logs themselves are dropped. A client that returns to such a room may get a
/// gap. Refusing all other clients would be worse.
const UNUSED_LIFETIME: Duration = Duration::from_mins(1);

impl Transaction<'_> {
    /// Drops what has expired.
    pub fn sweep(&mut self) {
        let MemoryState { idempotency, ledger, .. } = &mut *self.state;
        idempotency.sweep(self.now, ledger);
        self.sweep_logs();
        self.sweep_members();
        self.sweep_removals();
    }

    fn sweep_logs(&mut self) {
        let is_crowded = self.state.unused_logs > self.state.max_unused_logs() / 2;
        let MemoryState { logs, unused_logs, ledger, retention, subscribers, .. } = &mut *self.state;
        logs.retain(|topic, log| {
            let retention = retention.for_topic(topic);
            log.drop_expired(self.now, retention, |entry| drop_entry(topic, &entry, ledger));
            // An earlier process may have kept more.
            log.entries.trim(retention, |entry| drop_entry(topic, &entry, ledger));
            let is_spare = log.is_unused()
                && log.is_untouched(self.now, UNUSED_LIFETIME)
                && topic.room().is_none_or(|room| !subscribers.contains_key(room));
            if is_spare {
                log.entries.clear(|entry| drop_entry(topic, &entry, ledger));
            }
            let is_dropped = log.is_expired(self.now, retention) || is_spare && is_crowded;
            if is_dropped {
                drop_log(topic, log, unused_logs, ledger);
            }
            !is_dropped
        });
    }

    /// Drops rooms without members. A watched room stays until its log has expired, and so do members of an earlier
    /// process.
    fn sweep_members(&mut self) {
        let MemoryState { members, logs, ledger, .. } = &mut *self.state;
        members.retain(|room, members| {
            let has_log = logs.contains_key(&Topic::from(room.clone()));
            for (subscriber, member) in members.members.extract_if(.., |_, member| member.is_stale && !has_log) {
                ledger.removed(member.bytes(), || RecordChange::member(room, &subscriber, None));
            }
            let is_kept = !members.members.is_empty() || (members.is_watched && has_log);
            if !is_kept && members.is_watched {
                ledger.removed(OVERHEAD_BYTES, || RecordChange::watched(room, false));
            }
            is_kept
        });
    }

    fn sweep_removals(&mut self) {
        let MemoryState { removals, ledger, .. } = &mut *self.state;
        let oldest = self.now.saturating_sub(micros(REMOVAL_LIFETIME)) / 1000;
        removals.retain(|id, removal| {
            let is_kept = removal.until.max(id / 1000) >= oldest;
            if !is_kept {
                ledger.removed(removal_bytes(removal), || RecordChange::removal(*id, None));
            }
            is_kept
        });
    }
}
