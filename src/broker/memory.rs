//! The embedded broker: logs and hashes in this process's memory, under the same contract as Redis.
//!
//! Its history begins with the process: a restart is a new epoch for every room, and clients are told.

mod hashes;
mod log;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;

use self::log::Log;
use super::{
    Appended, Broker, BrokerError, Entry, Fault, FaultKind, Health, Listener, Occupancy, Once, Range,
    RetentionPolicy, Slice,
};
use crate::follow::{Head, Moment};
use crate::room::{EventId, HashName, RoomName};

/// What an entry, a room or a field costs beside its bytes: an estimate, for the limit.
const OVERHEAD_BYTES: usize = 128;
/// What an idempotency key costs, digests included.
const ONCE_BYTES: usize = 256;

/// Logs and hashes in memory.
pub struct MemoryBroker {
    state: Mutex<State>,
    listener: OnceLock<Arc<dyn Listener>>,
    retention: RetentionPolicy,
    max_bytes: usize,
    mark: String,
}

#[derive(Default)]
struct State {
    logs: HashMap<RoomName, Log>,
    hashes: HashMap<HashName, BTreeMap<String, Bytes>>,
    subscribers: Occupancy,
    /// What idempotency keys have done, and until when that is remembered.
    once: Keys,
    bytes: usize,
}

type Keys = HashMap<(RoomName, String), Done>;

struct Done {
    content: String,
    id: EventId,
    /// Microseconds since 1970.
    until: u64,
}

impl MemoryBroker {
    /// An empty broker. Beyond `max_bytes` it refuses writes, as Redis does with `noeviction`.
    pub fn new(retention: RetentionPolicy, max_bytes: usize) -> Self {
        Self {
            state: Mutex::default(),
            listener: OnceLock::new(),
            retention,
            max_bytes,
            mark: uuid::Uuid::new_v4().simple().to_string(),
        }
    }

    /// Drops what has expired, so that rooms nobody asks for leave the memory. To be called now and then.
    pub fn sweep(&self) {
        let now = microseconds();
        let mut state = self.state();
        let State { logs, once, bytes, .. } = &mut *state;
        once.retain(|_, done| {
            let kept = done.until > now;
            if !kept {
                *bytes -= ONCE_BYTES;
            }
            kept
        });
        logs.retain(|room, log| {
            let retention = self.retention.of(room);
            *bytes -= log.expire(now, retention);
            let kept = !log.is_forgotten(now, retention);
            if !kept {
                *bytes -= OVERHEAD_BYTES;
            }
            kept
        });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the lock panics")
    }

    /// Begins every step on a room: expires, then vouches for the head.
    fn with_log<T>(
        &self,
        room: &RoomName,
        known: &[EventId],
        step: impl FnOnce(&mut Log, &mut usize, &mut Keys) -> Result<T, BrokerError>,
    ) -> Result<T, BrokerError> {
        let now = microseconds();
        let mut state = self.state();
        let State { logs, bytes, once, .. } = &mut *state;
        let mut present = logs.remove(room);
        if let Some(log) = &mut present {
            let retention = self.retention.of(room);
            *bytes -= log.expire(now, retention);
            if log.is_forgotten(now, retention) {
                *bytes -= OVERHEAD_BYTES;
                present = None;
            }
        }
        let (head, entries, touched) = if let Some(log) = present {
            (Some(log.head), log.entries, log.touched)
        } else {
            self.check_room_for(*bytes, OVERHEAD_BYTES)?;
            *bytes += OVERHEAD_BYTES;
            (None, log::Entries::default(), now)
        };
        let moment =
            Moment { mark: &self.mark, time: now, random: fastrand::u64(..1 << 20), oldest: entries.oldest() };
        let (head, _) = Head::vouch(head, known, moment);
        let log = logs.entry(room.clone()).or_insert(Log { head, entries, touched });
        step(log, bytes, once)
    }

    fn check_room_for(&self, present: usize, more: usize) -> Result<(), BrokerError> {
        if present + more > self.max_bytes {
            let detail = format!("the embedded broker holds its limit of {} bytes", self.max_bytes);
            return Err(BrokerError::Unavailable(Fault::new(FaultKind::OutOfMemory, detail)));
        }
        Ok(())
    }
}

/// Now, in microseconds since 1970.
fn microseconds() -> u64 {
    micros(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
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
        self.with_log(room, known, |log, bytes, keys| {
            let now = microseconds();
            let place = once.map(|once| (room.clone(), once.key.clone()));
            let before = place.as_ref().and_then(|place| keys.get(place)).filter(|done| done.until > now);
            if let (Some(done), Some(once)) = (before, once) {
                let same = done.content == once.content;
                return if same {
                    Ok(Appended { id: done.id, replayed: true })
                } else {
                    Err(BrokerError::KeyReused)
                };
            }
            let cost = stored.len() + OVERHEAD_BYTES;
            self.check_room_for(*bytes, cost + once.map_or(0, |_| ONCE_BYTES))?;
            let id = log.head.chain.extend();
            log.touched = now;
            if let (Some(place), Some(once)) = (place, once) {
                let done =
                    Done { content: once.content.clone(), id, until: now.saturating_add(micros(retention.once)) };
                if keys.insert(place, done).is_none() {
                    *bytes += ONCE_BYTES;
                }
            }
            let entry = Entry { id, stored };
            *bytes += cost;
            *bytes -= log.entries.push(entry.clone(), now, retention);
            // Announced under the lock: that is what keeps announcements in the order of their ids.
            if let Some(listener) = self.listener.get() {
                listener.heard(room, entry);
            }
            Ok(Appended { id, replayed: false })
        })
    }

    async fn read(
        &self,
        room: &RoomName,
        known: &[EventId],
        range: Range,
        limit: usize,
    ) -> Result<Slice, BrokerError> {
        self.with_log(room, known, |log, _, _| {
            Ok(Slice {
                chain: log.head.chain.clone(),
                oldest: log.entries.oldest(),
                retained: log.entries.len() as u64,
                entries: log.entries.select(range, limit),
            })
        })
    }

    async fn clear(&self, room: &RoomName, known: &[EventId]) -> Result<(), BrokerError> {
        self.with_log(room, known, |log, bytes, _| {
            log.head.chain.clear();
            *bytes -= log.entries.clear();
            Ok(())
        })?;
        if let Some(listener) = self.listener.get() {
            listener.doubt(room);
        }
        Ok(())
    }

    async fn subscribe(&self, _: &RoomName) {}

    fn unsubscribe(&self, _: &RoomName) {}

    async fn ends(&self, rooms: &[RoomName]) -> Result<Vec<Option<EventId>>, BrokerError> {
        let now = microseconds();
        let mut state = self.state();
        Ok(rooms
            .iter()
            .map(|room| {
                let log = state.logs.get_mut(room)?;
                if log.entries.len() == 0 {
                    log.touched = now;
                }
                Some(log.head.chain.end())
            })
            .collect())
    }

    async fn report(&self, subscribers: &Occupancy) -> Result<(), BrokerError> {
        self.state().subscribers.clone_from(subscribers);
        Ok(())
    }

    async fn occupancy(&self) -> Result<Occupancy, BrokerError> {
        Ok(self.state().subscribers.clone())
    }

    async fn occupancy_of(&self, room: &RoomName) -> Result<u64, BrokerError> {
        Ok(self.state().subscribers.get(room).copied().unwrap_or(0))
    }

    fn health(&self) -> Health {
        Health::default()
    }
}
