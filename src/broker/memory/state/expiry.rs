//! When hashes expire: by hash, and in the order of time.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::budget::expiry_bytes;
use super::transaction::Transaction;
use super::{HashFields, MemoryState};
use crate::broker::memory::record::RecordChange;
use crate::broker::{BrokerError, HashExpiry, HashLifetime};
use crate::names::{ChangeKind, ClearReason, HashName};

/// The expiries of hashes. A hash without one does not expire.
#[derive(Default)]
pub struct HashExpiries {
    by_hash: HashMap<HashName, HashExpiry>,
    /// In milliseconds since 1970.
    by_time: BTreeSet<(u64, HashName)>,
}

impl HashExpiries {
    pub fn get(&self, hash: &HashName) -> Option<HashExpiry> {
        self.by_hash.get(hash).copied()
    }

    /// Replaces the expiry of a hash. Returns the one before.
    pub fn set(&mut self, hash: HashName, expiry: Option<HashExpiry>) -> Option<HashExpiry> {
        let before = match expiry {
            Some(expiry) => self.by_hash.insert(hash.clone(), expiry),
            None => self.by_hash.remove(&hash),
        };
        if let Some(before) = before {
            self.by_time.remove(&(before.at, hash.clone()));
        }
        if let Some(expiry) = expiry {
            self.by_time.insert((expiry.at, hash));
        }
        before
    }

    /// Whether a hash has expired at this time, in microseconds since 1970.
    pub fn is_due(&self, hash: &HashName, now: u64) -> bool {
        self.get(hash).is_some_and(|expiry| expiry.at <= now / 1000)
    }

    /// The hash that has expired first, at this time in microseconds since 1970.
    pub fn first_due(&self, now: u64) -> Option<HashName> {
        self.by_time.first().filter(|(at, _)| *at <= now / 1000).map(|(_, hash)| hash.clone())
    }

    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = (&HashName, &HashExpiry)> {
        let by_time: BTreeSet<_> = self.by_hash.iter().map(|(hash, expiry)| (expiry.at, hash.clone())).collect();
        assert_eq!(by_time, self.by_time);
        self.by_hash.iter()
    }
}

impl Transaction<'_> {
    /// Removes a hash if it has expired. A hash takes time to drop, which is not for a holder of the memory's lock.
    pub fn expire_hash(&mut self, hash: &HashName) -> Option<Arc<HashFields>> {
        if !self.state.expiries.is_due(hash, self.now) {
            return None;
        }
        let removed = self.remove_hash(hash);
        if self.state.log(&hash.clone().into(), self.now).is_some() {
            self.append_changes(hash, &[], None, vec![ChangeKind::Clear(ClearReason::Expired)]);
        }
        removed
    }

    /// Fails if there is no room for a hash's new expiry and a key.
    pub(super) fn require_lifetime(
        &mut self,
        hash: &HashName,
        lifetime: Option<HashLifetime>,
        key_bytes: usize,
    ) -> Result<(), BrokerError> {
        let is_new = lifetime.is_some() && self.state.expiries.get(hash).is_none();
        let bytes = key_bytes + if is_new { expiry_bytes(hash) } else { 0 };
        if bytes > 0 { self.require(bytes) } else { Ok(()) }
    }

    /// Begins a new lifetime of a hash. Without one, the hash does not expire.
    pub(super) fn set_lifetime(&mut self, hash: &HashName, lifetime: Option<HashLifetime>) {
        let milliseconds = |lifetime: HashLifetime| u64::from(lifetime.seconds) * 1000;
        let expiry = lifetime.map(|lifetime| HashExpiry {
            at: self.now / 1000 + milliseconds(lifetime),
            refresh: lifetime.is_refreshed.then(|| milliseconds(lifetime)),
        });
        self.set_expiry(hash, expiry);
    }

    /// Begins the lifetime of a hash anew, if writes refresh it.
    pub(super) fn refresh_expiry(&mut self, hash: &HashName) {
        if let Some(expiry) = self.state.expiries.get(hash)
            && let Some(lifetime) = expiry.refresh
        {
            self.set_expiry(hash, Some(HashExpiry { at: self.now / 1000 + lifetime, ..expiry }));
        }
    }

    /// Replaces the expiry of a hash.
    pub(super) fn set_expiry(&mut self, hash: &HashName, expiry: Option<HashExpiry>) {
        let MemoryState { expiries, ledger, .. } = &mut *self.state;
        let before = expiries.set(hash.clone(), expiry);
        if before != expiry {
            let bytes = |expiry: Option<HashExpiry>| expiry.map_or(0, |_| expiry_bytes(hash));
            ledger.replaced(bytes(before), bytes(expiry), || RecordChange::expiry(hash, expiry.as_ref()));
        }
    }
}
