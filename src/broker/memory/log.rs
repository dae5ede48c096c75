//! The contract for logs, in memory.

use async_trait::async_trait;
use bytes::Bytes;

use super::journal::DurableAt;
use super::state::{MemoryLog, Purpose};
use super::{MemoryBroker, now_micros};
use crate::broker::{Appended, BrokerError, IdempotencyKey, LogSlice, LogStore, Peek, ReadLimit, ReadRange};
use crate::log::{DataSet, EpochHistory, Head, LogView};
use crate::names::{EventId, Topic};

fn slice(log: &MemoryLog, range: ReadRange, view: LogView, limit: ReadLimit) -> LogSlice {
    let (entries, is_end) = log.entries().select(range, view, limit);
    let (retained, oldest) = log.entries().summary(view);
    let Head { history, last_message, .. } = log.head();
    LogSlice { history: history.clone(), last_message: *last_message, view, oldest, retained, entries, is_end }
}

#[async_trait]
impl LogStore for MemoryBroker {
    async fn append(
        &self,
        topic: &Topic,
        watermarks: &[EventId],
        stored: Bytes,
        after: Option<&[EventId]>,
        key: Option<&IdempotencyKey>,
    ) -> Result<Appended, BrokerError> {
        let (appended, durable_at) = self.step_on_log(topic, |transaction| {
            if let Some(id) = transaction.recorded_append(topic, key)? {
                return Ok(Appended { id, replayed: true });
            }
            if transaction.is_finished(topic) {
                return Err(BrokerError::Finished);
            }
            if after.is_some_and(|after| !transaction.is_at_end(topic, watermarks, after)) {
                return Err(BrokerError::HeadMoved);
            }
            let mut log = transaction.open_log(topic, watermarks, Purpose::Append)?;
            Ok(Appended { id: log.append_once(stored, key)?, replayed: false })
        })?;
        self.wait_write(durable_at).await?;
        Ok(appended)
    }

    async fn read(
        &self,
        topic: &Topic,
        watermarks: &[EventId],
        range: ReadRange,
        view: LogView,
        limit: ReadLimit,
    ) -> Result<LogSlice, BrokerError> {
        let from = match range {
            ReadRange::After(position) => Some(position),
            ReadRange::Before(_) | ReadRange::Oldest | ReadRange::Newest => None,
        };
        let slice = |log: &MemoryLog| slice(log, range, view, limit);
        let (slice, durable_at) = match self.read_unchanged(topic, watermarks, slice) {
            Some(read) => read,
            None => self.step_on_log(topic, |transaction| {
                Ok(slice(transaction.open_log(topic, watermarks, Purpose::Read(from))?.log()))
            })?,
        };
        self.wait_read(durable_at).await?;
        Ok(slice)
    }

    async fn peek(
        &self,
        topic: &Topic,
        watermarks: &[EventId],
        range: ReadRange,
        view: LogView,
        limit: ReadLimit,
    ) -> Result<Peek, BrokerError> {
        let now = now_micros();
        if watermarks.is_empty() && self.state().log(topic, now).is_none() {
            return Ok(Peek::Unwritten(self.data_set(topic).await?.unwritten_position(now)));
        }
        self.read(topic, watermarks, range, view, limit).await.map(Peek::Slice)
    }

    async fn data_set(&self, topic: &Topic) -> Result<DataSet, BrokerError> {
        Ok(self.state().data_set(topic))
    }

    async fn clear(&self, topic: &Topic, watermarks: &[EventId]) -> Result<EventId, BrokerError> {
        let (position, durable_at) = self.step_on_log(topic, |transaction| {
            Ok(transaction.open_log(topic, watermarks, Purpose::Read(None))?.clear())
        })?;
        self.wait_write(durable_at).await?;
        Ok(position)
    }

    async fn subscribe(&self, _: &Topic) {}

    fn unsubscribe(&self, _: &Topic) {}

    async fn histories(&self, topics: &[Topic]) -> Result<Vec<Option<EpochHistory>>, BrokerError> {
        let mut last = 0;
        let histories = {
            let mut state = self.state();
            self.check_journal()?;
            // The caller waits for what it reads, and not for the renewals.
            let (histories, _) = self.run(&mut state, |transaction| {
                let history = |topic| {
                    let log = transaction.renew_log(topic)?;
                    last = last.max(log.lsn());
                    Some(log.head().history.clone())
                };
                topics.iter().map(history).collect()
            });
            histories
        };
        self.wait_read(DurableAt::Earlier(last)).await?;
        Ok(histories)
    }
}
