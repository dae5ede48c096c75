//! How a replica uses logs: every step carries the watermarks, has a deadline, and reads take turns.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{Instrument, Span, info_span};

use super::watermarks::Watermarks;
use crate::broker::{
    Appended, Broker, BrokerError, CALL_LIMIT, Fault, FaultKind, Health, IdempotencyKey, LogSlice, ReadRange,
};
use crate::log::EpochHistory;
use crate::names::{Event, EventId, Topic};
use crate::trace;

/// Reads of logs at one time; more wait, so that many readers at once do not crowd out publishes.
const LOG_READERS: usize = 64;
/// Entries that one read of a page asks for, so that no single reply keeps others waiting for long.
const READ_EVENTS: usize = 50;
/// A page that has so many bytes gets no more entries.
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
    /// The part of the log.
    pub slice: LogSlice,
    /// Whether it has fewer entries than were asked for because of their size.
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

    /// What the broker knows of its own state.
    pub fn health(&self) -> Health {
        self.broker.health()
    }

    /// Appends an event to a topic's log. Subscribers get it when the broker announces it.
    pub async fn append(
        &self,
        topic: &Topic,
        event: &Event,
        key: Option<&IdempotencyKey>,
    ) -> Result<Appended, BrokerError> {
        let watermarks = self.watermarks.get(topic);
        let span = if trace::is_enabled() { info_span!("append", room = topic.name()) } else { Span::none() };
        let append = self.broker.append(topic, &watermarks, event.encode(), key).instrument(span);
        let appended = with_deadline("an append", append).await?;
        // An event that an earlier call appended may be lost by now; only one that was appended now is known to exist.
        if !appended.replayed {
            self.watermarks.add(topic, appended.id);
        }
        Ok(appended)
    }

    /// Empties a topic's log. Returns the position up to which it was emptied.
    pub async fn clear(&self, topic: &Topic) -> Result<EventId, BrokerError> {
        let watermarks = self.watermarks.get(topic);
        with_deadline("emptying a log", self.broker.clear(topic, &watermarks)).await
    }

    /// Reads a part of a topic's log.
    pub async fn read(&self, topic: &Topic, range: ReadRange, limit: usize) -> Result<LogSlice, BrokerError> {
        let read = async {
            let _turn = self.readers.acquire().await.expect("the semaphore is never closed");
            self.broker.read(topic, &self.watermarks.get(topic), range, limit).await
        };
        let late = || Err(BrokerError::Unavailable(Fault::new(FaultKind::TimedOut, "no answer to a read")));
        let slice = timeout(CALL_LIMIT, read).await.unwrap_or_else(|_| late())?;
        // A client may come back to this position: the replica has to remember that it was given out.
        self.watermarks.add(topic, slice.history.end());
        Ok(slice)
    }

    /// Reads up to `limit` entries: in several reads if they are many, and fewer if they are large.
    pub async fn read_page(&self, topic: &Topic, range: ReadRange, limit: usize) -> Result<LogPage, BrokerError> {
        let backwards = matches!(range, ReadRange::Before(_) | ReadRange::Newest);
        let mut asked = limit.min(READ_EVENTS);
        let mut page = self.read(topic, range, asked).await?;
        let mut got = page.entries.len();
        loop {
            let left = limit.saturating_sub(page.entries.len());
            let (Some(first), Some(last)) = (page.entries.first(), page.entries.last()) else { break };
            if left == 0 || got < asked {
                break;
            }
            if page.entries.iter().map(|entry| entry.stored.len()).sum::<usize>() >= READ_BYTES {
                return Ok(LogPage { slice: page, is_cut_short: true });
            }
            let range = if backwards { ReadRange::Before(first.id) } else { ReadRange::After(last.id) };
            asked = left.min(READ_EVENTS);
            let mut more = self.read(topic, range, asked).await?.entries;
            got = more.len();
            if backwards {
                more.append(&mut page.entries);
                page.entries = more;
            } else {
                page.entries.append(&mut more);
            }
        }
        Ok(LogPage { slice: page, is_cut_short: false })
    }

    /// The epoch histories of some logs, and keeps their heads alive. None if the broker can't be asked now.
    pub(super) async fn histories(&self, topics: &[Topic]) -> Option<Vec<Option<EpochHistory>>> {
        for topic in topics {
            self.watermarks.keep(topic);
        }
        timeout(CALL_LIMIT, self.broker.histories(topics)).await.ok()?.ok()
    }

    /// Subscribes to a topic's announcements. Waits while the broker is away.
    pub(super) async fn subscribe(&self, topic: &Topic) {
        self.broker.subscribe(topic).await;
    }

    /// Ends the subscription.
    pub(super) fn unsubscribe(&self, topic: &Topic) {
        self.broker.unsubscribe(topic);
    }
}

/// The outcome of a step that changes something, within [`CALL_LIMIT`]. If no answer comes in time, the step may have been done.
pub async fn with_deadline<T>(
    step: &str,
    outcome: impl Future<Output = Result<T, BrokerError>>,
) -> Result<T, BrokerError> {
    timeout(CALL_LIMIT, outcome).await.unwrap_or_else(|_| {
        Err(BrokerError::OutcomeUnknown(Fault::new(FaultKind::TimedOut, format!("no answer to {step}"))))
    })
}
