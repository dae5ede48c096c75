//! The steps that change hashes.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::budget::{IDEMPOTENCY_KEY_BYTES, field_bytes, hash_bytes};
use super::idempotency::RecordedAnswer;
use super::log_step::{Purpose, drop_log};
use super::transaction::Transaction;
use super::{HashFields, MemoryState};
use crate::broker::memory::journal::RemovedHash;
use crate::broker::memory::micros;
use crate::broker::memory::record::RecordChange;
use crate::broker::{
    BrokerError, Condition, HashLifetime, HashWrite, MAX_COPIED_BYTES, MAX_FIELDS, PatchStep, WriteContext,
    WriteEffect, WriteOutcome, entity_tag,
};
use crate::names::{ChangeKind, ClearReason, EventId, FieldName, HashChange, HashName, Topic};
use crate::timestamp;

impl Condition {
    fn holds(&self, present: Option<&Bytes>) -> bool {
        match self {
            Self::Always => true,
            Self::Absent => present.is_none(),
            Self::Present => present.is_some(),
            Self::Matches(tags) => present.is_some_and(|value| tags.contains(&entity_tag(value))),
        }
    }
}

/// The fields that a write changes: their new values, or none for those that it removes.
#[derive(Default)]
struct Changes<'a> {
    fields: BTreeMap<&'a FieldName, Option<Bytes>>,
    copied: usize,
    sum: Option<Box<str>>,
}

impl<'a> Changes<'a> {
    fn new(field: &'a FieldName, value: Option<Bytes>) -> Self {
        Self { fields: BTreeMap::from([(field, value)]), ..Self::default() }
    }

    /// The changes as a log has them.
    fn kinds(&self, stored: Option<&HashFields>) -> Vec<ChangeKind> {
        let (mut set, mut removed) = (Vec::new(), Vec::new());
        for (field, value) in &self.fields {
            match value {
                Some(value) => set.push((field.to_string(), value.clone())),
                None if stored.is_some_and(|stored| stored.contains_key(field.as_str())) => {
                    removed.push(field.to_string());
                }
                None => {}
            }
        }
        let set = (!set.is_empty()).then_some(ChangeKind::Set(set));
        let removed = (!removed.is_empty()).then_some(ChangeKind::Remove(removed));
        set.into_iter().chain(removed).collect()
    }

    /// A field's value after the changes so far.
    fn value<'b>(&'b self, stored: Option<&'b HashFields>, field: &FieldName) -> Option<&'b Bytes> {
        self.fields.get(field).map_or_else(|| stored?.get(field.as_str()), Option::as_ref)
    }
}

/// What a write is going to do.
enum Plan<'a> {
    Change(Changes<'a>),
    Clear,
    Expire(Option<HashLifetime>),
    /// Nothing, for this reason.
    Nothing(WriteOutcome),
}

impl<'a> Plan<'a> {
    fn new(stored: Option<&HashFields>, write: &'a HashWrite) -> Result<Self, BrokerError> {
        let value = |field: &FieldName| stored?.get(field.as_str());
        let change = |field, value| Self::Change(Changes::new(field, value));
        Ok(match write {
            HashWrite::Set { field, condition, .. }
            | HashWrite::Remove { field, condition }
            | HashWrite::Increment { field, condition, .. }
                if !condition.holds(value(field)) =>
            {
                Self::Nothing(WriteOutcome::Refused)
            }
            HashWrite::Set { field, value, .. } => change(field, Some(value.clone())),
            HashWrite::Remove { field, .. } if value(field).is_none() => Self::absent(field),
            HashWrite::Remove { field, .. } => change(field, None),
            HashWrite::Increment { field, by, .. } => {
                let sum = by.add_to(value(field).map_or(b"0", |value| value)).ok_or(BrokerError::NotANumber)?;
                let changes = Changes::new(field, Some(sum.clone().into()));
                Self::Change(Changes { sum: Some(sum.into()), ..changes })
            }
            HashWrite::Patch(steps) => Self::from_patch(stored, steps)?,
            HashWrite::Clear | HashWrite::Expire(_) if stored.is_none() => {
                Self::Nothing(WriteOutcome::Absent(None))
            }
            HashWrite::Clear => Self::Clear,
            HashWrite::Expire(lifetime) => Self::Expire(*lifetime),
        })
    }

