//! One room's log in memory.

use std::collections::VecDeque;
use std::time::Instant;

use super::OVERHEAD_BYTES;
use crate::broker::{Entry, Range, Retention};
use crate::follow::Head;
use crate::room::EventId;

pub(super) struct Log {
    pub(super) head: Head,
    pub(super) entries: Entries,
    /// The last event, or the last time that a replica renewed a log without events.
    pub(super) touched: Instant,
}

impl Log {
    /// Drops entries that have aged out; the bytes that this frees.
    pub(super) fn expire(&mut self, now: Instant, retention: Retention) -> usize {
        if now.duration_since(self.touched) < retention.age { 0 } else { self.entries.clear() }
    }

    pub(super) fn is_forgotten(&self, now: Instant, retention: Retention) -> bool {
        now.duration_since(self.touched) >= retention.age + retention.head
    }
}

#[derive(Default)]
pub(super) struct Entries(VecDeque<Entry>);

impl Entries {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn oldest(&self) -> Option<EventId> {
        self.0.front().map(|entry| entry.id)
    }

    /// Adds the newest entry and trims; the bytes that the trimming frees.
    pub(super) fn push(&mut self, entry: Entry, limit: u64) -> usize {
        self.0.push_back(entry);
        let mut freed = 0;
        while self.0.len() as u64 > limit {
            freed += self.0.pop_front().map_or(0, |entry| cost(&entry));
        }
        freed
    }

    pub(super) fn select(&self, range: Range, limit: usize) -> Vec<Entry> {
        let end = self.0.len();
        let (from, to) = match range {
            Range::After(position) => (self.0.partition_point(|entry| entry.id <= position), end),
            Range::Oldest => (0, end),
            Range::Before(id) => {
                let to = self.0.partition_point(|entry| entry.id < id);
                (to.saturating_sub(limit), to)
            }
            Range::Newest => (end.saturating_sub(limit), end),
        };
        self.0.range(from..to).take(limit).cloned().collect()
    }

    fn clear(&mut self) -> usize {
        let freed = self.0.iter().map(cost).sum();
        self.0 = VecDeque::new();
        freed
    }
}

fn cost(entry: &Entry) -> usize {
    entry.stored.len() + OVERHEAD_BYTES
}
