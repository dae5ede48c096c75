//! The contract for shared hashes, in memory.

use std::collections::BTreeMap;
use std::ops::Bound;

use async_trait::async_trait;
use bytes::Bytes;

use super::MemoryBroker;
use super::journal::DurableAt;
use super::state::{MemoryState, Transaction};
use crate::broker::{
    BrokerError, Condition, FieldPage, HashStore, PatchOutcome, REPLY_BYTES, RemoveOutcome, SetOutcome,
    encoded_bytes, entity_tag,
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

impl MemoryState {
    fn value(&self, hash: &HashName, field: &FieldName) -> Option<&Bytes> {
        self.fields(hash)?.get(field.as_str())
    }
}

impl MemoryBroker {
    /// Runs a step that changes hashes.
    fn step_on_hashes<T>(
        &self,
        step: impl FnOnce(&mut Transaction<'_>) -> Result<T, BrokerError>,
    ) -> Result<(T, DurableAt), BrokerError> {
        let mut state = self.state();
        self.check_journal()?;
        let (outcome, own) = self.run(&mut state, step);
        let durable_at = DurableAt::new(own, state.hashes_lsn_mut());
        Ok((outcome?, durable_at))
    }

    fn read_hashes<T>(&self, read: impl FnOnce(&MemoryState) -> T) -> (T, DurableAt) {
        let state = self.state();
        (read(&state), DurableAt::Earlier(state.hashes_lsn()))
    }
}

/// What a reply has taken of [`REPLY_BYTES`].
#[derive(Default)]
struct ReplyRoom(usize);

impl ReplyRoom {
    /// Whether a field of this size belongs to the reply: it fits, or it is the first one.
    fn take(&mut self, bytes: usize) -> bool {
        let is_first = self.0 == 0;
        self.0 += bytes;
        is_first || self.0 <= REPLY_BYTES
    }
}

/// How many of the fields of a reply belong to it by their size in JSON. Not counted under the lock, since it takes time.
fn fitting<'a>(sizes: impl Iterator<Item = (&'a str, &'a [u8])>) -> usize {
    let mut room = ReplyRoom::default();
    sizes.take_while(|(field, value)| room.take(encoded_bytes(field.as_bytes()) + encoded_bytes(value))).count()
}

#[async_trait]
impl HashStore for MemoryBroker {
    async fn value(&self, hash: &HashName, field: &FieldName) -> Result<Option<Bytes>, BrokerError> {
        let (value, durable_at) = self.read_hashes(|state| state.value(hash, field).cloned());
        self.wait_read(durable_at).await?;
        Ok(value)
    }

    async fn values(&self, hash: &HashName, fields: &[FieldName]) -> Result<Vec<Option<Bytes>>, BrokerError> {
        let (mut values, durable_at) = self.read_hashes(|state| {
            let mut room = ReplyRoom::default();
            let values = fields.iter().map(|field| state.value(hash, field).cloned());
            values.take_while(|value| room.take(value.as_ref().map_or(0, Bytes::len))).collect::<Vec<_>>()
        });
        values.truncate(fitting(values.iter().map(|value| ("", value.as_deref().unwrap_or_default()))));
        self.wait_read(durable_at).await?;
        Ok(values)
    }

    async fn page(&self, hash: &HashName, from: Option<&str>, limit: usize) -> Result<FieldPage, BrokerError> {
        let (mut page, durable_at) = self.read_hashes(|state| {
            let Some(all) = state.fields(hash) else { return FieldPage::default() };
            let start = from.map_or(Bound::Unbounded, Bound::Excluded);
            let mut rest = all.range::<str, _>((start, Bound::Unbounded)).peekable();
            let (mut fields, mut room) = (Vec::new(), ReplyRoom::default());
            let fits = |room: &mut ReplyRoom, field: &str, value: &Bytes| room.take(field.len() + value.len());
            while fields.len() < limit
                && let Some((field, value)) = rest.next_if(|(field, value)| fits(&mut room, field, value))
            {
                fields.push((field.clone(), value.clone()));
            }
            let next = rest.next().and(fields.last()).map(|(field, _)| field.clone());
            FieldPage { fields, skipped: 0, next }
        });
        let fitting = fitting(page.fields.iter().map(|(field, value)| (&**field, &**value)));
        if fitting < page.fields.len() {
            page.fields.truncate(fitting);
            page.next = page.fields.last().map(|(field, _)| field.clone());
        }
        self.wait_read(durable_at).await?;
        Ok(page)
    }

    async fn set(
        &self,
        hash: &HashName,
        field: &FieldName,
        value: Bytes,
        condition: &Condition,
    ) -> Result<SetOutcome, BrokerError> {
        let (outcome, durable_at) = self.step_on_hashes(|transaction| {
            let present = transaction.state().value(hash, field);
            if !condition.holds(present) {
                return Ok(SetOutcome::Refused);
            }
            transaction.require_fields(hash, &[(field, &value)])?;
            let before = transaction.set_field(hash, field, value);
            Ok(before.map_or(SetOutcome::Created, |_| SetOutcome::Replaced))
        })?;
        self.wait_write(durable_at).await?;
        Ok(outcome)
    }

    async fn remove(
        &self,
        hash: &HashName,
        field: &FieldName,
        condition: &Condition,
    ) -> Result<RemoveOutcome, BrokerError> {
        let (outcome, durable_at) = self.step_on_hashes(|transaction| {
            let present = transaction.state().value(hash, field);
            if !condition.holds(present) {
                return Ok(RemoveOutcome::Refused);
            }
            let before = transaction.remove_field(hash, field);
            Ok(before.map_or(RemoveOutcome::Absent, |_| RemoveOutcome::Removed))
        })?;
        self.wait_write(durable_at).await?;
        Ok(outcome)
    }

    async fn patch(
        &self,
        hash: &HashName,
        changes: &BTreeMap<FieldName, Option<Bytes>>,
    ) -> Result<PatchOutcome, BrokerError> {
        let (outcome, durable_at) = self.step_on_hashes(|transaction| {
            let set: Vec<_> = changes.iter().filter_map(|(field, value)| Some((field, value.as_ref()?))).collect();
            transaction.require_fields(hash, &set)?;
            let mut outcome = PatchOutcome::default();
            for (field, value) in changes {
                match value {
                    Some(value) => match transaction.set_field(hash, field, value.clone()) {
                        None => outcome.created += 1,
                        Some(_) => outcome.replaced += 1,
                    },
                    None => outcome.removed += u64::from(transaction.remove_field(hash, field).is_some()),
                }
            }
            Ok(outcome)
        })?;
        self.wait_write(durable_at).await?;
        Ok(outcome)
    }

    async fn delete(&self, hash: &HashName) -> Result<bool, BrokerError> {
        let (fields, durable_at) = self.step_on_hashes(|transaction| Ok(transaction.remove_hash(hash)))?;
        let existed = fields.is_some();
        // Not under the lock.
        drop(fields);
        self.wait_write(durable_at).await?;
        Ok(existed)
    }

    async fn increment(&self, hash: &HashName, field: &FieldName, by: i64) -> Result<i64, BrokerError> {
        let (sum, durable_at) = self.step_on_hashes(|transaction| {
            let present = match transaction.state().value(hash, field) {
                None => 0,
                Some(value) => integer(value).ok_or(BrokerError::NotANumber)?,
            };
            let sum = present.checked_add(by).ok_or(BrokerError::NotANumber)?;
            let value = Bytes::from(sum.to_string());
            transaction.require_fields(hash, &[(field, &value)])?;
            transaction.set_field(hash, field, value);
            Ok(sum)
        })?;
        self.wait_write(durable_at).await?;
        Ok(sum)
    }
}

/// Reads an integer as Redis does: no sign but `-`, no leading zeros, no spaces.
fn integer(value: &[u8]) -> Option<i64> {
    let number: i64 = std::str::from_utf8(value).ok()?.parse().ok()?;
    (number.to_string().as_bytes() == value).then_some(number)
}