    fn from_patch(stored: Option<&HashFields>, steps: &'a [PatchStep]) -> Result<Self, BrokerError> {
        let mut changes = Changes::default();
        for step in steps {
            match step {
                PatchStep::Require(field) if changes.value(stored, field).is_none() => {
                    return Ok(Self::absent(field));
                }
                PatchStep::Test(field, expected) if changes.value(stored, field) != Some(expected) => {
                    return Ok(Self::Nothing(WriteOutcome::Refused));
                }
                PatchStep::Require(_) | PatchStep::Test(..) => {}
                PatchStep::Set(field, value) => {
                    changes.fields.insert(field, Some(value.clone()));
                }
                PatchStep::Remove(field) => {
                    changes.fields.insert(field, None);
                }
                PatchStep::Copy { from, to } => {
                    let Some(value) = changes.value(stored, from).cloned() else { return Ok(Self::absent(from)) };
                    changes.copied += value.len();
                    if changes.copied > MAX_COPIED_BYTES {
                        return Err(BrokerError::CopyTooLarge);
                    }
                    changes.fields.insert(to, Some(value));
                }
            }
        }
        Ok(Self::Change(changes))
    }

    /// The changes as a log has them.
    fn kinds(&self, stored: Option<&HashFields>) -> Vec<ChangeKind> {
        match self {
            Self::Nothing(_) => Vec::new(),
            Self::Change(changes) => changes.kinds(stored),
            Self::Clear => vec![ChangeKind::Clear(ClearReason::Removed)],
            Self::Expire(_) => vec![ChangeKind::Expiry],
        }
    }

    fn absent(field: &FieldName) -> Self {
        Self::Nothing(WriteOutcome::Absent(Some(field.clone())))
    }
}

/// The outcome of a write to a hash. A removed hash takes time to drop, which is not for a holder of the memory's lock.
pub struct HashStep {
    pub outcome: WriteOutcome,
    _removed: Option<Arc<HashFields>>,
}

impl From<WriteOutcome> for HashStep {
    fn from(outcome: WriteOutcome) -> Self {
        Self { outcome, _removed: None }
    }
}

