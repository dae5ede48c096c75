//! A log in memory: its head and its entries. Presence events are kept apart from messages, since each kind is trimmed by
//! itself.

use std::collections::VecDeque;
use std::iter;
use std::time::Duration;

use super::budget::entry_bytes;
use super::log_step::Purpose;
use crate::broker::memory::journal::Lsn;
use crate::broker::{LogEntry, ReadLimit, ReadRange, Retention};
use crate::log::{EntryKind, Head, LogView, StepContext};
use crate::names::EventId;

/// The log of a room or a hash.
pub struct MemoryLog {
    /// None only until [`Self::ensure_epoch`] has made it.
    head: Option<Head>,
    pub(super) entries: LogEntries,
    /// When the last entry was appended, or a replica last renewed a log without entries; microseconds since 1970.
    pub(super) touched: u64,
    /// The log's last change, which has to be durable before a client learns of it.
    pub(super) lsn: Lsn,
}

impl MemoryLog {
    /// A log without a head, which [`Self::ensure_epoch`] has to make.
    pub(super) fn new(now: u64) -> Self {
        Self { head: None, entries: LogEntries::default(), touched: now, lsn: 0 }
    }

    /// A log as the data folder holds it, without its entries.
    pub(super) fn from_stored(head: Head, touched: u64) -> Self {
        Self { head: Some(head), entries: LogEntries::default(), touched, lsn: 0 }
    }

    pub fn head(&self) -> &Head {
        self.head.as_ref().expect("ensure_epoch has made the head")
    }

    pub(super) fn head_mut(&mut self) -> &mut Head {
        self.head.as_mut().expect("ensure_epoch has made the head")
    }

    pub fn entries(&self) -> &LogEntries {
        &self.entries
    }

    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// Makes the head if there is none, and begins a new epoch if the head does not match. Returns whether the head has
    /// changed.
    pub(super) fn ensure_epoch(
        &mut self,
        watermarks: &[EventId],
        purpose: Purpose,
        replication_id: &str,
        now: u64,
    ) -> bool {
        let head = self.head.take();
        // A head of an earlier process that has to stay as it is counts as a head of this process.
        let is_kept = |head: &Head| head.replication_id != replication_id && !purpose.begins_own_epoch(head);
        let earlier_id = head.as_ref().filter(|head| is_kept(head)).map(|head| head.replication_id.clone());
        let context = StepContext {
            replication_id: earlier_id.as_deref().unwrap_or(replication_id),
            time: now,
            random: fastrand::u64(..1 << 20),
            oldest: self.entries.oldest(),
        };
        let (head, has_changed) = Head::ensure_epoch(head, watermarks, context);
        self.head = Some(head);
        has_changed
    }

    /// Whether the watermarks call for a new epoch.
    pub fn conflicts_with(&self, watermarks: &[EventId]) -> bool {
        self.head().history.conflicts_with(watermarks)
    }

    /// Drops entries that are too old, and hands each to `dropped`.
    pub(super) fn drop_expired(&mut self, now: u64, retention: Retention, dropped: impl FnMut(LogEntry)) {
        self.entries.drop_while(|entry| has_passed(now, entry.appended_at, retention.age), dropped);
    }

    /// Whether the log never had a message.
    pub(super) fn is_unused(&self) -> bool {
        self.head.as_ref().is_some_and(|head| !head.has_messages())
    }

    /// Whether the lifetime of the head has passed.
    pub(super) fn is_expired(&self, now: u64, retention: Retention) -> bool {
        self.is_untouched(now, retention.age + retention.head)
    }

    /// Whether the log was neither written nor renewed for so long.
    pub(super) fn is_untouched(&self, now: u64, time: Duration) -> bool {
        has_passed(now, self.touched, time)
    }
}

fn has_passed(now: u64, since: u64, time: Duration) -> bool {
    Duration::from_micros(now.saturating_sub(since)) >= time
}

/// An entry, and when it was appended, in microseconds since 1970.
struct TimedEntry {
    entry: LogEntry,
    appended_at: u64,
}

/// The entries of one kind, oldest first.
#[derive(Default)]
struct EntryQueue {
    entries: VecDeque<TimedEntry>,
    bytes: usize,
}

impl EntryQueue {
    fn push(&mut self, entry: LogEntry, appended_at: u64) {
        self.bytes += entry_bytes(&entry.stored);
        self.entries.push_back(TimedEntry { entry, appended_at });
    }

    /// Returns the id of the last entry that was dropped.
    fn trim(&mut self, retention: Retention, dropped: &mut impl FnMut(LogEntry)) -> Option<EventId> {
        let is_over = |queue: &Self| {
            queue.entries.len() as u64 > retention.events
                || (queue.bytes as u64 > retention.bytes && queue.entries.len() > 1)
        };
        self.drop_oldest(is_over, dropped)
    }

    /// Returns the id of the last entry that was dropped.
    fn drop_while(
        &mut self,
        is_dropped: impl Fn(&TimedEntry) -> bool,
        dropped: &mut impl FnMut(LogEntry),
    ) -> Option<EventId> {
        let last = self.drop_oldest(|queue| queue.entries.front().is_some_and(&is_dropped), dropped);
        if self.entries.is_empty() {
            self.entries.shrink_to_fit();
        }
        last
    }

