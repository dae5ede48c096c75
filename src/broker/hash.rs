//! The contract for shared hashes: plain byte strings by field.

mod number;

use std::borrow::Cow;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use self::number::{MAX_DIGITS, MAX_NUMBER_BYTES, Number, NumberError};
use super::{BrokerError, IdempotencyKey};
use crate::digest::sha1_hex;
use crate::names::{EventId, FieldName, HashName};

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

/// A write to a hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashWrite {
    /// Sets a field.
    Set {
        /// The field.
        field: FieldName,
        /// The new value.
        value: Bytes,
        /// The condition.
        condition: Condition,
    },
    /// Removes a field.
    Remove {
        /// The field.
        field: FieldName,
        /// The condition.
        condition: Condition,
    },
    /// Adds to a field that holds a number, as [`Number`] reads and adds numbers. A field without a value counts as 0.
    Increment {
        /// The field.
        field: FieldName,
        /// What is added.
        by: Number,
        /// The condition.
        condition: Condition,
    },
    /// Makes these steps in their order.
    Patch(Vec<PatchStep>),
    /// Removes the hash.
    Clear,
    /// Sets how long the hash exists from now on. None: until it is removed.
    Expire(Option<HashLifetime>),
}

/// The lifetime that a write gives to a hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashLifetime {
    /// The lifetime in seconds, 1 to [`MAX_LIFETIME_SECONDS`].
    pub seconds: u32,
    /// Whether each later write to the hash begins the lifetime anew.
    pub is_refreshed: bool,
}

/// Ten years of 365 days.
pub const MAX_LIFETIME_SECONDS: u32 = 10 * 365 * 24 * 60 * 60;

/// When a hash expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashExpiry {
    /// The time at which the hash is removed, in milliseconds since 1970.
    pub at: u64,
    /// The lifetime in milliseconds that each write begins anew. None if writes leave the expiry as it is.
    pub refresh: Option<u64>,
}

impl Condition {
    fn name(&self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Absent => "absent",
            Self::Present => "present",
            Self::Matches(_) => "matches",
        }
    }

    fn tags(&self) -> &[String] {
        if let Self::Matches(tags) = self { tags } else { &[] }
    }
}

impl HashWrite {
    /// The write as words: its kind and what belongs to it. Different writes have different words.
    pub fn words(&self) -> Vec<Cow<'_, [u8]>> {
        let (kind, field, value, condition) = match self {
            Self::Set { field, value, condition } => ("set", field, Cow::from(&value[..]), condition),
            Self::Remove { field, condition } => ("remove", field, Cow::default(), condition),
            Self::Increment { field, by, condition } => {
                ("increment", field, by.to_string().into_bytes().into(), condition)
            }
            Self::Patch(steps) => {
                return [b"patch".into()].into_iter().chain(steps.iter().flat_map(PatchStep::words)).collect();
            }
            Self::Clear => return vec![b"clear".into()],
            Self::Expire(lifetime) => {
                let milliseconds = lifetime.map_or(String::new(), |lifetime| format!("{}000", lifetime.seconds));
                let refresh = if lifetime.is_some_and(|lifetime| lifetime.is_refreshed) { "refresh" } else { "" };
                return vec![b"expire".into(), milliseconds.into_bytes().into(), refresh.as_bytes().into()];
            }
        };
        let words =
            [kind.as_bytes().into(), field.as_str().as_bytes().into(), value, condition.name().as_bytes().into()];
        words.into_iter().chain(condition.tags().iter().map(|tag| tag.as_bytes().into())).collect()
    }
}

/// A step of a patch. It meets the hash as the steps before it have left it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PatchStep {
    /// Fails the patch unless the field has a value.
    Require(FieldName),
    /// Fails the patch unless the field has this value.
    Test(FieldName, Bytes),
    /// Sets a field.
    Set(FieldName, Bytes),
    /// Removes a field, if it has a value.
    Remove(FieldName),
    /// Sets a field to another one's value. Fails the patch unless that has one.
    Copy {
        /// The field that is read.
        from: FieldName,
        /// The field that is set.
        to: FieldName,
    },
}

impl PatchStep {
    fn words(&self) -> [Cow<'_, [u8]>; 3] {
        let (step, field, value) = match self {
            Self::Require(field) => ("require", field, &b""[..]),
            Self::Test(field, value) => ("test", field, &value[..]),
            Self::Set(field, value) => ("set", field, &value[..]),
            Self::Remove(field) => ("remove", field, &b""[..]),
            Self::Copy { from, to } => ("copy", from, to.as_str().as_bytes()),
        };
        [step.as_bytes(), field.as_str().as_bytes(), value].map(Cow::from)
    }
}

/// Bytes of values that the copies of one patch may have: a short patch must not make long values of one.
pub const MAX_COPIED_BYTES: usize = 1024 * 1024;

