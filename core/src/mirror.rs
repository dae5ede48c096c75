//! A replica's mirror of a watched hash: a digest of each field, at one position of the hash's log.
//!
//! Watchers that have a mirror's number in their place have the mirror's state. So a change that another client of the
//! server has made is found where the stored state differs from the mirror, and it is told by an entry of the log.

mod comparison;
mod watch;

use std::collections::BTreeMap;

pub use self::comparison::{Comparison, HashRead, StoredState};
pub use self::watch::WatchPhase;

use crate::names::{ChangeEffect, EventId, HashChange};

/// A mirror of a hash.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mirror {
    digests: BTreeMap<Box<str>, u64>,
    position: EventId,
    /// When the hash expires, in milliseconds since 1970; 0 if it does not.
    expires_at: u64,
}

impl Mirror {
    /// A mirror of a state that was read at this position: the digests of its fields.
    pub fn new(position: EventId, digests: BTreeMap<Box<str>, u64>, expires_at: u64) -> Self {
        Self { digests, position, expires_at }
    }

    /// The position up to which the mirror has the changes.
    pub fn position(&self) -> EventId {
        self.position
    }

    /// When the hash expires, as far as the mirror knows, in milliseconds since 1970; 0 if it does not.
    pub fn expires_at(&self) -> u64 {
        self.expires_at
    }

    /// Notes when the stored hash expires.
    pub fn set_expiry(&mut self, expires_at: u64) {
        self.expires_at = expires_at;
    }

    /// Makes a change that follows the mirror's position.
    pub fn apply(&mut self, id: EventId, effect: &ChangeEffect) {
        if effect.clears {
            self.digests.clear();
        }
        for (field, digest) in &effect.fields {
            match digest {
                Some(digest) => self.digests.insert(field.clone(), *digest),
                None => self.digests.remove(field),
            };
        }
        (self.position, self.expires_at) = (id, effect.expires_at);
    }

    /// Makes the changes of the log up to this end, as far as they follow the mirror's position.
    pub fn catch_up(&mut self, changes: &[(EventId, HashChange)], end: EventId) {
        for (id, change) in changes {
            if *id > self.position {
                self.apply(*id, &change.effect());
            }
        }
        self.advance_to(end);
    }

    /// Moves to a position up to which there are no changes.
    pub fn advance_to(&mut self, position: EventId) {
        self.position = position;
    }

    /// The fields in which a state differs from the mirror. They are different because another client has changed them,
    /// if the state has all changes up to the mirror's position and no others.
    pub fn differing(&self, state: &BTreeMap<Box<str>, u64>) -> Vec<Box<str>> {
        let changed = state.iter().filter(|(field, digest)| self.digests.get(*field) != Some(*digest));
        let gone = self.digests.keys().filter(|field| !state.contains_key(*field));
        changed.map(|(field, _)| field).chain(gone).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::{ChangeKind, ClearReason, HashChange, digest};

    fn state(fields: &[(&str, &str)]) -> BTreeMap<Box<str>, u64> {
        fields.iter().map(|(field, value)| ((*field).into(), digest(value.as_bytes()))).collect()
    }

    fn effect(kind: ChangeKind) -> ChangeEffect {
        HashChange { published_at: String::new(), by: None, expires_at: 5, kind }.effect()
    }

    #[test]
    fn changes_make_a_mirror_of_the_state_that_is_stored() {
        let id = |offset| EventId::new(1, offset);
        let mut mirror = Mirror::new(id(1), state(&[("a", "1"), ("b", "2")]), 0);
        let set = ChangeKind::Set(vec![("a".into(), "3".into()), ("c".into(), "4".into())]);
        mirror.apply(id(2), &effect(set));
        mirror.apply(id(3), &effect(ChangeKind::Remove(vec!["b".into()])));
        assert_eq!((mirror.position(), mirror.expires_at()), (id(3), 5));
        assert!(mirror.differing(&state(&[("a", "3"), ("c", "4")])).is_empty());
        let mut others = mirror.differing(&state(&[("a", "1"), ("b", "2")]));
        others.sort();
        assert_eq!(others, ["a".into(), "b".into(), "c".into()] as [Box<str>; 3]);
        mirror.apply(id(4), &effect(ChangeKind::Clear(ClearReason::Removed)));
        assert!(mirror.differing(&BTreeMap::new()).is_empty());
    }
}

#[cfg(test)]
mod model;
