//! One room's log in memory.

use std::collections::VecDeque;
use std::time::Duration;

use super::OVERHEAD_BYTES;
use crate::broker::{Entry, Range, Retention};
use crate::follow::Head;
use crate::room::EventId;

pub(super) struct Log {
    pub(super) head: Head,
    pub(super) entries: Entries,
    /// When the last event came, or a replica last renewed a log without events; microseconds since 1970.
    pub(super) touched: u64,
}

impl Log {
    /// Drops entries that have aged out; the bytes that this frees.
    pub(super) fn expire(&mut self, now: u64, retention: Retention) -> usize {
        self.entries.drop_while(|entry| has_passed(now, entry.at, retention.age))
    }

    pub(super) fn is_forgotten(&self, now: u64, retention: Retention) -> bool {
        has_passed(now, self.touched, retention.age + retention.head)
    }
}

fn has_passed(now: u64, since: u64, time: Duration) -> bool {
    Duration::from_micros(now.saturating_sub(since)) >= time
}

struct Kept {
    entry: Entry,
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

    /// Adds the newest entry and trims; the bytes that the trimming frees.
    pub(super) fn push(&mut self, entry: Entry, at: u64, retention: Retention) -> usize {
        self.bytes += cost(&entry);
        self.kept.push_back(Kept { entry, at });
        let mut freed = 0;
        while self.kept.len() as u64 > retention.events
            || (self.bytes as u64 > retention.bytes && self.kept.len() > 1)
        {
            freed += self.drop_oldest();
        }
        freed
    }

    pub(super) fn select(&self, range: Range, limit: usize) -> Vec<Entry> {
        let end = self.kept.len();
        let (from, to) = match range {
            Range::After(position) => (self.kept.partition_point(|kept| kept.entry.id <= position), end),
            Range::Oldest => (0, end),
            Range::Before(id) => {
                let to = self.kept.partition_point(|kept| kept.entry.id < id);
                (to.saturating_sub(limit), to)
            }
            Range::Newest => (end.saturating_sub(limit), end),
        };
        self.kept.range(from..to).take(limit).map(|kept| kept.entry.clone()).collect()
    }

    /// The bytes that this frees.
    pub(super) fn clear(&mut self) -> usize {
        std::mem::take(self).bytes
    }

    fn drop_while(&mut self, is_to_go: impl Fn(&Kept) -> bool) -> usize {
        let mut freed = 0;
        while self.kept.front().is_some_and(&is_to_go) {
            freed += self.drop_oldest();
        }
        if self.kept.is_empty() {
            self.kept.shrink_to_fit();
        }
        freed
    }

    fn drop_oldest(&mut self) -> usize {
        let freed = self.kept.pop_front().map_or(0, |kept| cost(&kept.entry));
        self.bytes -= freed;
        freed
    }
}

fn cost(entry: &Entry) -> usize {
    entry.stored.len() + OVERHEAD_BYTES
}
