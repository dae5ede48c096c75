//! A replica's access to logs. Appends, reads and clears carry the topic's watermarks and have a deadline, and the number
//! of reads at one time is limited.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{Instrument, Span, info_span};

use super::watermarks::Watermarks;
use crate::broker::{
    Appended, Broker, BrokerError, CALL_LIMIT, Health, IdempotencyKey, LogSlice, ReadRange, read_with_deadline,
    write_with_deadline,
};
use crate::log::EpochHistory;
use crate::names::{Event, EventId, Topic};
use crate::trace;

/// Most reads at one time. More have to wait, so that many readers do not crowd out publishes.
const LOG_READERS: usize = 64;
/// Most entries of one read for a page, so that no reply keeps other calls waiting for long.
const READ_EVENTS: usize = 50;
/// Bytes from which on a page gets no more entries.
const READ_BYTES: usize = 4 * 1024 * 1024;

/// Appends to logs and reads them.
pub struct LogClient {
    broker: Arc<dyn Broker>,
    watermarks: Watermarks,
    readers: Semaphore,
}

/// A page of a log.
#[derive(Debug)]
pub struct LogPage {
    /// The entries, with the history of the log.
    pub slice: LogSlice,
    /// Whether the page has fewer entries than requested because of their size.
    pub is_cut_short: bool,
}

impl LogClient {
    /// A client of a broker.
    pub fn new(broker: Arc<dyn Broker>) -> Arc<Self> {
        Arc::new(Self { broker, watermarks: Watermarks::default(), readers: Semaphore::new(LOG_READERS) })
    }

    /// The highest ids that this replica has appended or seen.
    pub fn watermarks(&self) -> &Watermarks {
        &self.watermarks
    }

    /// The health of the broker, as it last noticed it itself.
    pub fn health(&self) -> Health {
        self.broker.health()
    }

    /// Appends an event to a topic's log. Subscribers receive it when the broker announces it.
    pub async fn append(
        &self,
        topic: &Topic,
        event: &Event,
        key: Option<&IdempotencyKey>,
    ) -> Result<Appended, BrokerError> {
        let watermarks = self.watermarks.take_for_call(topic);
        let span = if trace::is_enabled() { info_span!("append", room = topic.name()) } else { Span::none() };
        let append = self.broker.append(topic, &watermarks, event.encode(), key).instrument(span);
        let appended = write_with_deadline("an append", append).await?;
        // An event that an earlier call appended may be lost by now. Only an event of this call surely existed just
        // now.
        if !appended.replayed {
            self.watermarks.add(topic, appended.id);
        }
        Ok(appended)
    }

    /// Clears a topic's log. Returns the position up to which it was cleared.
    pub async fn clear(&self, topic: &Topic) -> Result<EventId, BrokerError> {
        let watermarks = self.watermarks.take_for_call(topic);
        write_with_deadline("a request to clear a log", self.broker.clear(topic, &watermarks)).await
    }

    /// Reads at most `limit` entries of a topic's log.
    pub async fn read(&self, topic: &Topic, range: ReadRange, limit: usize) -> Result<LogSlice, BrokerError> {
        let read = async {
            let _permit = self.readers.acquire().await.expect("the semaphore is never closed");
            self.broker.read(topic, &self.watermarks.take_for_call(topic), range, limit).await
        };
        let slice = read_with_deadline("no answer to a read", read).await?;
        // A client may resume at this position: the replica has to remember that it was given out.
        self.watermarks.add(topic, slice.history.end());
        Ok(slice)
    }

    /// Reads a page of at most `limit` entries, or of fewer if they are large. Many entries take several reads.
    pub async fn read_page(&self, topic: &Topic, range: ReadRange, limit: usize) -> Result<LogPage, BrokerError> {
        let backwards = matches!(range, ReadRange::Before(_) | ReadRange::Newest);
        let mut requested = limit.min(READ_EVENTS);
        let mut page = self.read(topic, range, requested).await?;
        let mut received = page.entries.len();
        loop {
            let left = limit.saturating_sub(page.entries.len());
            let (Some(first), Some(last)) = (page.entries.first(), page.entries.last()) else { break };
            if left == 0 || received < requested {
                break;
            }
            if page.entries.iter().map(|entry| entry.stored.len()).sum::<usize>() >= READ_BYTES {
                return Ok(LogPage { slice: page, is_cut_short: true });
            }
            let range = if backwards { ReadRange::Before(first.id) } else { ReadRange::After(last.id) };
            requested = left.min(READ_EVENTS);
            let mut more = self.read(topic, range, requested).await?.entries;
            received = more.len();
            if backwards {
                more.append(&mut page.entries);
                page.entries = more;
            } else {
                page.entries.append(&mut more);
            }
        }
        Ok(LogPage { slice: page, is_cut_short: false })
    }

    /// Reads the epoch histories of some logs, and keeps their heads and watermarks alive. `None` if the broker does
    /// not answer.
    pub(super) async fn histories(&self, topics: &[Topic]) -> Option<Vec<Option<EpochHistory>>> {
        for topic in topics {
            self.watermarks.keep(topic);
        }
        timeout(CALL_LIMIT, self.broker.histories(topics)).await.ok()?.ok()
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
