//! One room's log in memory.

use std::collections::VecDeque;
use std::time::Duration;

use super::OVERHEAD_BYTES;
use super::journal::Lsn;
use crate::broker::{LogEntry, ReadRange, Retention};
use crate::log::Head;
use crate::names::EventId;

pub(super) struct Log {
    pub(super) head: Head,
    pub(super) entries: Entries,
    /// When the last event came, or a replica last renewed a log without events; microseconds since 1970.
    pub(super) touched: u64,
    /// Its last change, which has to be durable before anything of it is told.
    pub(super) lsn: Lsn,
}

impl Log {
    /// Drops entries that have aged out; the bytes that this frees.
    pub(super) fn expire(&mut self, now: u64, retention: Retention, dropped: impl FnMut(EventId)) -> usize {
        self.entries.drop_while(|entry| has_passed(now, entry.at, retention.age), dropped)
    }

    /// Whether nothing was ever appended.
    pub(super) fn is_unused(&self) -> bool {
        self.head.history.epochs().len() == 1 && self.head.history.newest().end == 0
    }

    pub(super) fn is_forgotten(&self, now: u64, retention: Retention) -> bool {
        self.is_untouched(now, retention.age + retention.head)
    }

    pub(super) fn is_untouched(&self, now: u64, time: Duration) -> bool {
        has_passed(now, self.touched, time)
    }
}

fn has_passed(now: u64, since: u64, time: Duration) -> bool {
    Duration::from_micros(now.saturating_sub(since)) >= time
}

struct Kept {
    entry: LogEntry,
    /// When it was appended, microseconds since 1970.
    at: u64,
}

#[derive(Default)]
pub(super) struct Entries {
    kept: VecDeque<Kept>,
    bytes: usize,
}

impl Entries {
    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    pub(super) fn oldest(&self) -> Option<EventId> {
        self.kept.front().map(|kept| kept.entry.id)
    }

    /// Adds the newest entry; the bytes that it takes.
    pub(super) fn add(&mut self, entry: LogEntry, at: u64) -> usize {
        let taken = cost(&entry);
        self.bytes += taken;
        self.kept.push_back(Kept { entry, at });
        taken
    }

    /// Drops the oldest entries beyond what is retained; the bytes that this frees.
    pub(super) fn trim(&mut self, retention: Retention, mut dropped: impl FnMut(EventId)) -> usize {
        let mut freed = 0;
        while self.kept.len() as u64 > retention.events
            || (self.bytes as u64 > retention.bytes && self.kept.len() > 1)
        {
            freed += self.drop_oldest(&mut dropped);
        }
        freed
    }

    pub(super) fn select(&self, range: ReadRange, limit: usize) -> Vec<LogEntry> {
        let end = self.kept.len();
        let (from, to) = match range {
            ReadRange::After(position) => (self.kept.partition_point(|kept| kept.entry.id <= position), end),
            ReadRange::Oldest => (0, end),
            ReadRange::Before(id) => {
                let to = self.kept.partition_point(|kept| kept.entry.id < id);
                (to.saturating_sub(limit), to)
            }
            ReadRange::Newest => (end.saturating_sub(limit), end),
        };
        self.kept.range(from..to).take(limit).map(|kept| kept.entry.clone()).collect()
    }

    /// The bytes that this frees.
    pub(super) fn clear(&mut self, dropped: impl FnMut(EventId)) -> usize {
        self.drop_while(|_| true, dropped)
    }

    fn drop_while(&mut self, is_to_go: impl Fn(&Kept) -> bool, mut dropped: impl FnMut(EventId)) -> usize {
        let mut freed = 0;
        while self.kept.front().is_some_and(&is_to_go) {
            freed += self.drop_oldest(&mut dropped);
        }
        if self.kept.is_empty() {
            self.kept.shrink_to_fit();
        }
        freed
    }

    fn drop_oldest(&mut self, dropped: &mut impl FnMut(EventId)) -> usize {
        let Some(Kept { entry, .. }) = self.kept.pop_front() else { return 0 };
        dropped(entry.id);
        let freed = cost(&entry);
        self.bytes -= freed;
        freed
    }
}

fn cost(entry: &LogEntry) -> usize {
    entry.stored.len() + OVERHEAD_BYTES
}
