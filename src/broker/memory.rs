//! The embedded broker: logs and hashes in this process's memory, under the same contract as Redis.
//!
//! Its history begins with the process: a restart is a new epoch for every room, and clients are told what it cost. With
//! a data folder it costs nothing: a journal keeps what the memory holds, and nothing is told before it is kept.

mod buckets;
mod hashes;
mod journal;
mod log;
mod record;
mod rooms;
mod roster;
mod store;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;

pub use self::journal::SyncPolicy;
use self::journal::{Ear, Journal, News, Step, Ticket};
use self::log::Log;
use self::record::Change;
use self::roster::Roll;
pub use self::store::StoreError;
use super::{BrokerError, Fault, FaultKind, Occupancy, Removal, RetentionPolicy};
use crate::follow::{Head, Moment};
use crate::room::{EventId, HashName, RoomName};
use crate::shutdown::Tasks;

/// What an entry, a room or a field costs beside its bytes: an estimate, for the limit.
const OVERHEAD_BYTES: usize = 128;
/// What an idempotency key costs, digests included.
const ONCE_BYTES: usize = 256;
/// What a small publish takes. Where that does not fit, the broker is ill.
const PUBLISH_BYTES: usize = 1024 + 2 * OVERHEAD_BYTES + ONCE_BYTES;
/// Rooms that were only ever read may take this part of the memory, so that readers can't stop publishers.
const UNUSED_SHARE: usize = 8;
/// Once they take half of that, those that nobody is in are forgotten after this time: whoever comes back to one that is
/// forgotten may be told of a gap, and that is better than to refuse all others.
const UNUSED_TIME: Duration = Duration::from_mins(1);
/// A quiet room that has subscribers is renewed about this often.
const RENEW_EVERY: Duration = Duration::from_mins(1);

/// Logs and hashes in memory.
pub struct MemoryBroker {
    state: Mutex<State>,
    journal: Option<Arc<Journal>>,
    /// When each is full again, microseconds since 1970.
    buckets: Mutex<HashMap<String, u64>>,
    listener: Ear,
    retention: RetentionPolicy,
    max_bytes: usize,
    /// Bytes of the largest write that was refused since there was room for it.
    refused: AtomicUsize,
    mark: String,
    /// What this process is called among replicas.
    replica: String,
    began: Instant,
    /// Who was in a room before has so long to come back.
    lease: Duration,
}

#[derive(Default)]
struct State {
    logs: HashMap<RoomName, Log>,
    hashes: HashMap<HashName, BTreeMap<String, Bytes>>,
    subscribers: Occupancy,
    streams: u64,
    rolls: HashMap<RoomName, Roll>,
    /// By when they were stored, microseconds since 1970.
    removals: BTreeMap<u64, Removal>,
    /// What idempotency keys have done, and until when that is remembered.
    once: Keys,
    bytes: usize,
    /// Rooms that were only ever read.
    unused: usize,
    notes: Notes,
    /// The last change of any hash.
    hashes_ticket: Ticket,
}

/// What the present step has done.
#[derive(Default)]
struct Notes {
    /// What it changed; not noted where nothing is kept.
    changes: Option<Vec<Change>>,
    news: Vec<News>,
}

impl Notes {
    fn add(&mut self, change: impl FnOnce() -> Change) {
        if let Some(changes) = &mut self.changes {
            changes.push(change());
        }
    }
}

/// What a step on a room may change beside its log.
struct Rest<'a> {
    bytes: &'a mut usize,
    once: &'a mut Keys,
    rolls: &'a mut HashMap<RoomName, Roll>,
    notes: &'a mut Notes,
}

/// What a step on a room is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Append,
    /// Gives out no new id, so what an earlier process has kept stands as it is: a quiet room has no new epoch with each
    /// restart. But for whoever comes from a position above it: part of what was kept is gone, and that one can only be
    /// led on to an epoch above.
    Read(Option<EventId>),
}

impl Purpose {
    fn takes_over(self, head: &Head) -> bool {
        match self {
            Self::Append => true,
            Self::Read(from) => from.is_some_and(|from| from > head.chain.end()),
        }
    }
}

/// What has to be durable before the outcome of a step is told.
#[derive(Clone, Copy)]
enum Awaited {
    /// A change that this step has made.
    Own(Ticket),
    /// What others have changed before.
    Others(Ticket),
}

/// Where logs and hashes are kept.
#[derive(Clone, Debug)]
pub struct DataFolder {
    /// The folder; made if it is not there.
    pub path: PathBuf,
    /// When its changes are forced to the disk.
    pub sync: SyncPolicy,
}

