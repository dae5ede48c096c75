//! The embedded broker: logs and hashes in this process's memory, under the same contracts as Redis.
//!
//! Without a data folder the history begins with the process: a restart begins a new epoch in every room, and clients
//! get gaps for what was lost. With a data folder a restart loses nothing: a journal stores each change before a client
//! learns of it.

mod announcement;
mod hash;
mod journal;
mod log;
mod moderation;
mod presence;
mod rate;
mod record;
mod registry;
mod state;
mod store;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::task::yield_now;
use tokio::time::{MissedTickBehavior, interval};

use self::announcement::ListenerSlot;
pub use self::journal::SyncPolicy;
use self::journal::{DurableAt, Journal, JournalEntry, Lsn};
use self::record::Record;
use self::state::{MemoryLog, MemoryState, Transaction};
use self::store::Store;
pub use self::store::StoreError;
use super::{Broker, BrokerError, Health, Listeners, RetentionPolicy};
use crate::names::{EventId, Topic};
use crate::shutdown::Tasks;
use crate::timestamp;

/// The time between two sweeps, which drop what has expired.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// The time between two looks for hashes that have expired. Watchers of a hash are told of its end within 2 s.
const EXPIRE_EVERY: Duration = Duration::from_secs(1);

/// The broker of a gateway without Redis.
pub struct MemoryBroker {
    state: Mutex<MemoryState>,
    /// None without a data folder.
    journal: Option<Arc<Journal>>,
    /// By key, when each rate limit's bucket will be full, in microseconds since 1970.
    buckets: Mutex<HashMap<String, u64>>,
    listeners: ListenerSlot,
    replica: String,
    started: Instant,
    lease: Duration,
}

/// A data folder, and how it is written.
#[derive(Clone, Debug)]
pub struct DataFolder {
    /// The folder, which is created if it does not exist.
    pub path: PathBuf,
    /// When changes are flushed to the disk.
    pub sync: SyncPolicy,
}

/// The settings of an embedded broker.
#[derive(Clone, Debug)]
pub struct MemorySettings {
    /// The name of this replica.
    pub replica: String,
    /// How long members that were present before a restart may take to come back.
    pub lease: Duration,
    /// How much of the logs is kept.
    pub retention: RetentionPolicy,
    /// The most bytes that the broker holds. Beyond them it refuses writes, as Redis does with `noeviction`.
    pub max_bytes: usize,
}

impl MemoryBroker {
    /// An empty broker without a data folder.
    pub fn new(settings: MemorySettings) -> Self {
        let MemorySettings { replica, lease, retention, max_bytes } = settings;
        Self::with_state(MemoryState::new(retention, max_bytes), None, ListenerSlot::default(), replica, lease)
    }

    /// A broker with the data of a folder, where it stores each change. If the folder holds more than `max_bytes`, all
    /// of it is loaded and writes are refused.
    pub async fn open(folder: DataFolder, settings: MemorySettings, tasks: &Tasks) -> Result<Self, StoreError> {
        let MemorySettings { replica, lease, retention, max_bytes } = settings;
        let listeners = ListenerSlot::default();
        let load = move |store: &mut Store| {
            let mut state = MemoryState::new(retention, max_bytes);
            store.load(|key, value| {
                let record = Record::parse(key, value).and_then(|record| state.load(record));
                record.ok_or_else(|| {
                    let key = String::from_utf8_lossy(key);
                    StoreError::Damaged(format!("the record {key:?} can't be read"))
                })
            })?;
            state.start_journal();
            Ok(state)
        };
        let (journal, state) = journal::open(folder, listeners.clone(), tasks, load).await?;
        let bytes = state.used_bytes();
        tracing::info!(rooms = state.log_count(), hashes = state.hash_count(), bytes, "the data folder is loaded");
        if bytes > max_bytes {
            tracing::warn!(
                bytes,
                max_bytes,
                "the data folder holds more than --embedded-max-bytes; writes are refused until it holds less"
            );
        }
        Ok(Self::with_state(state, Some(journal), listeners, replica, lease))
    }

    fn with_state(
        state: MemoryState,
        journal: Option<Arc<Journal>>,
        listeners: ListenerSlot,
        replica: String,
        lease: Duration,
    ) -> Self {
        Self {
            state: Mutex::new(state),
            journal,
            buckets: Mutex::default(),
            listeners,
            replica,
            started: Instant::now(),
            lease,
        }
    }

