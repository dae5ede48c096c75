//! The contract for shared hashes.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;

use super::BrokerError;
use crate::names::{FieldName, HashName};

/// When a write to a field is to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// In any case.
    Always,
    /// If the field is absent.
    Absent,
    /// If the field is there.
    Present,
    /// If the value has one of these [`entity_tag`]s.
    Matches(Vec<String>),
}

/// What became of a write to a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// The field is new.
    Created,
    /// The field had a value.
    Replaced,
    /// The condition did not hold; the present value.
    Refused(Option<Bytes>),
}

/// What became of the removal of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// It is gone.
    Gone,
    /// It was not there.
    Absent,
    /// The condition did not hold; the present value.
    Refused(Option<Bytes>),
}

/// What a patch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Patched {
    /// Fields that are new.
    pub created: u64,
    /// Fields that were set and had a value before.
    pub replaced: u64,
    /// Fields that are gone.
    pub removed: u64,
}

/// Some fields of a hash.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldPage {
    /// Names and values. A name that another writer made from bytes that are not UTF-8 has them replaced.
    pub fields: Vec<(String, Bytes)>,
    /// Where the next page starts.
    pub next: Option<String>,
}

/// Keeps shared hashes: plain strings by field. Every write is atomic.
#[async_trait]
pub trait HashStore: Send + Sync {
    /// A field's value.
    async fn value(&self, hash: &HashName, field: &FieldName) -> Result<Option<Bytes>, BrokerError>;

    /// The values of some fields.
    async fn values(&self, hash: &HashName, fields: &[FieldName]) -> Result<Vec<Option<Bytes>>, BrokerError>;

    /// About `limit` fields from where an earlier page ended. A field that is there all the while is on some page; a
    /// large hash that changes meanwhile may show one twice.
    async fn page(&self, hash: &HashName, from: Option<&str>, limit: usize) -> Result<FieldPage, BrokerError>;

    /// Sets a field.
    async fn set(
        &self,
        hash: &HashName,
        field: &FieldName,
        value: Bytes,
        condition: &Condition,
    ) -> Result<Written, BrokerError>;

    /// Removes a field.
    async fn remove(
        &self,
        hash: &HashName,
        field: &FieldName,
        condition: &Condition,
    ) -> Result<Removed, BrokerError>;

    /// Sets fields and removes those that map to nothing, all at once.
    async fn patch(
        &self,
        hash: &HashName,
        changes: &BTreeMap<FieldName, Option<Bytes>>,
    ) -> Result<Patched, BrokerError>;

    /// Removes the hash; whether there was one.
    async fn delete(&self, hash: &HashName) -> Result<bool, BrokerError>;

    /// Adds to a field that holds a whole number (64 bits, signed), or to 0.
    async fn increment(&self, hash: &HashName, field: &FieldName, by: i64) -> Result<i64, BrokerError>;
}

/// The entity tag of a value, without quotes: it comes from the value alone, so it holds for other writers too.
pub fn entity_tag(value: &[u8]) -> String {
    sha1_hex(value)
}

/// SHA-1 in hexadecimal digits, as Redis's `sha1hex` gives it.
pub fn sha1_hex(bytes: &[u8]) -> String {
    use sha1::{Digest, Sha1};
    use std::fmt::Write;
    Sha1::digest(bytes).iter().fold(String::with_capacity(40), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
