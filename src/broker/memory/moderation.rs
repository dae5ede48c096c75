//! Removals in memory.

use std::ops::Bound;

use async_trait::async_trait;

use super::journal::Announcement;
use super::record::RecordChange;
use super::{DurableAt, MemoryBroker, OVERHEAD_BYTES, State, microseconds};
use crate::broker::{BrokerError, Fault, FaultKind, ModerationStore, REMOVAL_LIFETIME, Removal, StoredRemoval};

/// Removals that are remembered at one time.
const MAX_REMOVALS: usize = 100_000;

impl State {
    pub(super) fn put_removal(&mut self, id: u64, removal: Removal) {
        self.bytes += cost(&removal);
        self.removals.insert(id, removal);
    }

    /// Drops removals that have expired.
    pub(super) fn sweep_removals(&mut self) {
        let Self { removals, notes, bytes, .. } = self;
        let recent = microseconds() / 1000 - u64::try_from(REMOVAL_LIFETIME.as_millis()).unwrap_or(0);
        removals.retain(|id, removal| {
            let kept = removal.until.max(id / 1000) >= recent;
            if !kept {
                *bytes -= cost(removal);
                notes.add(|| RecordChange::removal(*id, None));
            }
            kept
        });
    }
}

/// What a removal takes: an estimate.
fn cost(removal: &Removal) -> usize {
    let texts = [removal.user.as_deref(), removal.token.as_deref()];
    2 * OVERHEAD_BYTES + texts.into_iter().flatten().map(str::len).sum::<usize>()
}

#[async_trait]
impl ModerationStore for MemoryBroker {
    async fn remove(&self, removal: &Removal) -> Result<(), BrokerError> {
        let own = {
            let mut state = self.state();
            self.check_journal()?;
            self.check_room_for(state.bytes, cost(removal))?;
            if state.removals.len() >= MAX_REMOVALS {
                let detail = format!("{MAX_REMOVALS} removals hold, and no more are remembered");
                return Err(BrokerError::Unavailable(Fault::new(FaultKind::OutOfMemory, detail)));
            }
            let id = microseconds().max(state.removals.last_key_value().map_or(0, |(last, _)| last + 1));
            state.put_removal(id, removal.clone());
            state.notes.add(|| RecordChange::removal(id, Some(removal)));
            state.notes.announcements.push(Announcement::Removed);
            self.finish(&mut state)
        };
        match own {
            Some(lsn) => self.wait_write(DurableAt::Own(lsn)).await,
            None => Ok(()),
        }
    }

    async fn removals(&self, after: Option<&str>) -> Result<Vec<StoredRemoval>, BrokerError> {
        let after = after.and_then(|after| after.parse::<u64>().ok()).map_or(Bound::Unbounded, Bound::Excluded);
        let state = self.state();
        let found = state.removals.range((after, Bound::Unbounded));
        Ok(found.map(|(id, removal)| (id.to_string(), removal.clone())).collect())
    }
}
