//! A replica's access to logs. Appends, reads and clears carry the topic's watermarks and have a deadline, and the number
//! of reads at one time is limited.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{Instrument, Span, info_span};

use super::watermarks::Watermarks;
use crate::broker::{
    Appended, Broker, BrokerError, CALL_LIMIT, FieldPage, Health, IdempotencyKey, LogSlice, OtherClients, Peek,
    ReadLimit, ReadRange, read_with_deadline, write_with_deadline,
};
use crate::log::{EpochHistory, LogView, Next};
use crate::names::{Event, EventId, HashName, Topic};
use crate::rate_limit::RateKey;
use crate::trace;

/// Most reads at one time. More have to wait, so that many readers do not crowd out publishes.
const LOG_READERS: usize = 16;
/// Most of these that read for one stream alone. Redis takes some 200 µs for each, and executes all that have arrived
/// before it turns to the writes of others.
const STREAM_READERS: usize = 4;
/// Bytes from which on a page gets no more entries.
const PAGE_BYTES: usize = 1024 * 1024;
/// Bytes from which on one read for a page gets no more entries: Redis does nothing else meanwhile.
const READ_BYTES: usize = 256 * 1024;
/// Most entries that are looked at for a page.
const PAGE_ENTRIES: usize = 1000;
/// Most entries of a later read for a page.
const LATER_ENTRIES: usize = 100;

/// Appends to logs and reads them.
pub struct LogClient {
    broker: Arc<dyn Broker>,
    watermarks: Watermarks,
    readers: Semaphore,
    stream_readers: Semaphore,
}

/// A page of a log.
#[derive(Debug)]
pub struct LogPage {
    /// The events, oldest first.
    pub events: Vec<(EventId, Event)>,
    /// What the first read has found: the history of the log, and the entries next to the page's beginning.
    pub first: LogSlice,
    /// The id from which the next page goes on in the direction of the range, if there may be one.
    pub next: Option<EventId>,
    /// The size of what was read for the page.
    pub bytes: usize,
}

/// Why an event is not appended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// The caller has appended to so many topics in the last minutes that the replica would not remember another one.
    #[error("events were published to more rooms in the last minutes than a replica can remember of one caller")]
    TooManyTopics {
        /// The time until a new topic is accepted.
        retry_after: Duration,
    },
    /// The broker has failed.
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

impl LogClient {
    /// A client of a broker.
    pub fn new(broker: Arc<dyn Broker>) -> Arc<Self> {
        Arc::new(Self {
            broker,
            watermarks: Watermarks::default(),
            readers: Semaphore::new(LOG_READERS),
            stream_readers: Semaphore::new(STREAM_READERS),
        })
    }

    /// The highest ids that this replica has appended or seen.
    pub fn watermarks(&self) -> &Watermarks {
        &self.watermarks
    }

    /// The health of the broker, as it last noticed it itself.
    pub fn health(&self) -> Health {
        self.broker.health()
    }

    /// Appends an event of a caller to a topic's log. Subscribers receive it when the broker announces it.
    pub async fn append(
        &self,
        topic: &Topic,
        event: &Event,
        key: Option<&IdempotencyKey>,
        caller: &RateKey,
    ) -> Result<Appended, AppendError> {
        self.append_after(topic, event, None, key, caller).await
    }

    /// Appends like [`Self::append`], with `after` only if no message came after one of these positions; see
    /// [`crate::broker::LogStore::append`].
    pub async fn append_after(
        &self,
        topic: &Topic,
        event: &Event,
        after: Option<&[EventId]>,
        key: Option<&IdempotencyKey>,
        caller: &RateKey,
    ) -> Result<Appended, AppendError> {
        let watermarks = self.watermarks.take_for_append(topic, caller);
        let watermarks = watermarks.map_err(|retry_after| AppendError::TooManyTopics { retry_after })?;
        let span = if trace::is_enabled() { info_span!("append", room = topic.name()) } else { Span::none() };
        let append = self.broker.append(topic, &watermarks, event.encode(), after, key).instrument(span);
        let appended = write_with_deadline("an append", append).await?;
        // An event that an earlier call appended may be lost by now. Only an event of this call surely existed just
        // now.
        if !appended.replayed {
            self.watermarks.add_appended(topic, appended.id, caller);
        }
        Ok(appended)
    }

