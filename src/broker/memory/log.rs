//! Logs in memory.

use async_trait::async_trait;
use bytes::Bytes;

use super::entries::Log;
use super::journal::Announcement;
use super::record::RecordChange;
use super::{
    DurableAt, IDEMPOTENCY_BYTES, IdempotencyRecord, MemoryBroker, OVERHEAD_BYTES, Purpose, RENEW_EVERY, State,
    Transaction, micros, microseconds,
};
use crate::broker::{Appended, BrokerError, IdempotencyKey, LogEntry, LogSlice, LogStore, ReadRange};
use crate::log::EpochHistory;
use crate::names::{EventId, Topic};

impl MemoryBroker {
    /// Puts an event at the end of a log.
    pub(super) fn push(&self, topic: &Topic, log: &mut Log, tx: &mut Transaction<'_>, stored: Bytes) -> EventId {
        let now = microseconds();
        let id = log.head.history.extend();
        log.touched = now;
        let entry = LogEntry { id, stored };
        tx.notes.add(|| RecordChange::head(topic, log));
        tx.notes.add(|| RecordChange::entry(topic, &entry, now));
        tx.notes.announcements.push(Announcement::Appended(topic.clone(), entry.clone()));
        *tx.bytes += log.entries.add(entry, now);
        *tx.bytes -= log
            .entries
            .trim(self.retention.for_topic(topic), |id| tx.notes.add(|| RecordChange::no_entry(topic, id)));
        id
    }
}

#[async_trait]
impl LogStore for MemoryBroker {
    async fn append(
        &self,
        topic: &Topic,
        watermarks: &[EventId],
        stored: Bytes,
        key: Option<&IdempotencyKey>,
    ) -> Result<Appended, BrokerError> {
        let retention = self.retention.for_topic(topic);
        let (appended, durable_at) = self.with_log(topic, watermarks, Purpose::Append, |log, tx| {
            let now = microseconds();
            let place = key.map(|key| (topic.clone(), key.key.clone()));
            let before =
                place.as_ref().and_then(|place| tx.idempotency.get(place)).filter(|record| record.until > now);
            if let (Some(record), Some(key)) = (before, key) {
                let same = record.content == key.content;
                return if same {
                    Ok(Appended { id: record.id, replayed: true })
                } else {
                    Err(BrokerError::KeyReused)
                };
            }
            let more = stored.len() + OVERHEAD_BYTES + key.map_or(0, |_| IDEMPOTENCY_BYTES);
            self.check_room_for(*tx.bytes, more)?;
            let id = self.push(topic, log, tx, stored);
            if let (Some(place), Some(key)) = (place, key) {
                let record = IdempotencyRecord {
                    content: key.content.clone(),
                    id,
                    until: now.saturating_add(micros(retention.idempotency_window)),
                };
                tx.notes.add(|| RecordChange::idempotency_key(topic, &key.key, &record));
                if tx.idempotency.insert(place, record).is_none() {
                    *tx.bytes += IDEMPOTENCY_BYTES;
                }
            }
            Ok(Appended { id, replayed: false })
        })?;
        self.wait_write(durable_at).await?;
        Ok(appended)
    }

    async fn read(
        &self,
        topic: &Topic,
        watermarks: &[EventId],
        range: ReadRange,
        limit: usize,
    ) -> Result<LogSlice, BrokerError> {
        let from = match range {
            ReadRange::After(position) => Some(position),
            ReadRange::Before(_) | ReadRange::Oldest | ReadRange::Newest => None,
        };
        let select = |log: &Log| LogSlice {
            history: log.head.history.clone(),
            oldest: log.entries.oldest(),
            retained: log.entries.len() as u64,
            entries: log.entries.select(range, limit),
        };
        let (slice, durable_at) = match self.peek(topic, watermarks, select) {
            Some(peeked) => peeked,
            None => self.with_log(topic, watermarks, Purpose::Read(from), |log, _| Ok(select(log)))?,
        };
        self.wait_read(durable_at).await?;
        Ok(slice)
    }

    async fn clear(&self, topic: &Topic, watermarks: &[EventId]) -> Result<EventId, BrokerError> {
        let (position, durable_at) = self.with_log(topic, watermarks, Purpose::Read(None), |log, tx| {
            log.head.history.clear();
            *tx.bytes -= log.entries.clear(|id| tx.notes.add(|| RecordChange::no_entry(topic, id)));
            tx.notes.add(|| RecordChange::head(topic, log));
            let position = log.head.history.cleared();
            tx.notes.announcements.push(Announcement::Cleared(topic.clone(), position));
            Ok(position)
        })?;
        self.wait_write(durable_at).await?;
        Ok(position)
    }

    async fn subscribe(&self, _: &Topic) {}

    fn unsubscribe(&self, _: &Topic) {}

    async fn histories(&self, topics: &[Topic]) -> Result<Vec<Option<EpochHistory>>, BrokerError> {
        let now = microseconds();
        let mut last = 0;
        let histories = {
            let mut state = self.state();
            self.check_journal()?;
            let State { logs, notes, .. } = &mut *state;
            let mut history_of = |topic: &Topic| {
                let log = logs.get_mut(topic)?;
                let every = micros(RENEW_EVERY.min(self.retention.for_topic(topic).head / 4));
                if log.entries.len() == 0 && now.saturating_sub(log.touched) >= every {
                    log.touched = now;
                    notes.add(|| RecordChange::head(topic, log));
                }
                last = last.max(log.lsn);
                Some(log.head.history.clone())
            };
            let histories = topics.iter().map(&mut history_of).collect();
            // Nobody waits for the renewals themselves.
            self.finish(&mut state);
            histories
        };
        self.wait_read(DurableAt::Others(last)).await?;
        Ok(histories)
    }
}
