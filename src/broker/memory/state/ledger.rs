//! Accounts for the changes of the memory: the bytes that are held, the changes for the journal, the announcements.
//!
//! A step reports each change here, so that none can be counted and not journalled, or the reverse.

use super::budget::ByteBudget;
use crate::broker::memory::announcement::Announcement;
use crate::broker::memory::journal::{JournalEntry, RemovedHash};
use crate::broker::memory::record::RecordChange;
use crate::broker::{BrokerError, Fault};

/// The bytes that the memory holds, and what the present step has changed and has to announce.
pub struct Ledger {
    budget: ByteBudget,
    /// In the order in which the memory was changed. None if there is no journal.
    changes: Option<Vec<RecordChange>>,
    removed_hash: Option<RemovedHash>,
    announcements: Vec<Announcement>,
}

impl Ledger {
    pub fn new(max_bytes: usize) -> Self {
        Self { budget: ByteBudget::new(max_bytes), changes: None, removed_hash: None, announcements: Vec::new() }
    }

    pub fn used_bytes(&self) -> usize {
        self.budget.used()
    }

    pub fn max_bytes(&self) -> usize {
        self.budget.limit()
    }

    /// Why writes fail, if there is no room for them.
    pub fn fault(&mut self) -> Option<Fault> {
        self.budget.fault()
    }

    /// Fails if there is no room for so many more bytes. The methods below do not check this.
    pub fn require(&mut self, bytes: usize) -> Result<(), BrokerError> {
        self.budget.require(bytes)
    }

    /// Fails if there is no room for a removal of so many bytes.
    pub fn require_for_removal(&self, bytes: usize) -> Result<(), BrokerError> {
        self.budget.require_for_removal(bytes)
    }

    /// Something was loaded from the data folder.
    pub fn loaded(&mut self, bytes: usize) {
        self.budget.charge(bytes);
    }

    /// Collects changes for a journal from now on.
    pub fn start_journal(&mut self) {
        self.changes = Some(Vec::new());
    }

    /// Something new is held.
    pub fn added(&mut self, bytes: usize, change: impl FnOnce() -> RecordChange) {
        self.replaced(0, bytes, change);
    }

    /// Something that is held has another size. A size of 0 stands for something that was, or is, not held.
    pub fn replaced(&mut self, before: usize, bytes: usize, change: impl FnOnce() -> RecordChange) {
        self.budget.charge(bytes);
        self.budget.release(before);
        self.changed(change);
    }

    /// Something that is held has changed and has the same size as before.
    pub fn changed(&mut self, change: impl FnOnce() -> RecordChange) {
        if let Some(changes) = &mut self.changes {
            changes.push(change());
        }
    }

    /// Something is no longer held.
    pub fn removed(&mut self, bytes: usize, change: impl FnOnce() -> RecordChange) {
        self.replaced(bytes, 0, change);
    }

    /// A hash is no longer held. The journal's thread makes a change of each of its fields.
    pub fn removed_hash(&mut self, bytes: usize, hash: RemovedHash) {
        self.budget.release(bytes);
        if self.changes.is_some() {
            self.removed_hash = Some(hash);
        }
    }

    /// Listeners have to learn of something.
    pub fn announce(&mut self, announcement: Announcement) {
        self.announcements.push(announcement);
    }

    /// Hands out what the step has changed and has to announce.
    pub fn end_step(&mut self) -> JournalEntry {
        let changes = self.changes.as_mut().map(std::mem::take).unwrap_or_default();
        let removed_hash = self.removed_hash.take();
        JournalEntry { changes, removed_hash, announcements: std::mem::take(&mut self.announcements) }
    }
}
