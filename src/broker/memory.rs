//! The embedded broker: logs and hashes in this process's memory, under the same contract as Redis.
//!
//! Its history begins with the process: a restart is a new epoch for every room, and clients are told what it cost. With
//! a data folder it costs nothing: a journal keeps what the memory holds, and nothing is told before it is kept.

mod entries;
mod hash;
mod journal;
mod log;
mod moderation;
mod presence;
mod rate;
mod record;
mod registry;
mod store;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;

use self::entries::{Entries, Log};
pub use self::journal::SyncPolicy;
use self::journal::{Announcement, Journal, JournalStep, ListenerSlot, Lsn};
use self::presence::RoomMembers;
use self::record::RecordChange;
pub use self::store::StoreError;
use tokio::time::{MissedTickBehavior, interval};

use super::{Broker, BrokerError, Fault, FaultKind, Health, Listeners, Removal, RetentionPolicy, SubscriberCounts};
use crate::log::{Head, StepContext};
use crate::names::{EventId, HashName, RoomName, Topic};
use crate::shutdown::Tasks;

/// What an entry, a room or a field costs beside its bytes: an estimate, for the limit.
const OVERHEAD_BYTES: usize = 128;
/// What an idempotency key costs, digests included.
const IDEMPOTENCY_BYTES: usize = 256;
/// What a small publish takes. Where that does not fit, the broker is ill.
const PUBLISH_BYTES: usize = 1024 + 2 * OVERHEAD_BYTES + IDEMPOTENCY_BYTES;
/// Rooms that were only ever read may take this part of the memory, so that readers can't stop publishers.
const UNUSED_SHARE: usize = 8;
/// IdempotencyKey they take half of that, those that nobody is in are forgotten after this time: whoever comes back to one that is
/// forgotten may be told of a gap, and that is better than to refuse all others.
const UNUSED_TIME: Duration = Duration::from_mins(1);
/// A quiet room that has subscribers is renewed about this often.
const RENEW_EVERY: Duration = Duration::from_mins(1);

/// How often what has expired is dropped.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// Logs and hashes in memory.
pub struct MemoryBroker {
    state: Mutex<State>,
    journal: Option<Arc<Journal>>,
    /// When each is full again, microseconds since 1970.
    buckets: Mutex<HashMap<String, u64>>,
    listeners: ListenerSlot,
    retention: RetentionPolicy,
    max_bytes: usize,
    /// Bytes of the largest write that was refused since there was room for it.
    refused: AtomicUsize,
    replication_id: String,
    /// What this process is called among replicas.
    replica: String,
    began: Instant,
    /// Who was in a room before has so long to come back.
    lease: Duration,
}

#[derive(Default)]
struct State {
    logs: HashMap<Topic, Log>,
    hashes: HashMap<HashName, BTreeMap<String, Bytes>>,
    subscribers: SubscriberCounts,
    streams: u64,
    members: HashMap<RoomName, RoomMembers>,
    /// By when they were stored, microseconds since 1970.
    removals: BTreeMap<u64, Removal>,
    /// What idempotency keys have record, and until when that is remembered.
    idempotency: IdempotencyRecords,
    bytes: usize,
    /// Rooms that were only ever read.
    unused: usize,
    notes: Notes,
    /// The last change of any hash.
    hashes_lsn: Lsn,
}

/// What the present step has record.
#[derive(Default)]
struct Notes {
    /// What it changed; not noted where nothing is kept.
    changes: Option<Vec<RecordChange>>,
    announcements: Vec<Announcement>,
}

impl Notes {
    fn add(&mut self, change: impl FnOnce() -> RecordChange) {
        if let Some(changes) = &mut self.changes {
            changes.push(change());
        }
    }
}

/// What a step on a room may change beside its log.
struct Transaction<'a> {
    bytes: &'a mut usize,
    idempotency: &'a mut IdempotencyRecords,
    members: &'a mut HashMap<RoomName, RoomMembers>,
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
            Self::Read(from) => from.is_some_and(|from| from > head.history.end()),
        }
    }
}