    /// Clears a topic's log. Returns the position up to which it was cleared.
    pub async fn clear(&self, topic: &Topic) -> Result<EventId, BrokerError> {
        let watermarks = self.watermarks.take_for_call(topic);
        write_with_deadline("a request to clear a log", self.broker.clear(topic, &watermarks)).await
    }

    /// Reads entries of a topic's log, as a reader with this view sees it, up to a limit.
    pub async fn read(
        &self,
        topic: &Topic,
        range: ReadRange,
        view: LogView,
        limit: ReadLimit,
    ) -> Result<LogSlice, BrokerError> {
        let watermarks = || self.watermarks.take_for_call(topic);
        let read = async || self.broker.read(topic, &watermarks(), range, view, limit).await;
        let slice = self.as_reader(read).await?;
        // A client may resume at this position: the replica has to remember that it was given out.
        self.watermarks.add(topic, slice.history.end());
        Ok(slice)
    }

    /// Reads like [`Self::read`], for one stream alone: as one of [`STREAM_READERS`].
    pub(super) async fn read_for_stream(
        &self,
        topic: &Topic,
        range: ReadRange,
        view: LogView,
        limit: ReadLimit,
    ) -> Result<LogSlice, BrokerError> {
        let read = async {
            let _permit = self.stream_readers.acquire().await.expect("the semaphore is never closed");
            self.read(topic, range, view, limit).await
        };
        read_with_deadline("no answer to a read", read).await
    }

    /// Makes a call as one of the readers, of which there are [`LOG_READERS`].
    async fn as_reader<T>(&self, call: impl AsyncFnOnce() -> Result<T, BrokerError>) -> Result<T, BrokerError> {
        let read = async {
            let _permit = self.readers.acquire().await.expect("the semaphore is never closed");
            call().await
        };
        read_with_deadline("no answer to a read", read).await
    }

    /// Reads like [`Self::read`], but stores nothing for a log without a head.
    pub async fn peek(
        &self,
        topic: &Topic,
        range: ReadRange,
        view: LogView,
        limit: ReadLimit,
    ) -> Result<LogSlice, BrokerError> {
        let watermarks = || self.watermarks.take_for_call(topic);
        let peek = async || self.broker.peek(topic, &watermarks(), range, view, limit).await;
        match self.as_reader(peek).await? {
            Peek::Slice(slice) => {
                self.watermarks.add(topic, slice.history.end());
                Ok(slice)
            }
            Peek::Unwritten(end) => Ok(LogSlice::unwritten(end)),
            Peek::NeedsRead => self.read(topic, range, view, limit).await,
        }
    }

    /// The position from which a reader at `position` goes on in a log of this history; see
    /// [`EpochHistory::resume_from`].
    pub async fn resume_from(
        &self,
        topic: &Topic,
        history: &EpochHistory,
        position: EventId,
    ) -> Result<EventId, BrokerError> {
        if !history.may_be_unwritten(position) {
            return Ok(position);
        }
        let data_set = read_with_deadline("no answer to a read", self.broker.data_set(topic)).await?;
        Ok(history.resume_from(position, data_set))
    }

