//! The contract for shared hashes: plain byte strings by field.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;

use super::BrokerError;
use crate::digest::sha1_hex;
use crate::names::{FieldName, HashName};

/// Bytes of names and values, as [`encoded_bytes`] counts them, from which on a reply gets no more fields: a read of many
/// fields must not keep other reads waiting for long. A reply has at least one field, and on Redis it exceeds this by
/// what one command reads at most.
pub const REPLY_BYTES: usize = 1024 * 1024;

/// What a name or a value takes in JSON: as a string, or in Base64 if it is not UTF-8.
pub fn encoded_bytes(text: &[u8]) -> usize {
    if std::str::from_utf8(text).is_err() {
        return text.len().div_ceil(3) * 4;
    }
    let escapes = text.iter().map(|byte| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 8 | 12 => 1,
        ..b' ' => 5,
        _ => 0,
    });
    text.len() + escapes.sum::<usize>()
}

/// Most fields of a hash, so that no step on a whole hash takes long.
pub const MAX_FIELDS: usize = 100_000;

/// The condition under which a write to a field happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The write happens in any case.
    Always,
    /// The field has no value.
    Absent,
    /// The field has a value.
    Present,
    /// The value has one of these [`entity_tag`]s.
    Matches(Vec<String>),
}

/// The outcome of setting a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetOutcome {
    /// The field had no value before.
    Created,
    /// The field had a value before.
    Replaced,
    /// The condition did not hold.
    Refused,
}

/// The outcome of removing a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoveOutcome {
    /// The field was removed.
    Removed,
    /// The field had no value.
    Absent,
    /// The condition did not hold.
    Refused,
}

/// The outcome of a patch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatchOutcome {
    /// How many fields were set that had no value before.
    pub created: u64,
    /// How many fields were set that had a value before.
    pub replaced: u64,
    /// How many fields were removed.
    pub removed: u64,
}

/// Some fields of a hash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldPage {
    /// Names and values. Every name is a [`FieldName`].
    pub fields: Vec<(String, Bytes)>,
    /// How many fields were left out, because another client of Redis gave them names that are none.
    pub skipped: usize,
    /// Where the next page starts. None if this is the last page.
    pub next: Option<String>,
}

impl FieldPage {
    /// The size of the names and values together.
    pub fn bytes(&self) -> usize {
        self.fields.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
}

/// Keeps shared hashes. Every write is atomic. A hash without fields does not exist.
#[async_trait]
pub trait HashStore: Send + Sync {
    /// A field's value.
    async fn value(&self, hash: &HashName, field: &FieldName) -> Result<Option<Bytes>, BrokerError>;

    /// The values of the first of these fields, in their order: of all, or of as many as fit into [`REPLY_BYTES`].
    async fn values(&self, hash: &HashName, fields: &[FieldName]) -> Result<Vec<Option<Bytes>>, BrokerError>;

    /// About `limit` fields, or fewer if they are large, from where an earlier page ended. A field that exists during
    /// the whole listing is on some page. If a large hash changes meanwhile, a field may be on two pages.
    async fn page(&self, hash: &HashName, from: Option<&str>, limit: usize) -> Result<FieldPage, BrokerError>;

    /// Sets a field.
    async fn set(
        &self,
        hash: &HashName,
        field: &FieldName,
        value: Bytes,
        condition: &Condition,
    ) -> Result<SetOutcome, BrokerError>;

    /// Removes a field.
    async fn remove(
        &self,
        hash: &HashName,
        field: &FieldName,
        condition: &Condition,
    ) -> Result<RemoveOutcome, BrokerError>;

    /// Sets the fields that have a value in `changes` and removes the others, in one step.
    async fn patch(
        &self,
        hash: &HashName,
        changes: &BTreeMap<FieldName, Option<Bytes>>,
    ) -> Result<PatchOutcome, BrokerError>;

    /// Removes the hash. Returns whether it existed.
    async fn delete(&self, hash: &HashName) -> Result<bool, BrokerError>;

    /// Adds `by` to a field that holds a signed 64-bit integer as decimal text. A field without a value counts as 0.
    /// Returns the sum.
    async fn increment(&self, hash: &HashName, field: &FieldName, by: i64) -> Result<i64, BrokerError>;
}

/// The entity tag of a value, without quotes. It depends on the value alone, so values that other clients of Redis
/// wrote have one too, and Redis's scripts can compute it.
pub fn entity_tag(value: &[u8]) -> String {
    sha1_hex(value)
}