/// What has to be durable before the outcome of a step is told.
#[derive(Clone, Copy)]
enum DurableAt {
    /// A change that this step has made.
    Own(Lsn),
    /// What others have changed before.
    Others(Lsn),
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

type IdempotencyRecords = HashMap<(Topic, String), IdempotencyRecord>;

struct IdempotencyRecord {
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
        let listeners = ListenerSlot::default();
        let load = |store: &mut store::Store| {
            let mut state = State::default();
            store.load(|key, value| state.restore(key, value))?;
            state.unused = state.logs.values().filter(|log| log.is_unused()).count();
            state.notes.changes = Some(Vec::new());
            Ok(state)
        };
        let (journal, state) = journal::open(folder, listeners.clone(), tasks, load).await?;
        tracing::info!(rooms = state.logs.len(), hashes = state.hashes.len(), bytes = state.bytes, "loaded");
        if state.bytes > settings.max_bytes {
            tracing::warn!(
                bytes = state.bytes,
                max_bytes = settings.max_bytes,
                "the data folder holds more than the limit: no writes"
            );
        }
        Ok(Self::with(state, Some(journal), listeners, settings))
    }

    fn with(
        state: State,
        journal: Option<Arc<Journal>>,
        listeners: ListenerSlot,
        settings: MemorySettings,
    ) -> Self {
        let replication_id = uuid::Uuid::new_v4().simple().to_string();
        let MemorySettings { replica, lease, retention, max_bytes } = settings;
        Self {
            state: Mutex::new(state),
            journal,
            buckets: Mutex::default(),
            listeners,
            retention,
            max_bytes,
            refused: AtomicUsize::new(0),
            replication_id,
            replica,
            began: Instant::now(),
            lease,
        }
    }

    /// Drops what has expired, so that rooms nobody asks for leave the memory. To be called now and then.
    fn sweep(&self) {
        let now = microseconds();
        let mut state = self.state();
        if self.check_journal().is_err() {
            return;
        }
        let State { logs, idempotency, bytes, unused, notes, subscribers, .. } = &mut *state;
        let many = *unused > self.most_unused() / 2;
        idempotency.retain(|(topic, digest), record| {
            let kept = record.until > now;
            if !kept {
                *bytes -= IDEMPOTENCY_BYTES;
                notes.add(|| RecordChange::no_idempotency_key(topic, digest));
            }
            kept
        });
        logs.retain(|topic, log| {
            let retention = self.retention.for_topic(topic);
            *bytes -= log.expire(now, retention, |id| notes.add(|| RecordChange::no_entry(topic, id)));
            // An earlier process may have kept more.
            *bytes -= log.entries.trim(retention, |id| notes.add(|| RecordChange::no_entry(topic, id)));
            let crowded = many && log.is_unused() && log.is_untouched(now, UNUSED_TIME);
            let kept = !log.is_forgotten(now, retention)
                && (!crowded || topic.room().is_some_and(|room| subscribers.contains_key(room)));
            if !kept {
                *bytes -= OVERHEAD_BYTES;
                *unused -= usize::from(log.is_unused());
                notes.add(|| RecordChange::no_head(topic));
            }
            kept
        });
        state.sweep_presence();
        state.sweep_removals();
        self.finish(&mut state);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the lock panics")
    }

