//! Where a subscription starts that begins with the last few events.

use std::borrow::Borrow;
use std::sync::Arc;

use super::topic::{BATCH_BYTES, LiveTopic};
use super::{LiveEvent, LogClient};
use crate::broker::{BrokerError, LogSlice, ReadLimit, ReadRange};
use crate::log::{EpochHistory, LogView};
use crate::names::EventId;
use crate::rate_limit::{ChargedRead, Payer};

/// Most entries of the log that [`super::Start::Recent`] looks at.
const RECENT_EVENTS: usize = 1000;

/// The position before the last `count` events up to `end` that are `wanted`. Looks at the events of the cache, and then at
/// a bounded part of the log; beyond it, every event counts, whose ids are known without a read.
pub(super) async fn before_recent(
    log: &LogClient,
    topic: &LiveTopic,
    end: EventId,
    count: u64,
    view: LogView,
    payer: Option<&Arc<Payer>>,
    wanted: impl Fn(&LiveEvent) -> bool,
) -> Result<EventId, BrokerError> {
    /// Goes back over events, newest first. None stands for an entry that is no event.
    fn go_back<E: Borrow<LiveEvent>>(
        (mut position, mut left): (EventId, u64),
        mut events: impl Iterator<Item = (EventId, Option<E>)>,
        wanted: impl Fn(&LiveEvent) -> bool,
    ) -> (EventId, u64) {
        while left > 0
            && let Some((id, event)) = events.next()
        {
            position = id.before();
            left -= u64::from(event.is_some_and(|event| wanted(event.borrow())));
        }
        (position, left)
    }

    let cached = topic.newest().into_iter().map(|event| (event.id(), Some(event)));
    let (position, left) = go_back((end, count), cached, &wanted);
    let is_start = |history: EpochHistory| history.back(position, left) == position;
    if left == 0 || topic.history().is_some_and(is_start) {
        return Ok(position);
    }
    let below = EventId::new(position.epoch, position.offset + 1);
    let limit = ReadLimit { entries: RECENT_EVENTS, bytes: BATCH_BYTES };
    let charged = payer.cloned().map(ChargedRead::new);
    let slice = log.read_for_stream(topic.topic(), ReadRange::Before(below), view, limit).await;
    charged.inspect(|charged| charged.has_read(slice.as_ref().map_or(0, LogSlice::bytes)));
    let slice = slice?;
    let logged = slice.entries.iter().rev().map(|entry| (entry.id, LiveEvent::new(topic.topic(), entry).ok()));
    let (position, left) = go_back((position, left), logged, &wanted);
    if left == 0 || slice.is_end {
        return Ok(position);
    }
    let oldest = slice.oldest.map_or(slice.history.end(), EventId::before);
    Ok(slice.history.back(position, left).max(oldest).min(position))
}
