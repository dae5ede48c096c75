//! Rooms' logs in memory.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::Bytes;

use super::journal::News;
use super::log::Log;
use super::record::Change;
use super::{
    Awaited, Done, MemoryBroker, ONCE_BYTES, OVERHEAD_BYTES, PUBLISH_BYTES, Purpose, RENEW_EVERY, Rest, State,
    micros, microseconds,
};
use crate::broker::{Appended, Broker, BrokerError, Entry, Health, Listener, Occupancy, Once, Range, Slice};
use crate::follow::Chain;
use crate::room::{EventId, RoomName};

impl MemoryBroker {
    /// Puts an event at the end of a log.
    pub(super) fn push(&self, room: &RoomName, log: &mut Log, rest: &mut Rest<'_>, stored: Bytes) -> EventId {
        let now = microseconds();
        let id = log.head.chain.extend();
        log.touched = now;
        let entry = Entry { id, stored };
        rest.notes.add(|| Change::head(room, log));
        rest.notes.add(|| Change::entry(room, &entry, now));
        rest.notes.news.push(News::Appended(room.clone(), entry.clone()));
        *rest.bytes += log.entries.add(entry, now);
        *rest.bytes -=
            log.entries.trim(self.retention.of(room), |id| rest.notes.add(|| Change::no_entry(room, id)));
        id
    }
}

#[async_trait]
impl Broker for MemoryBroker {
    fn kind(&self) -> &'static str {
        "embedded"
    }

    fn listen(&self, listener: Arc<dyn Listener>) {
        assert!(self.listener.set(listener).is_ok(), "a broker has one listener");
    }

    async fn append(
        &self,
        room: &RoomName,
        known: &[EventId],
        stored: Bytes,
        once: Option<&Once>,
    ) -> Result<Appended, BrokerError> {
        let retention = self.retention.of(room);
        let (appended, awaited) = self.with_log(room, known, Purpose::Append, |log, rest| {
            let now = microseconds();
            let place = once.map(|once| (room.clone(), once.key.clone()));
            let before = place.as_ref().and_then(|place| rest.once.get(place)).filter(|done| done.until > now);
            if let (Some(done), Some(once)) = (before, once) {
                let same = done.content == once.content;
                return if same {
                    Ok(Appended { id: done.id, replayed: true })
                } else {
                    Err(BrokerError::KeyReused)
                };
            }
            let more = stored.len() + OVERHEAD_BYTES + once.map_or(0, |_| ONCE_BYTES);
            self.check_room_for(*rest.bytes, more)?;
            let id = self.push(room, log, rest, stored);
            if let (Some(place), Some(once)) = (place, once) {
                let done =
                    Done { content: once.content.clone(), id, until: now.saturating_add(micros(retention.once)) };
                rest.notes.add(|| Change::once(room, &once.key, &done));
                if rest.once.insert(place, done).is_none() {
                    *rest.bytes += ONCE_BYTES;
                }
            }
            Ok(Appended { id, replayed: false })
        })?;
        self.written(awaited).await?;
        Ok(appended)
    }

    async fn read(
        &self,
        room: &RoomName,
        known: &[EventId],
        range: Range,
        limit: usize,
    ) -> Result<Slice, BrokerError> {
        let from = match range {
            Range::After(position) => Some(position),
            Range::Before(_) | Range::Oldest | Range::Newest => None,
        };
        let select = |log: &Log| Slice {
            chain: log.head.chain.clone(),
            oldest: log.entries.oldest(),
            retained: log.entries.len() as u64,
            entries: log.entries.select(range, limit),
        };
        let (slice, awaited) = match self.peek(room, known, select) {
            Some(peeked) => peeked,
            None => self.with_log(room, known, Purpose::Read(from), |log, _| Ok(select(log)))?,
        };
        self.told(awaited).await?;
        Ok(slice)
    }

    async fn clear(&self, room: &RoomName, known: &[EventId]) -> Result<(), BrokerError> {
        let ((), awaited) = self.with_log(room, known, Purpose::Read(None), |log, rest| {
            log.head.chain.clear();
            *rest.bytes -= log.entries.clear(|id| rest.notes.add(|| Change::no_entry(room, id)));
            rest.notes.add(|| Change::head(room, log));
            rest.notes.news.push(News::Cleared(room.clone(), log.head.chain.cleared()));
            Ok(())
        })?;
        self.written(awaited).await
    }

    async fn subscribe(&self, _: &RoomName) {}

    fn unsubscribe(&self, _: &RoomName) {}

    async fn chains(&self, rooms: &[RoomName]) -> Result<Vec<Option<Chain>>, BrokerError> {
        let now = microseconds();
        let mut last = 0;
        let chains = {
            let mut state = self.state();
            self.check_journal()?;
            let State { logs, notes, .. } = &mut *state;
            let mut chain_of = |room: &RoomName| {
                let log = logs.get_mut(room)?;
                let every = micros(RENEW_EVERY.min(self.retention.of(room).head / 4));
                if log.entries.len() == 0 && now.saturating_sub(log.touched) >= every {
                    log.touched = now;
                    notes.add(|| Change::head(room, log));
                }
                last = last.max(log.ticket);
                Some(log.head.chain.clone())
            };
            let chains = rooms.iter().map(&mut chain_of).collect();
            // Nobody waits for the renewals themselves.
            self.finish(&mut state);
            chains
        };
        self.told(Awaited::Others(last)).await?;
        Ok(chains)
    }

    async fn report(&self, subscribers: &Occupancy, streams: u64) -> Result<(), BrokerError> {
        let mut state = self.state();
        state.subscribers.clone_from(subscribers);
        state.streams = streams;
        Ok(())
    }

    async fn occupancy(&self) -> Result<Occupancy, BrokerError> {
        Ok(self.state().subscribers.clone())
    }

    async fn occupancy_of(&self, room: &RoomName) -> Result<u64, BrokerError> {
        Ok(self.state().subscribers.get(room).copied().unwrap_or(0))
    }

    fn health(&self) -> Health {
        let full = || {
            let missed = self.refused.swap(0, Ordering::Relaxed);
            match self.check_room_for(self.state().bytes, PUBLISH_BYTES.max(missed)) {
                Err(BrokerError::Unavailable(fault)) => Some(fault),
                _ => None,
            }
        };
        let commands = self.journal.as_ref().and_then(|journal| journal.health()).or_else(full);
        Health { commands, delivery: None, round_trip: None }
    }
}