    /// Every step on a room: expires, then vouches for the head, then does what it is for.
    fn with_log<T>(
        &self,
        topic: &Topic,
        watermarks: &[EventId],
        purpose: Purpose,
        step: impl FnOnce(&mut Log, &mut Transaction<'_>) -> Result<T, BrokerError>,
    ) -> Result<(T, DurableAt), BrokerError> {
        let mut state = self.state();
        self.check_journal()?;
        let outcome = self.step(&mut state, topic, watermarks, purpose, step);
        let own = self.finish(&mut state);
        let mut durable_at = DurableAt::Others(0);
        if let Some(log) = state.logs.get_mut(topic) {
            log.lsn = own.unwrap_or(log.lsn);
            durable_at = own.map_or(DurableAt::Others(log.lsn), DurableAt::Own);
        }
        Ok((outcome?, durable_at))
    }

    fn step<T>(
        &self,
        state: &mut State,
        topic: &Topic,
        watermarks: &[EventId],
        purpose: Purpose,
        step: impl FnOnce(&mut Log, &mut Transaction<'_>) -> Result<T, BrokerError>,
    ) -> Result<T, BrokerError> {
        let now = microseconds();
        let State { logs, bytes, unused, idempotency, members, notes, .. } = state;
        let mut present = logs.remove(topic);
        if let Some(log) = &mut present {
            let retention = self.retention.for_topic(topic);
            *bytes -= log.expire(now, retention, |id| notes.add(|| RecordChange::no_entry(topic, id)));
            if log.is_forgotten(now, retention) {
                *bytes -= OVERHEAD_BYTES;
                *unused -= usize::from(log.is_unused());
                notes.add(|| RecordChange::no_head(topic));
                present = None;
            }
        }
        let (head, entries, touched, lsn) = if let Some(log) = present {
            *unused -= usize::from(log.is_unused());
            (Some(log.head), log.entries, log.touched, log.lsn)
        } else {
            self.check_room_for(*bytes, OVERHEAD_BYTES)?;
            if purpose != Purpose::Append && *unused >= self.most_unused() {
                let detail = format!("{unused} rooms were only ever read, and take all that such rooms may take");
                return Err(BrokerError::Unavailable(Fault::new(FaultKind::OutOfMemory, detail)));
            }
            *bytes += OVERHEAD_BYTES;
            (None, Entries::default(), now, 0)
        };
        let own = head.as_ref().filter(|head| !purpose.takes_over(head)).map(|head| head.replication_id.clone());
        let moment = StepContext {
            replication_id: own.as_deref().unwrap_or(&self.replication_id),
            time: now,
            random: fastrand::u64(..1 << 20),
            oldest: entries.oldest(),
        };
        let (head, is_new) = Head::ensure_epoch(head, watermarks, moment);
        let log = logs.entry(topic.clone()).or_insert(Log { head, entries, touched, lsn });
        if is_new {
            notes.add(|| RecordChange::head(topic, log));
        }
        let outcome = step(log, &mut Transaction { bytes, idempotency, members, notes });
        *unused += usize::from(log.is_unused());
        outcome
    }

    /// What is there, as it is: while nothing can be kept, and where nothing has to change for it.
    fn peek<T>(
        &self,
        topic: &Topic,
        watermarks: &[EventId],
        read: impl FnOnce(&Log) -> T,
    ) -> Option<(T, DurableAt)> {
        self.check_journal().err()?;
        let state = self.state();
        let log = state
            .logs
            .get(topic)
            .filter(|log| !log.is_forgotten(microseconds(), self.retention.for_topic(topic)))?;
        let contradicted = watermarks.iter().any(|id| log.head.history.conflicts_with(*id));
        (!contradicted).then(|| (read(log), DurableAt::Others(log.lsn)))
    }

    /// Ends a step: has the journal keep what it changed and tell of it then, or tells of it at once.
    fn finish(&self, state: &mut State) -> Option<Lsn> {
        let Notes { changes, announcements } = &mut state.notes;
        let announcements = std::mem::take(announcements);
        if let Some(journal) = &self.journal {
            let changes = changes.as_mut().map(std::mem::take).unwrap_or_default();
            return (!changes.is_empty()).then(|| journal.push(JournalStep { changes, announcements }));
        }
        // Under the lock: that is what keeps announcements in the order of their ids.
        if let Some(listeners) = self.listeners.get() {
            for announcements in announcements {
                announcements.send(listeners);
            }
        }
        None
    }

    /// Returns when the outcome of a write may be told.
    async fn wait_write(&self, durable_at: DurableAt) -> Result<(), BrokerError> {
        match (&self.journal, durable_at) {
            (Some(journal), DurableAt::Own(lsn)) => journal.wait_write(lsn).await,
            _ => self.wait_read(durable_at).await,
        }
    }

    /// Returns when what was read may be told.
    async fn wait_read(&self, durable_at: DurableAt) -> Result<(), BrokerError> {
        let Some(journal) = &self.journal else { return Ok(()) };
        let (DurableAt::Own(lsn) | DurableAt::Others(lsn)) = durable_at;
        journal.wait_read(lsn).await
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

impl Broker for MemoryBroker {
    fn kind(&self) -> &'static str {
        "embedded"
    }

    fn start(self: Arc<Self>, listeners: Listeners, tasks: &Tasks) {
        assert!(self.listeners.set(listeners).is_ok(), "a broker is started once");
        tasks.supervise("sweep", async move {
            let mut ticks = interval(SWEEP_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                self.sweep();
            }
        });
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

/// Now, in microseconds since 1970.
fn microseconds() -> u64 {
    micros(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
