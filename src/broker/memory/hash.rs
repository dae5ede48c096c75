//! The contract for shared hashes, in memory.

use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::task::yield_now;

use super::journal::{DurableAt, Lsn};
use super::state::{HashFields, HashStep, MemoryState};
use super::{MemoryBroker, now_micros};
use crate::broker::{
    BrokerError, FieldPage, HashExpiry, HashStore, HashWrite, MAX_LOOKED_AT, NamePage, NamesQuery, OtherClients,
    REPLY_BYTES, WriteContext, WriteOutcome, encoded_bytes,
};
use crate::names::{EventId, FieldName, HashName};

impl MemoryState {
    /// When a step on a hash and its log is durable, which has changed something as `own` if it has.
    fn hash_durable_at(&mut self, hash: &HashName, own: Option<Lsn>) -> DurableAt {
        if let Some(log) = self.log_lsn_mut(&hash.clone().into()) {
            DurableAt::new(own, log);
        }
        DurableAt::new(own, self.hashes_lsn_mut())
    }

    fn value(&self, hash: &HashName, field: &FieldName) -> Option<&Bytes> {
        self.fields(hash, now_micros())?.get(field.as_str())
    }
}

impl MemoryBroker {
    /// Removes a hash if it has expired. Returns what takes time to drop.
    fn expire(&self, state: &mut MemoryState, hash: &HashName) -> Option<Arc<HashFields>> {
        let (removed, own) = self.run(state, |transaction| transaction.expire_hash(hash));
        state.hash_durable_at(hash, own);
        removed
    }

    /// Removes one of the hashes that have expired. Returns whether there was one.
    pub(super) fn expire_next(&self) -> bool {
        let _removed = {
            let mut state = self.state();
            let due = state.due_hash(now_micros()).filter(|_| self.check_journal().is_ok());
            let Some(hash) = due else { return false };
            self.expire(&mut state, &hash)
        };
        true
    }

    fn read_hashes<T>(&self, read: impl FnOnce(&MemoryState) -> T) -> (T, DurableAt) {
        let state = self.state();
        (read(&state), DurableAt::Earlier(state.hashes_lsn()))
    }
}

/// Names of hashes that are read under one lock. Between them, other tasks of the thread get a turn.
const NAMES_BETWEEN_YIELDS: usize = 100;

/// Where a page of names begins: after a name that the caller may see, and so many names later. It must not be a name that
/// the caller may not see.
struct NamesStart {
    after: String,
    skip: usize,
}

impl NamesStart {
    fn parse(text: &str) -> Option<Self> {
        let (skip, after) = text.split_once(':')?;
        Some(Self { after: after.into(), skip: skip.parse().ok()? })
    }
}

impl fmt::Display for NamesStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.skip, self.after)
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
            let stored = state.fields(hash, now_micros());
            let values = fields.iter().map(|field| stored?.get(field.as_str()).cloned());
            values.take_while(|value| room.take(value.as_ref().map_or(0, Bytes::len))).collect::<Vec<_>>()
        });
        values.truncate(fitting(values.iter().map(|value| ("", value.as_deref().unwrap_or_default()))));
        self.wait_read(durable_at).await?;
        Ok(values)
    }

    async fn page(&self, hash: &HashName, from: Option<&str>, limit: usize) -> Result<FieldPage, BrokerError> {
        let (mut page, durable_at) = self.read_hashes(|state| {
            let Some(all) = state.fields(hash, now_micros()) else { return FieldPage::default() };
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

    async fn expiry(&self, hash: &HashName) -> Result<Option<HashExpiry>, BrokerError> {
        let (expiry, durable_at) = self.read_hashes(|state| state.expiry(hash, now_micros()));
        self.wait_read(durable_at).await?;
        Ok(expiry)
    }

    async fn names(&self, query: NamesQuery<'_>) -> Result<NamePage, BrokerError> {
        let NamesQuery { prefix, from, limit, most_compared, is_visible } = query;
        let mut start = match from {
            Some(from) => NamesStart::parse(from).ok_or(BrokerError::UnknownPage)?,
            None => NamesStart { after: String::new(), skip: 0 },
        };
        let (mut page, mut compared) = (NamePage::default(), 0);
        let (mut last, mut skip) = (start.after.clone(), start.skip);
        loop {
            let (names, durable_at) =
                self.read_hashes(|state| state.hash_names(prefix, &last, NAMES_BETWEEN_YIELDS, now_micros()));
            self.wait_read(durable_at).await?;
            page.looked_at += names.len();
            last = names.last().map(ToString::to_string).unwrap_or(last);
            let is_end = names.len() < NAMES_BETWEEN_YIELDS;
            let skipped = skip.min(names.len());
            skip -= skipped;
            for name in names.into_iter().skip(skipped) {
                if page.names.len() == limit || compared == most_compared.min(MAX_LOOKED_AT) {
                    page.next = Some(start.to_string());
                    return Ok(page);
                }
                compared += 1;
                start.skip += 1;
                if is_visible(&name) {
                    start = NamesStart { after: name.to_string(), skip: 0 };
                    page.names.push(name);
                }
            }
            if is_end {
                return Ok(page);
            }
            yield_now().await;
        }
    }

    async fn write(
        &self,
        hash: &HashName,
        write: &HashWrite,
        context: WriteContext<'_>,
    ) -> Result<WriteOutcome, BrokerError> {
        let (step, durable_at, _expired) = {
            let mut state = self.state();
            self.check_journal()?;
            let expired = self.expire(&mut state, hash);
            let (step, own) = self.run(&mut state, |transaction| transaction.write_hash(hash, write, context));
            (step, state.hash_durable_at(hash, own), expired)
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
