//! A bound for the rings of all live topics together. If there is too little for all, those that change stay.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use super::topic::LiveTopic;

/// Bounds the bytes of events in rings, without the newest event of each.
pub(super) struct RingBudget {
    max_bytes: usize,
    rings: Mutex<Rings>,
}

#[derive(Default)]
struct Rings {
    /// The rings with more than one event, by their last change.
    by_change: BTreeMap<u64, CountedRing>,
    changes: u64,
    bytes: usize,
}

struct CountedRing {
    topic: Weak<LiveTopic>,
    bytes: usize,
}

/// Where the budget has a ring.
#[derive(Clone, Copy, Default)]
pub(super) struct RingShare {
    change: u64,
    bytes: usize,
}

impl RingShare {
    /// What the budget has counted for the ring.
    pub(super) fn bytes(self) -> usize {
        self.bytes
    }
}

impl RingBudget {
    pub(super) fn new(max_bytes: usize) -> Arc<Self> {
        Arc::new(Self { max_bytes, rings: Mutex::default() })
    }

    /// Counts a ring that has so many bytes now. Returns its share, and the topics whose rings have to drop their older
    /// events for it: those that have not changed for the longest time.
    pub(super) fn change(
        &self,
        topic: &Weak<LiveTopic>,
        share: RingShare,
        bytes: usize,
    ) -> (RingShare, Vec<Arc<LiveTopic>>) {
        let mut rings = self.rings();
        rings.remove(share);
        rings.changes += 1;
        let share = RingShare { change: rings.changes, bytes };
        if bytes > 0 {
            rings.bytes += bytes;
            rings.by_change.insert(share.change, CountedRing { topic: topic.clone(), bytes });
        }
        let mut displaced = Vec::new();
        while rings.bytes > self.max_bytes
            && let Some((_, oldest)) = rings.by_change.pop_first()
        {
            rings.bytes -= oldest.bytes;
            displaced.extend(oldest.topic.upgrade());
        }
        (share, displaced)
    }

    /// A ring is gone.
    pub(super) fn remove(&self, share: RingShare) {
        self.rings().remove(share);
    }

    fn rings(&self) -> MutexGuard<'_, Rings> {
        self.rings.lock().expect("no holder of the lock panics")
    }
}

impl Rings {
    fn remove(&mut self, share: RingShare) {
        // If the ring was displaced, it is not counted any more.
        if let Some(entry) = self.by_change.remove(&share.change) {
            self.bytes -= entry.bytes;
        }
    }
}
