//! Where a stream of a hash is between snapshots and changes.

use crate::names::{Bookmark, WatchBase};

/// Snapshots that a stream may take too slowly, one after the other, before it has to come back later.
const SLOW_SNAPSHOTS: u8 = 2;

/// Where a stream of a hash is. `S` is a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum WatchPhase<S> {
    /// It needs a snapshot.
    NeedsSnapshot {
        /// The mirror whose state the client has. None if it has no state, or got a gap since.
        base: Option<u64>,
        /// How many snapshots it has taken too slowly.
        too_slow: u8,
    },
    /// It takes the parts of a snapshot.
    Snapshot {
        /// The snapshot.
        snapshot: S,
        /// The mirror whose state the client has, until the first part replaces it. The changes in the log up to the
        /// snapshot's position come before that part.
        base: Option<u64>,
        /// How many parts it has.
        parts: usize,
        /// How many other snapshots it has taken too slowly.
        too_slow: u8,
    },
    /// It has the state of the mirror with this number, or those of its fields that are selected: then the number
    /// stands for the two together.
    Following(u64),
}

impl<S> WatchPhase<S> {
    /// The phase of a stream that continues an earlier one at this bookmark, or of a new one.
    pub fn new(bookmark: Option<Bookmark>) -> Self {
        match bookmark.and_then(|bookmark| bookmark.base) {
            Some(WatchBase::Mirror(mirror)) => Self::Following(mirror),
            Some(WatchBase::Unfinished) | None => Self::NeedsSnapshot { base: None, too_slow: 0 },
        }
    }

    /// What the client has.
    pub fn base(&self) -> WatchBase {
        match self {
            Self::Following(mirror) => WatchBase::Mirror(*mirror),
            Self::NeedsSnapshot { base, .. } | Self::Snapshot { base, .. } => {
                base.map_or(WatchBase::Unfinished, WatchBase::Mirror)
            }
        }
    }

    /// Whether the client has the state of the present mirror, if there is one.
    pub fn follows(&self, present: Option<u64>) -> bool {
        matches!(self, Self::Following(mirror) if Some(*mirror) == present)
    }

    /// The stream gets a gap.
    pub fn gap(&mut self) {
        *self = Self::NeedsSnapshot { base: None, too_slow: 0 };
    }

    /// The stream has all changes of which the replica knows. Only then it leaves a mirror that is not the present one.
    /// Returns whether it does.
    pub fn caught_up(&mut self, present: Option<u64>) -> bool {
        let Self::Following(base) = *self else { return false };
        let leaves = Some(base) != present;
        if leaves {
            *self = Self::NeedsSnapshot { base: Some(base), too_slow: 0 };
        }
        leaves
    }

    /// The stream takes a snapshot.
    pub fn begin(&mut self, snapshot: S) {
        if let Self::NeedsSnapshot { base, too_slow } = *self {
            *self = Self::Snapshot { snapshot, base, parts: 0, too_slow };
        }
    }

    /// Whether the client has a state at the stream's position, so that the log's changes up to the snapshot's position
    /// come before the first part.
    pub fn follows_log(&self) -> bool {
        matches!(self, Self::Snapshot { base: Some(_), .. })
    }

    /// The index of the next part, of a snapshot of this mirror that has this many. The stream gets it now.
    pub fn next_part(&mut self, mirror: u64, count: usize) -> usize {
        let Self::Snapshot { base, parts, .. } = self else { return 0 };
        let index = *parts;
        *base = None;
        *parts += 1;
        if *parts == count {
            *self = Self::Following(mirror);
        }
        index
    }

    /// The snapshot is gone, since the stream has taken its parts too slowly. Returns whether it may have another one.
    pub fn too_slow(&mut self) -> bool {
        let Self::Snapshot { base, too_slow, .. } = *self else { return true };
        *self = Self::NeedsSnapshot { base, too_slow: too_slow + 1 };
        too_slow + 1 < SLOW_SNAPSHOTS
    }
}