impl Transaction<'_> {
    /// Makes a write, unless an earlier one with the same key did so. Remembers the key of a write that is done. The only
    /// way to change a hash, after [`Self::expire_hash`].
    pub fn write_hash(
        &mut self,
        hash: &HashName,
        write: &HashWrite,
        WriteContext { key, by, watermarks }: WriteContext<'_>,
    ) -> Result<HashStep, BrokerError> {
        let topic = Topic::from(hash.clone());
        let recorded = key.map(|key| self.state.idempotency.recorded(&topic, key, self.now)).transpose()?;
        if let Some(RecordedAnswer::Written(effect)) = recorded.flatten() {
            return Ok(WriteOutcome::Done(effect.clone(), true).into());
        }
        let key_bytes = key.map_or(0, |_| IDEMPOTENCY_KEY_BYTES);
        let plan = Plan::new(self.state.hashes.get(hash), write)?;
        // A hash that nobody watches has no log.
        let is_watched = self.state.log(&topic, self.now).is_some() || !watermarks.is_empty();
        let changes = if is_watched { plan.kinds(self.state.hashes.get(hash)) } else { Vec::new() };
        let log_bytes = changes.iter().map(ChangeKind::bytes).sum::<usize>();
        let (effect, removed) = match plan {
            Plan::Nothing(outcome) => return Ok(outcome.into()),
            Plan::Change(changes) => {
                self.require_changes(hash, &changes, key_bytes + log_bytes)?;
                let effect = self.change_fields(hash, changes);
                self.refresh_expiry(hash);
                (effect, None)
            }
            // A hash takes more memory than a key and an entry.
            Plan::Clear => (WriteEffect { removed: 1, ..WriteEffect::default() }, self.remove_hash(hash)),
            Plan::Expire(lifetime) => {
                self.require_lifetime(hash, lifetime, key_bytes + log_bytes)?;
                self.set_lifetime(hash, lifetime);
                (WriteEffect::default(), None)
            }
        };
        self.append_changes(hash, watermarks, by, changes);
        if let Some(key) = key {
            let MemoryState { idempotency, ledger, retention, .. } = &mut *self.state;
            let until = self.now.saturating_add(micros(retention.for_topic(&topic).idempotency_window));
            idempotency.record(&topic, key, RecordedAnswer::Written(effect.clone()), until, ledger);
        }
        Ok(HashStep { outcome: WriteOutcome::Done(effect, false), _removed: removed })
    }

    /// Appends changes to the log of a hash, if there are any.
    pub(super) fn append_changes(
        &mut self,
        hash: &HashName,
        watermarks: &[EventId],
        by: Option<&str>,
        changes: Vec<ChangeKind>,
    ) {
        if changes.is_empty() {
            return;
        }
        let topic = Topic::from(hash.clone());
        let published_at = timestamp::from_milliseconds(self.now / 1000);
        let expires_at = self.state.expiries.get(hash).map_or(0, |expiry| expiry.at);
        match self.open_log(&topic, watermarks, Purpose::Append) {
            Ok(mut log) => changes.into_iter().for_each(|kind| {
                let (published_at, by) = (published_at.clone(), by.map(str::to_owned));
                log.append(HashChange { published_at, by, expires_at, kind }.encode());
            }),
            // Without its entries, the log would be wrong. Without a log, watchers read the hash again.
            Err(_) => self.drop_log_of(&topic),
        }
    }

    fn drop_log_of(&mut self, topic: &Topic) {
        let MemoryState { logs, unused_logs, ledger, .. } = &mut *self.state;
        if let Some(mut log) = logs.remove(topic) {
            drop_log(topic, &mut log, unused_logs, ledger);
        }
    }

    /// Fails if a hash would have too many fields, or if there is no room for the new values and a key.
    fn require_changes(
        &mut self,
        hash: &HashName,
        changes: &Changes<'_>,
        key_bytes: usize,
    ) -> Result<(), BrokerError> {
        let present = self.state.hashes.get(hash);
        let (mut set, mut added, mut removed) = (0, 0, 0);
        let (mut bytes, mut freed) = (key_bytes, 0);
        for (field, value) in &changes.fields {
            let before = present.and_then(|fields| fields.get(field.as_str()));
            if let Some(value) = value {
                (set, added) = (set + 1, added + usize::from(before.is_none()));
                bytes += field_bytes(field.as_str(), value);
            } else if let Some(before) = before {
                removed += 1;
                freed += field_bytes(field.as_str(), before);
            }
        }
        let count = present.map_or(0, BTreeMap::len);
        if added > removed && count + added - removed > MAX_FIELDS {
            return Err(BrokerError::TooManyFields);
        }
        if present.is_none() && set > 0 {
            bytes += hash_bytes(hash);
        }
        // What only frees memory is done however much is in use.
        if bytes > freed { self.require(bytes - freed) } else { Ok(()) }
    }

    fn change_fields(&mut self, hash: &HashName, changes: Changes<'_>) -> WriteEffect {
        let copied = u32::try_from(changes.copied).expect("copies have at most MAX_COPIED_BYTES");
        let mut effect = WriteEffect { copied, sum: changes.sum, ..WriteEffect::default() };
        for (field, value) in changes.fields {
            let count = match value {
                Some(value) => {
                    let had_value = self.set_field(hash, field, value);
                    if had_value { &mut effect.replaced } else { &mut effect.created }
                }
                None if self.remove_field(hash, field) => &mut effect.removed,
                None => continue,
            };
            *count += 1;
        }
        // A hash that has fields in the end keeps its expiry, even if it had none in between.
        if !self.state.hashes.contains_key(hash) {
            self.set_expiry(hash, None);
        }
        effect
    }

    /// Sets a field. Returns whether it had a value.
    fn set_field(&mut self, hash: &HashName, field: &FieldName, value: Bytes) -> bool {
        let MemoryState { hashes, ledger, .. } = &mut *self.state;
        let (name, bytes) = (field.as_str(), field_bytes(field.as_str(), &value));
        let fields = hashes.entry(hash.clone()).or_default();
        let new_hash = if fields.is_empty() { hash_bytes(hash) } else { 0 };
        let before = fields.insert(name.into(), value);
        let bytes_before = before.as_ref().map_or(0, |before| field_bytes(name, before));
        ledger.replaced(bytes_before, bytes + new_hash, || {
            RecordChange::field(hash, name, fields.get(name).cloned())
        });
        before.is_some()
    }

    /// Removes a field, and the hash with its last field. Returns whether the field had a value.
    fn remove_field(&mut self, hash: &HashName, field: &FieldName) -> bool {
        let MemoryState { hashes, ledger, .. } = &mut *self.state;
        let Some(fields) = hashes.get_mut(hash) else { return false };
        let Some(value) = fields.remove(field.as_str()) else { return false };
        let mut bytes = field_bytes(field.as_str(), &value);
        if fields.is_empty() {
            hashes.remove(hash);
            bytes += hash_bytes(hash);
        }
        ledger.removed(bytes, || RecordChange::field(hash, field.as_str(), None));
        true
    }

    pub(super) fn remove_hash(&mut self, hash: &HashName) -> Option<Arc<HashFields>> {
        let fields = Arc::new(self.state.hashes.remove(hash)?);
        self.set_expiry(hash, None);
        let bytes = fields.iter().map(|(field, value)| field_bytes(field, value)).sum::<usize>();
        let removed = RemovedHash { hash: hash.clone(), fields: fields.clone() };
        self.state.ledger.removed_hash(bytes + hash_bytes(hash), removed);
        Some(fields)
    }
}