/// What a write has beside its change.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteContext<'a> {
    /// Makes the write safe to repeat.
    pub key: Option<&'a IdempotencyKey>,
    /// The subject that writes, for watchers.
    pub by: Option<&'a str>,
    /// The highest ids, by epoch, that the replica has seen in the hash's log.
    pub watermarks: &'a [EventId],
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// The write is done. True if an earlier call with the same idempotency key has done it.
    Done(WriteEffect, bool),
    /// Nothing was changed: this field, or the hash, does not exist.
    Absent(Option<FieldName>),
    /// Nothing was changed: the condition, or a test of the patch, does not hold.
    Refused,
}

/// What a write has done. It is kept with an idempotency key, so it has no values but a sum.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteEffect {
    /// Fields that were set and had no value before.
    pub created: u32,
    /// Fields that were set and had a value before.
    pub replaced: u32,
    /// Fields that were removed, or 1 for a hash.
    pub removed: u32,
    /// Bytes of values that the patch has copied within the hash.
    pub copied: u32,
    /// The sum, as the field has it now.
    pub sum: Option<Box<str>>,
}

/// A question for the names of hashes.
#[derive(Clone, Copy)]
pub struct NamesQuery<'a> {
    /// What the names begin with.
    pub prefix: &'a str,
    /// The `next` of an earlier page.
    pub from: Option<&'a str>,
    /// About how many names the page has at most.
    pub limit: usize,
    /// About how many names are given to `is_visible` at most.
    pub most_compared: usize,
    /// Whether the caller may learn of a hash. The page tells nothing about the others.
    pub is_visible: &'a (dyn Fn(&HashName) -> bool + Sync),
}

/// Most keys or names that are looked at for a page of names.
pub const MAX_LOOKED_AT: usize = 10_000;

/// Some names of hashes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamePage {
    /// The names.
    pub names: Vec<HashName>,
    /// Where the next page starts. None if this is the last page.
    pub next: Option<String>,
    /// How many keys or names were looked at for the page.
    pub looked_at: usize,
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

/// How a broker learns of changes that other clients of its server make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherClients {
    /// There are none.
    None,
    /// The server tells of each; but not of those that it makes to all keys together.
    Notified,
    /// Only by a comparison.
    Unnoticed,
}

/// Keeps shared hashes. Every write is atomic. A hash without fields does not exist, nor does
/// one that has expired.
///
/// While a hash has a log, that is a head made by [`super::LogStore::read`], each change is appended to it in the same
/// step, as a [`crate::names::HashChange`].
#[async_trait]
pub trait HashStore: Send + Sync {
    /// A field's value.
    async fn value(&self, hash: &HashName, field: &FieldName) -> Result<Option<Bytes>, BrokerError>;

    /// The values of the first of these fields, in their order: of all, or of as many as fit into [`REPLY_BYTES`].
    async fn values(&self, hash: &HashName, fields: &[FieldName]) -> Result<Vec<Option<Bytes>>, BrokerError>;

    /// About `limit` fields, or fewer if they are large, from where an earlier page ended. A field that exists during
    /// the whole listing is on some page. If a large hash changes meanwhile, a field may be on two pages.
    async fn page(&self, hash: &HashName, from: Option<&str>, limit: usize) -> Result<FieldPage, BrokerError>;

    /// When the hash expires. None if it does not expire, or does not exist.
    async fn expiry(&self, hash: &HashName) -> Result<Option<HashExpiry>, BrokerError>;

    /// The names of some hashes. A page looks at [`MAX_LOOKED_AT`] keys or names at most, so it may be short, or empty. A
    /// hash that exists during the whole listing is on some page; it may be on two.
    async fn names(&self, query: NamesQuery<'_>) -> Result<NamePage, BrokerError>;

    /// Makes a write, all of it or nothing. Each write that is done begins the lifetime of the hash anew, if it was set to
    /// be refreshed.
    ///
    /// With a key, the key is looked up in the same step, before the condition: the outcome of a repeated write is that
    /// of the first one. Only writes that are done are remembered. The broker never repeats a write: if the answer is
    /// lost, the error is [`BrokerError::OutcomeUnknown`].
    async fn write(
        &self,
        hash: &HashName,
        write: &HashWrite,
        context: WriteContext<'_>,
    ) -> Result<WriteOutcome, BrokerError>;

    /// How the broker learns of changes that others than gateways make.
    fn other_clients(&self) -> OtherClients;

    /// Appends to the log the present values of some fields, which other clients have changed; that the hash was cleared,
    /// if it is gone. Returns how many of the fields were appended: at least one, and as many as fit into a step.
    ///
    /// Returns none, and appends nothing, unless the log ends at `end`, or has a head if that is none.
    async fn append_external(
        &self,
        hash: &HashName,
        watermarks: &[EventId],
        end: Option<EventId>,
        fields: &[Box<str>],
    ) -> Result<Option<usize>, BrokerError>;
}

/// The entity tag of a value, without quotes. It depends on the value alone, so values that other clients of Redis
/// wrote have one too, and Redis's scripts can compute it.
pub fn entity_tag(value: &[u8]) -> String {
    sha1_hex(value)
}
