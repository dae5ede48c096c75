//! The contract for shared hashes, in memory.

use std::ops::Bound;

use async_trait::async_trait;
use bytes::Bytes;

use super::MemoryBroker;
use super::journal::DurableAt;
use super::state::{HashStep, MemoryState};
use crate::broker::{
    BrokerError, FieldPage, HashStore, HashWrite, OtherClients, REPLY_BYTES, WriteContext, WriteOutcome,
    encoded_bytes,
};
use crate::names::{EventId, FieldName, HashName};

impl MemoryState {
    fn value(&self, hash: &HashName, field: &FieldName) -> Option<&Bytes> {
        self.fields(hash)?.get(field.as_str())
    }
}

impl MemoryBroker {
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

    async fn write(
        &self,
        hash: &HashName,
        write: &HashWrite,
        context: WriteContext<'_>,
    ) -> Result<WriteOutcome, BrokerError> {
        let (step, durable_at) = {
            let mut state = self.state();
            self.check_journal()?;
            let (step, own) = self.run(&mut state, |transaction| transaction.write_hash(hash, write, context));
            if let Some(log) = state.log_lsn_mut(&hash.clone().into()) {
                DurableAt::new(own, log);
            }
            (step, DurableAt::new(own, state.hashes_lsn_mut()))
        };
        let HashStep { outcome, .. } = step?;
        self.wait_write(durable_at).await?;
        Ok(outcome)
    }

    fn other_clients(&self) -> OtherClients {
        OtherClients::None
    }

    async fn append_external(
        &self,
        _: &HashName,
        _: &[EventId],
        _: Option<EventId>,
        fields: &[Box<str>],
    ) -> Result<Option<usize>, BrokerError> {
        Ok(Some(fields.len()))
    }
}