    /// Drops the oldest entry again and again while `is_due` is true of the queue.
    fn drop_oldest(
        &mut self,
        is_due: impl Fn(&Self) -> bool,
        dropped: &mut impl FnMut(LogEntry),
    ) -> Option<EventId> {
        let mut last = None;
        while is_due(self)
            && let Some(TimedEntry { entry, .. }) = self.entries.pop_front()
        {
            self.bytes -= entry_bytes(&entry.stored);
            last = Some(entry.id);
            dropped(entry);
        }
        last
    }

    /// The entries of a range, in the order in which a limit counts them.
    fn range(&self, range: ReadRange) -> Box<dyn Iterator<Item = &TimedEntry> + '_> {
        let all = &self.entries;
        match range {
            ReadRange::After(position) => {
                Box::new(all.range(all.partition_point(|found| found.entry.id <= position)..))
            }
            ReadRange::Before(id) => Box::new(all.range(..all.partition_point(|found| found.entry.id < id)).rev()),
            ReadRange::Oldest => Box::new(all.iter()),
            ReadRange::Newest => Box::new(all.iter().rev()),
        }
    }

    fn oldest(&self) -> Option<EventId> {
        self.entries.front().map(|oldest| oldest.entry.id)
    }
}

/// The entries of a log.
#[derive(Default)]
pub struct LogEntries {
    messages: EntryQueue,
    /// Most logs have none.
    presence: Option<Box<EntryQueue>>,
}

impl LogEntries {
    pub fn len(&self) -> usize {
        self.queues(LogView::All).map(|queue| queue.entries.len()).sum()
    }

    pub fn oldest(&self) -> Option<EventId> {
        self.queues(LogView::All).filter_map(EntryQueue::oldest).min()
    }

    fn queues(&self, view: LogView) -> impl Iterator<Item = &EntryQueue> {
        iter::once(&self.messages).chain(self.presence_in(view))
    }

    /// The number of entries of a view, and the id of the oldest one.
    pub fn summary(&self, view: LogView) -> (u64, Option<EventId>) {
        let retained = self.queues(view).map(|queue| queue.entries.len() as u64).sum();
        (retained, self.queues(view).filter_map(EntryQueue::oldest).min())
    }

    fn presence_in(&self, view: LogView) -> Option<&EntryQueue> {
        self.presence.as_deref().filter(|_| view == LogView::All)
    }

    /// The entries of a range, up to a limit, and whether there are no others in it.
    pub fn select(&self, range: ReadRange, view: LogView, limit: ReadLimit) -> (Vec<LogEntry>, bool) {
        let mut messages = self.messages.range(range).peekable();
        let mut presence = self.presence_in(view).into_iter().flat_map(|queue| queue.range(range)).peekable();
        let mut merged = iter::from_fn(|| {
            let takes_presence = match (messages.peek(), presence.peek()) {
                (Some(message), Some(event)) => (event.entry.id < message.entry.id) != range.is_backward(),
                (message, _) => message.is_none(),
            };
            if takes_presence { presence.next() } else { messages.next() }
        });
        let (mut entries, mut bytes, mut is_end) = (Vec::new(), 0, false);
        while !is_end && entries.len() < limit.entries && bytes < limit.bytes {
            let found = merged.next();
            is_end = found.is_none();
            bytes += found.map_or(0, |found| found.entry.stored.len());
            entries.extend(found.map(|found| found.entry.clone()));
        }
        if range.is_backward() {
            entries.reverse();
        }
        (entries, is_end)
    }

    /// Adds the newest entry.
    pub(super) fn push(&mut self, kind: EntryKind, entry: LogEntry, appended_at: u64) {
        match kind {
            EntryKind::Message => self.messages.push(entry, appended_at),
            EntryKind::Presence => self.presence.get_or_insert_default().push(entry, appended_at),
        }
    }

    /// Drops the oldest entries of each kind beyond what is retained of it, and presence events before a dropped message.
    /// Hands each to `dropped`.
    pub(super) fn trim(&mut self, retention: Retention, mut dropped: impl FnMut(LogEntry)) {
        let last_message = self.messages.trim(retention, &mut dropped);
        if let Some(presence) = &mut self.presence {
            presence.trim(retention.for_presence(), &mut dropped);
            presence.drop_while(|event| Some(event.entry.id) < last_message, &mut dropped);
        }
    }

    /// Drops all entries, and hands each to `dropped`.
    pub(super) fn clear(&mut self, dropped: impl FnMut(LogEntry)) {
        self.drop_while(|_| true, dropped);
    }

    fn drop_while(&mut self, is_dropped: impl Fn(&TimedEntry) -> bool, mut dropped: impl FnMut(LogEntry)) {
        let last_message = self.messages.drop_while(&is_dropped, &mut dropped);
        if let Some(presence) = &mut self.presence {
            presence.drop_while(|event| is_dropped(event) || Some(event.entry.id) < last_message, &mut dropped);
        }
    }

    /// The entries with the times at which they were appended.
    #[cfg(test)]
    pub fn timed(&self) -> impl Iterator<Item = (&LogEntry, u64)> {
        let all = self.queues(LogView::All).flat_map(|queue| &queue.entries);
        all.map(|found| (&found.entry, found.appended_at))
    }
}
