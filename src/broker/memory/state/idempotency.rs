//! What was done with idempotency keys.

use std::collections::HashMap;

use super::budget::IDEMPOTENCY_KEY_BYTES;
use super::ledger::Ledger;
use crate::broker::memory::record::RecordChange;
use crate::broker::{BrokerError, IdempotencyKey, WriteEffect};
use crate::names::{EventId, Topic};

/// What was done with an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyRecord {
    /// A digest of the content.
    pub content: String,
    pub answer: RecordedAnswer,
    /// When the key is forgotten, in microseconds since 1970.
    pub until: u64,
}

/// The answer that a repeated request gets again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordedAnswer {
    /// An event of a room was appended.
    Appended(EventId),
    /// A hash was written to.
    Written(WriteEffect),
}

/// The records by topic and digest of the key. A room and a hash of one name are two topics.
#[derive(Default)]
pub struct IdempotencyRecords(HashMap<(Topic, String), IdempotencyRecord>);

impl IdempotencyRecords {
    /// The answer that was recorded with a key. Fails if the key was used with other content.
    pub fn recorded(
        &self,
        topic: &Topic,
        key: &IdempotencyKey,
        now: u64,
    ) -> Result<Option<&RecordedAnswer>, BrokerError> {
        match self.0.get(&(topic.clone(), key.key.clone())).filter(|record| record.until > now) {
            Some(record) if record.content != key.content => Err(BrokerError::KeyReused),
            record => Ok(record.map(|record| &record.answer)),
        }
    }

    /// Records an answer. Does not check the limit of the memory.
    pub fn record(
        &mut self,
        topic: &Topic,
        key: &IdempotencyKey,
        answer: RecordedAnswer,
        until: u64,
        ledger: &mut Ledger,
    ) {
        let record = IdempotencyRecord { content: key.content.clone(), answer, until };
        let change = RecordChange::idempotency_key(topic, &key.key, &record);
        // There may be the record of an earlier request, which has expired.
        let is_new = self.0.insert((topic.clone(), key.key.clone()), record).is_none();
        ledger.replaced(if is_new { 0 } else { IDEMPOTENCY_KEY_BYTES }, IDEMPOTENCY_KEY_BYTES, || change);
    }

    /// Adds a record of the data folder.
    pub fn load(&mut self, topic: Topic, digest: String, record: IdempotencyRecord) {
        self.0.insert((topic, digest), record);
    }

    /// Drops what has expired.
    pub fn sweep(&mut self, now: u64, ledger: &mut Ledger) {
        self.0.retain(|(topic, digest), record| {
            let is_kept = record.until > now;
            if !is_kept {
                ledger.removed(IDEMPOTENCY_KEY_BYTES, || RecordChange::no_idempotency_key(topic, digest));
            }
            is_kept
        });
    }

    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = (&(Topic, String), &IdempotencyRecord)> {
        self.0.iter()
    }
}