/// How an embedded broker keeps what it is given.
#[derive(Clone, Debug)]
pub struct MemorySettings {
    /// This process's name.
    pub replica: String,
    /// Whoever was in a room before a restart has so long to come back.
    pub lease: Duration,
    /// How long logs are kept.
    pub retention: RetentionPolicy,
    /// Most bytes.
    pub max_bytes: usize,
}

type Keys = HashMap<(RoomName, String), Done>;

struct Done {
    content: String,
    id: EventId,
    /// Microseconds since 1970.
    until: u64,
}

impl MemoryBroker {
    /// An empty broker. Beyond its most bytes it refuses writes, as Redis does with `noeviction`.
    pub fn new(settings: MemorySettings) -> Self {
        Self::with(State::default(), None, Arc::default(), settings)
    }

    /// A broker with what the folder holds, also if that is beyond its most bytes; it keeps there what it is given.
    pub async fn open(folder: DataFolder, settings: MemorySettings, tasks: &Tasks) -> Result<Self, StoreError> {
        let listener = Ear::default();
        let load = |store: &mut store::Store| {
            let mut state = State::default();
            store.load(|key, value| state.restore(key, value))?;
            state.unused = state.logs.values().filter(|log| log.is_unused()).count();
            state.notes.changes = Some(Vec::new());
            Ok(state)
        };
        let (journal, state) = journal::open(folder, listener.clone(), tasks, load).await?;
        tracing::info!(rooms = state.logs.len(), hashes = state.hashes.len(), bytes = state.bytes, "loaded");
        if state.bytes > settings.max_bytes {
            tracing::warn!(
                bytes = state.bytes,
                max_bytes = settings.max_bytes,
                "the data folder holds more than the limit: no writes"
            );
        }
        Ok(Self::with(state, Some(journal), listener, settings))
    }

    fn with(state: State, journal: Option<Arc<Journal>>, listener: Ear, settings: MemorySettings) -> Self {
        let mark = uuid::Uuid::new_v4().simple().to_string();
        let MemorySettings { replica, lease, retention, max_bytes } = settings;
        Self {
            state: Mutex::new(state),
            journal,
            buckets: Mutex::default(),
            listener,
            retention,
            max_bytes,
            refused: AtomicUsize::new(0),
            mark,
            replica,
            began: Instant::now(),
            lease,
        }
    }

    /// Drops what has expired, so that rooms nobody asks for leave the memory. To be called now and then.
    pub fn sweep(&self) {
        let now = microseconds();
        let mut state = self.state();
        if self.check_journal().is_err() {
            return;
        }
        let State { logs, once, bytes, unused, notes, subscribers, .. } = &mut *state;
        let many = *unused > self.most_unused() / 2;
        once.retain(|(room, digest), done| {
            let kept = done.until > now;
            if !kept {
                *bytes -= ONCE_BYTES;
                notes.add(|| Change::no_once(room, digest));
            }
            kept
        });
        logs.retain(|room, log| {
            let retention = self.retention.of(room);
            *bytes -= log.expire(now, retention, |id| notes.add(|| Change::no_entry(room, id)));
            // An earlier process may have kept more.
            *bytes -= log.entries.trim(retention, |id| notes.add(|| Change::no_entry(room, id)));
            let crowded = many && log.is_unused() && log.is_untouched(now, UNUSED_TIME);
            let kept = !log.is_forgotten(now, retention) && (!crowded || subscribers.contains_key(room));
            if !kept {
                *bytes -= OVERHEAD_BYTES;
                *unused -= usize::from(log.is_unused());
                notes.add(|| Change::no_head(room));
            }
            kept
        });
        state.sweep_rosters();
        self.finish(&mut state);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the lock panics")
    }