    /// Reads a page of at most `limit` events of a view, of a forward range only those below `until`. It has fewer if they
    /// are large, or if many others lie between them. A forward page ends before a gap, so that the next one begins with
    /// it.
    pub async fn read_page(
        &self,
        topic: &Topic,
        range: ReadRange,
        limit: usize,
        until: Option<EventId>,
        view: LogView,
    ) -> Result<LogPage, BrokerError> {
        let is_backward = range.is_backward();
        // One more than the limit shows whether there is a next page.
        let mut requested = limit + 1;
        let first = self.peek(topic, range, view, ReadLimit { entries: requested, bytes: READ_BYTES }).await?;
        let (mut events, mut seen, mut bytes, mut last) = (Vec::new(), 0, 0, None);
        let mut later = None;
        let next = 'page: loop {
            let slice = later.as_ref().unwrap_or(&first);
            let next_after = |position| slice.history.next_after(position, slice, None);
            let mut entries: Vec<_> = slice.entries.iter().collect();
            if is_backward {
                entries.reverse();
            }
            for entry in entries {
                if !is_backward && until.is_some_and(|until| entry.id >= until) {
                    break 'page None;
                }
                let is_after_gap = || last.is_some_and(|last| next_after(last) != Next::Event(entry.id));
                if events.len() == limit || !is_backward && is_after_gap() {
                    break 'page last;
                }
                (seen, bytes, last) = (seen + 1, bytes + entry.stored.len(), Some(entry.id));
                events.extend(Event::decode(&entry.stored).ok().map(|event| (entry.id, event)));
            }
            let Some(reached) = last else { break None };
            if slice.is_end {
                break last.filter(|_| !is_backward && next_after(reached) != Next::Nothing);
            }
            if bytes >= PAGE_BYTES || seen >= PAGE_ENTRIES {
                break last;
            }
            requested = LATER_ENTRIES.min(PAGE_ENTRIES + 1 - seen);
            let range = if is_backward { ReadRange::Before(reached) } else { ReadRange::After(reached) };
            let limit = ReadLimit { entries: requested, bytes: READ_BYTES.min(PAGE_BYTES - bytes) };
            later = Some(self.read(topic, range, view, limit).await?);
        };
        if is_backward {
            events.reverse();
        }
        Ok(LogPage { events, first, next, bytes })
    }

    /// The end of a hash's log, which is made if there is none.
    pub(super) async fn end(&self, hash: &HashName) -> Result<EventId, BrokerError> {
        let slice = self.read(&hash.clone().into(), ReadRange::Newest, LogView::All, ReadLimit::HISTORY).await?;
        Ok(slice.history.end())
    }

    /// How the broker learns of changes of hashes that others than gateways make.
    pub(super) fn other_clients(&self) -> OtherClients {
        self.broker.other_clients()
    }

    /// Reads a page of a hash.
    pub(super) async fn hash_page(
        &self,
        hash: &HashName,
        from: Option<&str>,
        limit: usize,
    ) -> Result<FieldPage, BrokerError> {
        self.as_reader(async || self.broker.page(hash, from, limit).await).await
    }

    /// When a hash expires, in milliseconds since 1970; 0 if it does not.
    pub(super) async fn hash_expiry(&self, hash: &HashName) -> Result<u64, BrokerError> {
        let expiry = self.as_reader(async || self.broker.expiry(hash).await).await?;
        Ok(expiry.map_or(0, |expiry| expiry.at))
    }

    /// Appends what other clients have changed in a hash; see [`crate::broker::HashStore::append_external`].
    pub(super) async fn append_external(
        &self,
        hash: &HashName,
        end: Option<EventId>,
        fields: &[Box<str>],
    ) -> Result<Option<usize>, BrokerError> {
        let watermarks = self.watermarks.take_for_call(&hash.clone().into());
        let append = self.broker.append_external(hash, &watermarks, end, fields);
        write_with_deadline("a change of a hash by another client", append).await
    }

    /// Reads the epoch histories of some logs, and keeps their heads alive. `None` if the broker does not answer.
    pub(super) async fn histories(&self, topics: &[Topic]) -> Option<Vec<Option<EpochHistory>>> {
        timeout(CALL_LIMIT, self.broker.histories(topics)).await.ok()?.ok()
    }

    /// Whether events are lost of which this replica knows, if a topic's log has this history.
    pub(super) fn conflicts_with(&self, topic: &Topic, history: &EpochHistory) -> bool {
        history.conflicts_with(&self.watermarks.take_for_call(topic))
    }

    /// Subscribes to a topic's announcements. Waits while the broker is unavailable.
    pub(super) async fn subscribe(&self, topic: &Topic) {
        self.broker.subscribe(topic).await;
    }

    /// Ends the subscription to a topic's announcements.
    pub(super) fn unsubscribe(&self, topic: &Topic) {
        self.broker.unsubscribe(topic);
    }
}