    fn state(&self) -> MutexGuard<'_, MemoryState> {
        self.state.lock().expect("no holder of the lock panics")
    }

    /// Runs a step, and hands what it has changed to the journal. That includes the changes of a step that fails: the
    /// memory has them.
    fn run<T>(&self, state: &mut MemoryState, step: impl FnOnce(&mut Transaction<'_>) -> T) -> (T, Option<Lsn>) {
        let mut transaction = state.begin(now_micros());
        let outcome = step(&mut transaction);
        (outcome, self.commit(transaction.finish()))
    }

    /// Hands an entry to the journal, which announces it once it is durable. Without a journal, announces it at once.
    /// Called under the memory's lock, so that announcements have the order of their ids.
    fn commit(&self, entry: JournalEntry) -> Option<Lsn> {
        if let Some(journal) = &self.journal {
            return (!entry.is_unchanged()).then(|| journal.push(entry));
        }
        if let Some(listeners) = self.listeners.get() {
            entry.announcements.into_iter().for_each(|announcement| announcement.send(listeners));
        }
        None
    }

    /// Runs a step that reads or changes one log.
    fn step_on_log<T>(
        &self,
        topic: &Topic,
        step: impl FnOnce(&mut Transaction<'_>) -> Result<T, BrokerError>,
    ) -> Result<(T, DurableAt), BrokerError> {
        let mut state = self.state();
        self.check_journal()?;
        let (outcome, own) = self.run(&mut state, step);
        let last = state.log_lsn_mut(topic);
        let durable_at = last.map_or(DurableAt::Earlier(0), |last| DurableAt::new(own, last));
        Ok((outcome?, durable_at))
    }

    /// Reads a log as it is while the journal refuses changes. None if it does not, if there is no log, or if the read
    /// would begin an epoch.
    fn read_unchanged<T>(
        &self,
        topic: &Topic,
        watermarks: &[EventId],
        read: impl FnOnce(&MemoryLog) -> T,
    ) -> Option<(T, DurableAt)> {
        self.check_journal().err()?;
        let state = self.state();
        let log = state.log(topic, now_micros())?;
        (!log.conflicts_with(watermarks)).then(|| (read(log), DurableAt::Earlier(log.lsn())))
    }

    /// Waits until a client may learn the outcome of a write.
    async fn wait_write(&self, durable_at: DurableAt) -> Result<(), BrokerError> {
        match (&self.journal, durable_at) {
            (Some(journal), DurableAt::Own(lsn)) => journal.wait_write(lsn).await,
            _ => self.wait_read(durable_at).await,
        }
    }

    /// Waits until a client may learn what was read.
    async fn wait_read(&self, durable_at: DurableAt) -> Result<(), BrokerError> {
        let Some(journal) = &self.journal else { return Ok(()) };
        let (DurableAt::Own(lsn) | DurableAt::Earlier(lsn)) = durable_at;
        journal.wait_read(lsn).await
    }

    /// Fails while the journal refuses changes: nothing may change that can't be stored.
    fn check_journal(&self) -> Result<(), BrokerError> {
        let refusal = self.journal.as_ref().and_then(|journal| journal.refusal());
        refusal.map_or(Ok(()), |fault| Err(BrokerError::Unavailable(fault)))
    }

    /// Drops what has expired.
    fn sweep(&self) {
        let mut state = self.state();
        if self.check_journal().is_ok() {
            self.run(&mut state, |transaction| {
                transaction.sweep();
            });
        }
    }
}

impl Broker for MemoryBroker {
    fn kind(&self) -> &'static str {
        "embedded"
    }

    fn start(self: Arc<Self>, listeners: Listeners, tasks: &Tasks) {
        assert!(self.listeners.set(listeners).is_ok(), "a broker is started once");
        let broker = self.clone();
        tasks.supervise("expiry of hashes", async move {
            let mut ticks = interval(EXPIRE_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                while broker.expire_next() {
                    yield_now().await;
                }
            }
        });
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
        let disk = self.journal.as_ref().and_then(|journal| journal.health());
        let mut state = self.state();
        Health {
            commands: disk.or_else(|| state.fault()),
            delivery: None,
            round_trip: None,
            memory: Some(state.memory_use()),
        }
    }
}

/// The time, in microseconds since 1970.
fn now_micros() -> u64 {
    micros(timestamp::since_1970())
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
