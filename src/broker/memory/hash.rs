//! Shared hashes in memory.

use std::collections::BTreeMap;
use std::ops::Bound;

use async_trait::async_trait;
use bytes::Bytes;

use super::record::RecordChange;
use super::{DurableAt, MemoryBroker, OVERHEAD_BYTES, State};
use crate::broker::{
    BrokerError, Condition, FieldPage, HashStore, PatchOutcome, RemoveOutcome, SetOutcome, entity_tag,
};
use crate::names::{FieldName, HashName};

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

impl State {
    fn value(&self, hash: &HashName, field: &str) -> Option<&Bytes> {
        self.hashes.get(hash)?.get(field)
    }

    pub(super) fn insert(&mut self, hash: &HashName, field: &FieldName, value: Bytes) -> Option<Bytes> {
        self.bytes += cost(field.as_str(), &value);
        self.notes.add(|| RecordChange::field(hash, field.as_str(), Some(value.clone())));
        let fields = self.hashes.entry(hash.clone()).or_default();
        let before = fields.insert(field.as_str().into(), value);
        self.bytes -= before.as_ref().map_or(0, |before| cost(field.as_str(), before));
        before
    }

    /// A hash without fields does not exist, as on Redis.
    fn take(&mut self, hash: &HashName, field: &FieldName) -> Option<Bytes> {
        let fields = self.hashes.get_mut(hash)?;
        let before = fields.remove(field.as_str())?;
        self.bytes -= cost(field.as_str(), &before);
        self.notes.add(|| RecordChange::field(hash, field.as_str(), None));
        if fields.is_empty() {
            self.hashes.remove(hash);
        }
        Some(before)
    }
}

fn cost(field: &str, value: &Bytes) -> usize {
    field.len() + value.len() + OVERHEAD_BYTES
}

impl MemoryBroker {
    fn with_hashes<T>(
        &self,
        step: impl FnOnce(&mut State) -> Result<T, BrokerError>,
    ) -> Result<(T, DurableAt), BrokerError> {
        let mut state = self.state();
        self.check_journal()?;
        let outcome = step(&mut state);
        let own = self.finish(&mut state);
        state.hashes_lsn = own.unwrap_or(state.hashes_lsn);
        Ok((outcome?, own.map_or(DurableAt::Others(state.hashes_lsn), DurableAt::Own)))
    }

    fn read_hashes<T>(&self, read: impl FnOnce(&State) -> T) -> (T, DurableAt) {
        let state = self.state();
        (read(&state), DurableAt::Others(state.hashes_lsn))
    }
}

#[async_trait]
impl HashStore for MemoryBroker {
    async fn value(&self, hash: &HashName, field: &FieldName) -> Result<Option<Bytes>, BrokerError> {
        let (value, awaited) = self.read_hashes(|state| state.value(hash, field.as_str()).cloned());
        self.wait_read(awaited).await?;
        Ok(value)
    }

    async fn values(&self, hash: &HashName, fields: &[FieldName]) -> Result<Vec<Option<Bytes>>, BrokerError> {
        let (values, awaited) = self
            .read_hashes(|state| fields.iter().map(|field| state.value(hash, field.as_str()).cloned()).collect());
        self.wait_read(awaited).await?;
        Ok(values)
    }

    async fn page(&self, hash: &HashName, from: Option<&str>, limit: usize) -> Result<FieldPage, BrokerError> {
        let (page, awaited) = self.read_hashes(|state| {
            let Some(all) = state.hashes.get(hash) else { return FieldPage::default() };
            let start = from.map_or(Bound::Unbounded, Bound::Excluded);
            let mut rest = all.range::<str, _>((start, Bound::Unbounded));
            let fields: Vec<_> =
                rest.by_ref().take(limit).map(|(field, value)| (field.clone(), value.clone())).collect();
            let next = rest.next().and(fields.last()).map(|(field, _)| field.clone());
            FieldPage { fields, next }
        });
        self.wait_read(awaited).await?;
        Ok(page)
    }

    async fn set(
        &self,
        hash: &HashName,
        field: &FieldName,
        value: Bytes,
        condition: &Condition,
    ) -> Result<SetOutcome, BrokerError> {
        let (written, awaited) = self.with_hashes(|state| {
            let present = state.value(hash, field.as_str());
            if !condition.holds(present) {
                return Ok(SetOutcome::Refused(present.cloned()));
            }
            self.check_room_for(state.bytes, cost(field.as_str(), &value))?;
            Ok(state.insert(hash, field, value).map_or(SetOutcome::Created, |_| SetOutcome::Replaced))
        })?;
        self.wait_write(awaited).await?;
        Ok(written)
    }

    async fn remove(
        &self,
        hash: &HashName,
        field: &FieldName,
        condition: &Condition,
    ) -> Result<RemoveOutcome, BrokerError> {
        let (removed, awaited) = self.with_hashes(|state| {
            let present = state.value(hash, field.as_str());
            if !condition.holds(present) {
                return Ok(RemoveOutcome::Refused(present.cloned()));
            }
            Ok(state.take(hash, field).map_or(RemoveOutcome::Absent, |_| RemoveOutcome::Removed))
        })?;
        self.wait_write(awaited).await?;
        Ok(removed)
    }

    async fn patch(
        &self,
        hash: &HashName,
        changes: &BTreeMap<FieldName, Option<Bytes>>,
    ) -> Result<PatchOutcome, BrokerError> {
        let (patched, awaited) = self.with_hashes(|state| {
            let values = changes.iter().filter_map(|(field, value)| Some((field, value.as_ref()?)));
            let more = values.map(|(field, value)| cost(field.as_str(), value)).sum();
            self.check_room_for(state.bytes, more)?;
            let mut patched = PatchOutcome::default();
            for (field, value) in changes {
                match value {
                    Some(value) => match state.insert(hash, field, value.clone()) {
                        None => patched.created += 1,
                        Some(_) => patched.replaced += 1,
                    },
                    None => patched.removed += u64::from(state.take(hash, field).is_some()),
                }
            }
            Ok(patched)
        })?;
        self.wait_write(awaited).await?;
        Ok(patched)
    }

    async fn delete(&self, hash: &HashName) -> Result<bool, BrokerError> {
        let (cleared, awaited) = self.with_hashes(|state| {
            let Some(fields) = state.hashes.remove(hash) else { return Ok(false) };
            for (field, value) in &fields {
                state.bytes -= cost(field, value);
                state.notes.add(|| RecordChange::field(hash, field, None));
            }
            Ok(true)
        })?;
        self.wait_write(awaited).await?;
        Ok(cleared)
    }

    async fn increment(&self, hash: &HashName, field: &FieldName, by: i64) -> Result<i64, BrokerError> {
        let (sum, awaited) = self.with_hashes(|state| {
            let present = match state.value(hash, field.as_str()) {
                None => 0,
                Some(value) => whole_number(value).ok_or(BrokerError::NotANumber)?,
            };
            let sum = present.checked_add(by).ok_or(BrokerError::NotANumber)?;
            let value = Bytes::from(sum.to_string());
            self.check_room_for(state.bytes, cost(field.as_str(), &value))?;
            state.insert(hash, field, value);
            Ok(sum)
        })?;
        self.wait_write(awaited).await?;
        Ok(sum)
    }
}

/// Only the spelling that Redis takes for a number: no sign but `-`, no zeros in front, no spaces.
fn whole_number(value: &[u8]) -> Option<i64> {
    let number: i64 = std::str::from_utf8(value).ok()?.parse().ok()?;
    (number.to_string().as_bytes() == value).then_some(number)
}
