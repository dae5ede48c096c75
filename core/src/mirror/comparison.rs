//! A read of a watched hash, and its comparison with the mirror: what the read shows of the state, and which fields are
//! to be appended to the log because other clients have changed them.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Mirror;
use crate::names::{ChangeKind, EventId, HashChange, digest};

/// Attempts to append what others have changed before the log gets other entries. The last one takes any end of the
/// log.
const APPEND_ATTEMPTS: usize = 5;

/// The fields of a hash as they were read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct StoredState {
    /// Their values.
    pub fields: BTreeMap<Box<str>, Bytes>,
    /// The digests of the values, as far as they have been computed.
    pub digests: BTreeMap<Box<str>, u64>,
}

impl StoredState {
    /// A state of these fields, without digests.
    pub fn new(fields: BTreeMap<Box<str>, Bytes>) -> Self {
        Self { fields, digests: BTreeMap::new() }
    }

    /// Makes a change that the state may or may not have yet.
    fn apply(&mut self, change: &HashChange) {
        match &change.kind {
            ChangeKind::Set(fields) => {
                for (field, value) in fields {
                    self.fields.insert(field.as_str().into(), value.clone());
                    self.digests.insert(field.as_str().into(), digest(value));
                }
            }
            ChangeKind::Remove(fields) => {
                for field in fields {
                    self.fields.remove(field.as_str());
                    self.digests.remove(field.as_str());
                }
            }
            ChangeKind::Clear(_) => {
                self.fields.clear();
                self.digests.clear();
            }
            ChangeKind::Expiry => {}
        }
    }
}

/// A read of a hash: the end of the log first, then the fields, and then the log again. So no change is missing that is
/// not in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HashRead {
    start: EventId,
    mirror: Option<EventId>,
    reaches_mirror: bool,
}

impl HashRead {
    /// Begins a read, at this end of the log, for a mirror at this position, if there is one.
    pub fn new(start: EventId, mirror: Option<EventId>) -> Self {
        Self { start, mirror, reaches_mirror: mirror.is_some() }
    }

    /// The position after which the log is to be read when the fields have been.
    pub fn log_from(&self) -> EventId {
        self.mirror.filter(|mirror| self.reaches_mirror && *mirror < self.start).unwrap_or(self.start)
    }

    /// The log has a gap after [`Self::log_from`]. Returns whether it can be read from a later position, without the
    /// mirror; else the whole read is in vain.
    pub fn give_up_mirror(&mut self) -> bool {
        let is_later = self.log_from() < self.start;
        self.reaches_mirror = false;
        is_later
    }

    /// Whether the log has no changes since the beginning of the read, which the fields may have in part.
    pub fn is_unchanged(&self, changes: &[(EventId, HashChange)]) -> bool {
        changes.iter().all(|(id, _)| *id <= self.start)
    }

    /// Adds the log's changes since the beginning of the read to the fields. `end` is the end of the log after them.
    /// Returns whether the mirror can go on with the changes.
    pub fn finish(&self, stored: &mut StoredState, changes: &[(EventId, HashChange)], end: EventId) -> bool {
        for (_, change) in changes.iter().filter(|(id, _)| *id > self.start) {
            stored.apply(change);
        }
        self.reaches_mirror && self.mirror.is_some_and(|mirror| mirror <= end)
    }
}

/// A comparison of a state that was read with the mirror. Until it is done, the fields in which they differ are to be
/// appended, even if another client has undone its change meanwhile: watchers may get the state that was read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Comparison {
    stored: StoredState,
    /// The position of the state.
    position: EventId,
    differing: Vec<Box<str>>,
    /// The end that the log must have for an append. None if it may have any.
    end: Option<EventId>,
    attempts: usize,
}

impl Comparison {
    /// Compares a state at this end of the log with the mirror, once the mirror has the changes up to there.
    pub fn new(mirror: &mut Mirror, stored: StoredState, changes: &[(EventId, HashChange)], end: EventId) -> Self {
        mirror.catch_up(changes, end);
        let differing = mirror.differing(&stored.digests);
        Self { stored, position: end, differing, end: Some(end), attempts: 1 }
    }

    /// The fields that are to be appended next, and the end that the log must have for that, if it must have one. None
    /// if all is done.
    pub fn to_append(&self) -> Option<(Option<EventId>, &[Box<str>])> {
        (!self.differing.is_empty()).then_some((self.end, &*self.differing))
    }

    /// The first ones of the fields, this many, were appended.
    pub fn appended(&mut self, count: usize) {
        self.differing.drain(..count);
        // The entries of this very step are the only ones that the log has got.
        self.end = None;
    }

    /// Nothing was appended, since the log has other entries: these changes, up to this end. They may tell what was
    /// taken for a change of another client. Returns whether to go on.
    pub fn catch_up(&mut self, mirror: &mut Mirror, changes: &[(EventId, HashChange)], end: EventId) -> bool {
        for (_, change) in changes {
            self.stored.apply(change);
            self.differing.retain(|field| !touches(change, field));
        }
        mirror.catch_up(changes, end);
        self.position = end;
        self.attempts += 1;
        self.end = (self.attempts < APPEND_ATTEMPTS).then_some(end);
        self.differing.is_empty() || self.attempts <= APPEND_ATTEMPTS
    }

    /// The position up to which the state has the log's changes.
    pub fn position(&self) -> EventId {
        self.position
    }

    /// The state that watchers may get.
    pub fn into_stored(self) -> StoredState {
        self.stored
    }
}

/// Whether a change says what a field has.
fn touches(change: &HashChange, field: &str) -> bool {
    match &change.kind {
        ChangeKind::Set(fields) => fields.iter().any(|(name, _)| name == field),
        ChangeKind::Remove(fields) => fields.iter().any(|name| name == field),
        ChangeKind::Clear(_) => true,
        ChangeKind::Expiry => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_goes_on_without_a_mirror_that_the_log_no_longer_reaches() {
        let [mirror, start, end] = [1, 3, 4].map(|offset| EventId::new(1, offset));
        let mut read = HashRead::new(start, Some(mirror));
        assert_eq!(read.log_from(), mirror);
        assert!(read.give_up_mirror());
        assert_eq!(read.log_from(), start);
        assert!(!read.finish(&mut StoredState::default(), &[], end));
        // The log has a gap there, too.
        assert!(!read.give_up_mirror());
    }
}
