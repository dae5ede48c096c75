//! Snapshots of watched hashes. Watchers that need one at the same time share it, and it is kept only as long as that is
//! likely: a watcher that takes its parts too slowly gets another one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

use crate::names::{EventId, HashName, WatchedValue};

/// Bytes of JSON from which on a part of a snapshot gets no more fields.
const PART_BYTES: usize = 64 * 1024;
/// Bytes of all snapshots of a replica.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// How long a snapshot is kept.
const MAX_AGE: Duration = Duration::from_secs(30);
/// The time between two looks at the snapshots' age.
const SWEEP_EVERY: Duration = Duration::from_secs(5);

/// The state of a hash at one position of its log.
pub(super) struct Snapshot {
    /// The number of the mirror that has this state at the position.
    pub(super) mirror: u64,
    pub(super) position: EventId,
    /// The data of `hash.snapshot`, at least once.
    pub(super) parts: Box<[Bytes]>,
    /// Whether the key has another type. To watchers, it is a hash without fields.
    pub(super) is_other_type: bool,
    bytes: usize,
    made: Instant,
}

#[derive(Serialize)]
struct SnapshotData<'a> {
    hash: &'a HashName,
    fields: &'a BTreeMap<&'a str, Box<RawValue>>,
    part: usize,
    last: bool,
}

impl Snapshot {
    pub(super) async fn new(
        hash: &HashName,
        mirror: u64,
        position: EventId,
        state: &BTreeMap<Box<str>, Bytes>,
        is_other_type: bool,
    ) -> Self {
        let (mut parts, mut fields, mut bytes) = (Vec::new(), BTreeMap::new(), 0);
        let part = |parts: &[Bytes], fields: &BTreeMap<&str, Box<RawValue>>, last| {
            let data = SnapshotData { hash, fields, part: parts.len(), last };
            Bytes::from(serde_json::to_vec(&data).expect("texts and checked JSON always serialise"))
        };
        for (field, value) in state {
            if bytes >= PART_BYTES {
                parts.push(part(&parts, &fields, false));
                (fields, bytes) = (BTreeMap::new(), 0);
                yield_now().await;
            }
            let encoded = to_raw_value(&WatchedValue::new(value)).expect("texts are JSON");
            bytes += field.len() + encoded.get().len();
            fields.insert(&**field, encoded);
        }
        parts.push(part(&parts, &fields, true));
        let bytes = parts.iter().map(Bytes::len).sum();
        Self { mirror, position, parts: parts.into(), is_other_type, bytes, made: Instant::now() }
    }

    pub(super) fn age(&self) -> Duration {
        self.made.elapsed()
    }

    /// The size of its parts.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// The snapshots of a replica: the last ones, up to an age and a size.
#[derive(Default)]
pub(super) struct Snapshots(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    /// Oldest first.
    snapshots: VecDeque<Arc<Snapshot>>,
    bytes: usize,
}

impl Snapshots {
    /// Keeps a snapshot for a while. Its watchers hold it weakly.
    pub(super) fn keep(&self, snapshot: Snapshot) -> Arc<Snapshot> {
        let snapshot = Arc::new(snapshot);
        let mut kept = self.0.lock().expect("no holder of the lock panics");
        kept.bytes += snapshot.bytes;
        kept.snapshots.push_back(snapshot.clone());
        kept.drop_old();
        snapshot
    }

    /// Drops old snapshots for ever.
    pub(super) async fn sweep(this: Weak<Self>) {
        while let Some(snapshots) = this.upgrade() {
            snapshots.0.lock().expect("no holder of the lock panics").drop_old();
            drop(snapshots);
            sleep(SWEEP_EVERY).await;
        }
    }
}

impl Kept {
    /// The newest one stays as long as it is young, whatever its size.
    fn drop_old(&mut self) {
        while let Some(oldest) = self.snapshots.front()
            && (oldest.age() > MAX_AGE || self.bytes > MAX_BYTES && self.snapshots.len() > 1)
        {
            self.bytes -= oldest.bytes;
            self.snapshots.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn snapshot(fields: usize) -> Snapshot {
        let hash = HashName::new("lamp").unwrap();
        let value = Bytes::from(vec![b'x'; 1000]);
        let state = (0..fields).map(|n| (format!("f{n:04}").into_boxed_str(), value.clone())).collect();
        Snapshot::new(&hash, 1, EventId::new(1, 1), &state, false).await
    }

    #[tokio::test]
    async fn a_large_snapshot_has_several_parts_and_the_last_one_is_marked() {
        let snapshot = snapshot(200).await;
        let parts: Vec<serde_json::Value> =
            snapshot.parts.iter().map(|part| serde_json::from_slice(part).unwrap()).collect();
        assert!(parts.len() > 2);
        let fields: usize = parts.iter().map(|part| part["fields"].as_object().unwrap().len()).sum();
        assert_eq!(fields, 200);
        for (index, part) in parts.iter().enumerate() {
            assert_eq!(part["part"], index);
            assert_eq!(part["last"], index + 1 == parts.len());
        }
        assert!(parts.len() * PART_BYTES / 2 < snapshot.bytes() && snapshot.bytes() < parts.len() * 2 * PART_BYTES);
    }

    #[tokio::test]
    async fn snapshots_are_dropped_by_age_and_size() {
        let snapshots = Snapshots::default();
        let made = Instant::now().checked_sub(MAX_AGE + Duration::from_secs(1)).unwrap();
        let old = Arc::downgrade(&snapshots.keep(Snapshot { made, ..snapshot(1).await }));
        assert!(old.upgrade().is_none());
        let large = Arc::downgrade(&snapshots.keep(Snapshot { bytes: MAX_BYTES, ..snapshot(1).await }));
        assert!(large.upgrade().is_some());
        let next = Arc::downgrade(&snapshots.keep(snapshot(1).await));
        assert!(large.upgrade().is_none() && next.upgrade().is_some());
    }
}
