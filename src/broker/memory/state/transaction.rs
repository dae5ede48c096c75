//! A step on the memory, and the step that changes removals.

use super::MemoryState;
use super::budget::removal_bytes;
use crate::broker::memory::announcement::Announcement;
use crate::broker::memory::journal::JournalEntry;
use crate::broker::memory::record::RecordChange;
use crate::broker::{BrokerError, Fault, FaultKind, MAX_REMOVALS, Removal};

/// A step on the memory. It ends with [`Self::finish`].
pub struct Transaction<'a> {
    pub(super) state: &'a mut MemoryState,
    pub(super) now: u64,
}

impl Transaction<'_> {
    /// The memory as the step has left it so far.
    pub fn state(&self) -> &MemoryState {
        self.state
    }

    /// Fails if there is no room for so many more bytes.
    pub fn require(&mut self, bytes: usize) -> Result<(), BrokerError> {
        self.state.ledger.require(bytes)
    }

    /// Stores a removal, and announces it.
    pub fn add_removal(&mut self, removal: &Removal) -> Result<(), BrokerError> {
        let bytes = removal_bytes(removal);
        self.state.ledger.require_for_removal(bytes)?;
        let MemoryState { removals, ledger, .. } = &mut *self.state;
        if removals.len() >= MAX_REMOVALS {
            let detail = format!("{MAX_REMOVALS} removals are stored, and no more are accepted");
            return Err(BrokerError::Unavailable(Fault::new(FaultKind::OutOfMemory, detail)));
        }
        let id = self.now.max(removals.last_key_value().map_or(0, |(last, _)| last + 1));
        removals.insert(id, removal.clone());
        ledger.added(bytes, || RecordChange::removal(id, Some(removal)));
        ledger.announce(Announcement::RemovalStored);
        Ok(())
    }

    /// Ends the step. Returns what it has changed and has to announce.
    pub fn finish(self) -> JournalEntry {
        self.state.ledger.end_step()
    }
}
