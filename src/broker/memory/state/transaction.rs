//! A step on the memory, and the steps that change hashes and removals.

use std::sync::Arc;

use bytes::Bytes;

use super::budget::{field_bytes, hash_bytes, removal_bytes};
use super::{HashFields, MemoryState};
use crate::broker::memory::announcement::Announcement;
use crate::broker::memory::journal::{JournalEntry, RemovedHash};
use crate::broker::memory::record::RecordChange;
use crate::broker::{BrokerError, Fault, FaultKind, MAX_FIELDS, MAX_REMOVALS, Removal};
use crate::names::{FieldName, HashName};

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

    /// Sets a field of a hash. Returns the value that the field had. Does not check the limits; see
    /// [`Self::require_fields`].
    pub fn set_field(&mut self, hash: &HashName, field: &FieldName, value: Bytes) -> Option<Bytes> {
        let MemoryState { hashes, ledger, .. } = &mut *self.state;
        let (name, bytes) = (field.as_str(), field_bytes(field.as_str(), &value));
        let fields = hashes.entry(hash.clone()).or_default();
        let new_hash = if fields.is_empty() { hash_bytes(hash) } else { 0 };
        let before = fields.insert(name.into(), value);
        let bytes_before = before.as_ref().map_or(0, |before| field_bytes(name, before));
        ledger.replaced(bytes_before, bytes + new_hash, || {
            RecordChange::field(hash, name, fields.get(name).cloned())
        });
        before
    }

    /// Removes a field of a hash, and the hash with its last field. Returns the value that the field had.
    pub fn remove_field(&mut self, hash: &HashName, field: &FieldName) -> Option<Bytes> {
        let fields = self.state.hashes.get_mut(hash)?;
        let value = fields.remove(field.as_str())?;
        let mut bytes = field_bytes(field.as_str(), &value);
        if fields.is_empty() {
            self.state.hashes.remove(hash);
            bytes += hash_bytes(hash);
        }
        self.state.ledger.removed(bytes, || RecordChange::field(hash, field.as_str(), None));
        Some(value)
    }

    /// Removes a hash. Returns its fields, which take time to drop. That is not for a holder of the memory's lock.
    pub fn remove_hash(&mut self, hash: &HashName) -> Option<Arc<HashFields>> {
        let fields = Arc::new(self.state.hashes.remove(hash)?);
        let bytes = fields.iter().map(|(field, value)| field_bytes(field, value)).sum::<usize>();
        self.state
            .ledger
            .removed_hash(bytes + hash_bytes(hash), RemovedHash { hash: hash.clone(), fields: fields.clone() });
        Some(fields)
    }

    /// Fails if a hash would have too many fields with these, or if there is no room for them.
    pub fn require_fields(&mut self, hash: &HashName, set: &[(&FieldName, &Bytes)]) -> Result<(), BrokerError> {
        let bytes = set.iter().map(|(field, value)| field_bytes(field.as_str(), value)).sum::<usize>();
        let Some(present) = self.state.hashes.get(hash) else { return self.require(bytes + hash_bytes(hash)) };
        if present.len() + set.len() > MAX_FIELDS {
            let added = set.iter().filter(|(field, _)| !present.contains_key(field.as_str())).count();
            if present.len() + added > MAX_FIELDS {
                return Err(BrokerError::TooManyFields);
            }
        }
        self.require(bytes)
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