    /// Every step on a room: expires, then vouches for the head, then does what it is for.
    fn with_log<T>(
        &self,
        room: &RoomName,
        known: &[EventId],
        purpose: Purpose,
        step: impl FnOnce(&mut Log, &mut Rest<'_>) -> Result<T, BrokerError>,
    ) -> Result<(T, Awaited), BrokerError> {
        let mut state = self.state();
        self.check_journal()?;
        let outcome = self.step(&mut state, room, known, purpose, step);
        let own = self.finish(&mut state);
        let mut awaited = Awaited::Others(0);
        if let Some(log) = state.logs.get_mut(room) {
            log.ticket = own.unwrap_or(log.ticket);
            awaited = own.map_or(Awaited::Others(log.ticket), Awaited::Own);
        }
        Ok((outcome?, awaited))
    }

    fn step<T>(
        &self,
        state: &mut State,
        room: &RoomName,
        known: &[EventId],
        purpose: Purpose,
        step: impl FnOnce(&mut Log, &mut Rest<'_>) -> Result<T, BrokerError>,
    ) -> Result<T, BrokerError> {
        let now = microseconds();
        let State { logs, bytes, unused, once, rolls, notes, .. } = state;
        let mut present = logs.remove(room);
        if let Some(log) = &mut present {
            let retention = self.retention.of(room);
            *bytes -= log.expire(now, retention, |id| notes.add(|| Change::no_entry(room, id)));
            if log.is_forgotten(now, retention) {
                *bytes -= OVERHEAD_BYTES;
                *unused -= usize::from(log.is_unused());
                notes.add(|| Change::no_head(room));
                present = None;
            }
        }
        let (head, entries, touched, ticket) = if let Some(log) = present {
            *unused -= usize::from(log.is_unused());
            (Some(log.head), log.entries, log.touched, log.ticket)
        } else {
            self.check_room_for(*bytes, OVERHEAD_BYTES)?;
            if purpose != Purpose::Append && *unused >= self.most_unused() {
                let detail = format!("{unused} rooms were only ever read, and take all that such rooms may take");
                return Err(BrokerError::Unavailable(Fault::new(FaultKind::OutOfMemory, detail)));
            }
            *bytes += OVERHEAD_BYTES;
            (None, log::Entries::default(), now, 0)
        };
        let own = head.as_ref().filter(|head| !purpose.takes_over(head)).map(|head| head.mark.clone());
        let moment = Moment {
            mark: own.as_deref().unwrap_or(&self.mark),
            time: now,
            random: fastrand::u64(..1 << 20),
            oldest: entries.oldest(),
        };
        let (head, is_new) = Head::vouch(head, known, moment);
        let log = logs.entry(room.clone()).or_insert(Log { head, entries, touched, ticket });
        if is_new {
            notes.add(|| Change::head(room, log));
        }
        let outcome = step(log, &mut Rest { bytes, once, rolls, notes });
        *unused += usize::from(log.is_unused());
        outcome
    }

    /// What is there, as it is: while nothing can be kept, and where nothing has to change for it.
    fn peek<T>(&self, room: &RoomName, known: &[EventId], read: impl FnOnce(&Log) -> T) -> Option<(T, Awaited)> {
        self.check_journal().err()?;
        let state = self.state();
        let log = state.logs.get(room).filter(|log| !log.is_forgotten(microseconds(), self.retention.of(room)))?;
        let contradicted = known.iter().any(|id| log.head.chain.is_contradicted_by(*id));
        (!contradicted).then(|| (read(log), Awaited::Others(log.ticket)))
    }

    /// Ends a step: has the journal keep what it changed and tell of it then, or tells of it at once.
    fn finish(&self, state: &mut State) -> Option<Ticket> {
        let Notes { changes, news } = &mut state.notes;
        let news = std::mem::take(news);
        if let Some(journal) = &self.journal {
            let changes = changes.as_mut().map(std::mem::take).unwrap_or_default();
            return (!changes.is_empty()).then(|| journal.push(Step { changes, news }));
        }
        // Under the lock: that is what keeps announcements in the order of their ids.
        if let Some(listener) = self.listener.get() {
            for news in news {
                news.tell(&**listener);
            }
        }
        None
    }

    /// Returns when the outcome of a write may be told.
    async fn written(&self, awaited: Awaited) -> Result<(), BrokerError> {
        match (&self.journal, awaited) {
            (Some(journal), Awaited::Own(ticket)) => journal.written(ticket).await,
            _ => self.told(awaited).await,
        }
    }

    /// Returns when what was read may be told.
    async fn told(&self, awaited: Awaited) -> Result<(), BrokerError> {
        let Some(journal) = &self.journal else { return Ok(()) };
        let (Awaited::Own(ticket) | Awaited::Others(ticket)) = awaited;
        journal.told(ticket).await
    }

    /// Nothing may change that can't be kept.
    fn check_journal(&self) -> Result<(), BrokerError> {
        let refusal = self.journal.as_ref().and_then(|journal| journal.refusal());
        refusal.map_or(Ok(()), |fault| Err(BrokerError::Unavailable(fault)))
    }

    /// How many rooms may be there that were only ever read.
    fn most_unused(&self) -> usize {
        self.max_bytes / UNUSED_SHARE / OVERHEAD_BYTES
    }

    fn check_room_for(&self, present: usize, more: usize) -> Result<(), BrokerError> {
        if present + more > self.max_bytes {
            // What is absurdly large is not missed.
            self.refused.fetch_max(more.min(self.max_bytes / UNUSED_SHARE), Ordering::Relaxed);
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
