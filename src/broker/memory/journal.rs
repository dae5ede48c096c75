//! The order in which changes become durable, and what is told once they are.
//!
//! Whoever changes the memory pushes what changed, under the memory's lock, and gets a lsn. One thread takes all that
//! waits, commits it as one batch, announces its events, and then says up to which lsn everything is durable. Nothing
//! is told to anyone before.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::DataFolder;
use super::record::RecordChange;
use super::store::{Changes, Store, StoreError};
use crate::broker::{BrokerError, Fault, FaultKind, Listeners, LogEntry};
use crate::names::{EventId, Topic};
use crate::shutdown::Tasks;

/// Changes that wait for the disk; beyond this, writes are refused.
const WAITING_BYTES: usize = 64 << 20;
/// How long a call waits for its change to be durable; below `CALL_LIMIT`, so that its answer can say what is wrong.
const DURABLE_LIMIT: Duration = Duration::from_secs(4);
/// A disk that takes longer for one commit counts as ill.
const COMMIT_LIMIT: Duration = Duration::from_secs(3);
/// Pauses before a failed commit is tried again.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(1);
/// With `everysec`, what a power cut can cost.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// When changes are forced to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SyncPolicy {
    /// Before anything is told.
    Always,
    /// Each second; before anything is told, they are with the system.
    Everysec,
}

/// A place in the order of changes. Everything up to it is durable, or nothing is told of it.
pub(super) type Lsn = u64;

/// What one step changed, and what the listeners hears of it.
pub(super) struct JournalStep {
    pub(super) changes: Vec<RecordChange>,
    pub(super) announcements: Vec<Announcement>,
}

/// What a step has done that has to be heard of.
pub(super) enum Announcement {
    /// It appended an event.
    Appended(Topic, LogEntry),
    /// It emptied the log.
    Cleared(Topic, EventId),
    /// It stored a removal.
    Removed,
}

impl Announcement {
    pub(super) fn send(self, listeners: &Listeners) {
        match self {
            Self::Appended(topic, entry) => listeners.log.announced(&topic, entry),
            Self::Cleared(topic, position) => listeners.log.cleared(&topic, position),
            Self::Removed => listeners.moderation.removals_changed(),
        }
    }
}

/// Who hears announcements.
pub(super) type ListenerSlot = Arc<OnceLock<Listeners>>;

/// The near end: takes steps, and tells when they are durable.
pub(super) struct Journal {
    queue: Mutex<Queue>,
    filled: Condvar,
    progress: watch::Sender<Progress>,
}

#[derive(Default)]
struct Queue {
    steps: Vec<JournalStep>,
    /// Of the steps that wait, and of those that are being committed.
    bytes: usize,
    newest: Lsn,
    /// When the commit began that is under way.
    busy_since: Option<Instant>,
    closed: bool,
}

#[derive(Clone, Default)]
struct Progress {
    durable: Lsn,
    fault: Option<Fault>,
}

/// Everything that waits, and its last lsn.
struct JournalBatch {
    steps: Vec<JournalStep>,
    last: Lsn,
}

/// Starts the journal's thread, which opens the folder, loads what is there, and then writes until the gateway stops.
pub(super) async fn open<T: Send + 'static>(
    folder: DataFolder,
    listeners: ListenerSlot,
    tasks: &Tasks,
    load: impl FnOnce(&mut Store) -> Result<T, StoreError> + Send + 'static,
) -> Result<(Arc<Journal>, T), StoreError> {
    let progress = watch::channel(Progress::default()).0;
    let journal = Arc::new(Journal { queue: Mutex::default(), filled: Condvar::new(), progress });
    let (opened, answer) = oneshot::channel();
    let (ending, mut ended) = oneshot::channel::<()>();
    let writer = journal.clone();
    let run = move || {
        // Dropped however the thread ends, by a panic too.
        let _ending = ending;
        let loaded = Store::open(&folder.path).and_then(|mut store| Ok((load(&mut store)?, store)));
        match loaded {
            Err(error) => drop(opened.send(Err(error))),
            Ok((loaded, mut store)) => {
                if opened.send(Ok(loaded)).is_ok() {
                    writer.write(&mut store, folder.sync, &listeners);
                }
            }
        }
    };
    thread::Builder::new().name("journal".into()).spawn(run)?;
    // The library panics at some kinds of damage.
    let loaded =
        answer.await.unwrap_or_else(|_| Err(StoreError::Damaged("it could not be read to its end".into())))?;
    let closing = Closing(journal.clone());
    tasks.supervise_to_end("journal", async |stop| {
        tokio::select! {
            _ = &mut ended => return,
            () = stop.cancelled() => {}
        }
        drop(closing);
        let _ = ended.await;
    });
    Ok((journal, loaded))
}

/// Closes the journal when its task ends, however it ends.
struct Closing(Arc<Journal>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Journal {
    /// Why nothing can be changed now.
    pub(super) fn refusal(&self) -> Option<Fault> {
        let queue = self.queue();
        let full = || Fault::new(FaultKind::Busy, format!("{WAITING_BYTES} bytes wait for the disk"));
        let closed = || Fault::new(FaultKind::Failed, "the gateway is stopping, and the data folder is closed");
        let fault = self.fault(&queue).or_else(|| queue.closed.then(closed));
        fault.or_else(|| (queue.bytes > WAITING_BYTES).then(full))
    }

    /// What is wrong with the disk.
    pub(super) fn health(&self) -> Option<Fault> {
        self.fault(&self.queue())
    }

    fn fault(&self, queue: &Queue) -> Option<Fault> {
        let slow = queue.busy_since.is_some_and(|since| since.elapsed() > COMMIT_LIMIT);
        let hangs = || Fault::new(FaultKind::TimedOut, "the disk does not finish a commit");
        self.progress.borrow().fault.clone().or_else(|| slow.then(hangs))
    }

    /// Puts a step in order. Called under the memory's lock, which makes this the order of what was changed.
    pub(super) fn push(&self, step: JournalStep) -> Lsn {
        let mut queue = self.queue();
        queue.bytes += step.changes.iter().map(RecordChange::bytes).sum::<usize>();
        queue.newest += 1;
        queue.steps.push(step);
        self.filled.notify_one();
        queue.newest
    }

    /// Returns when a change of the caller's own is durable.
    pub(super) async fn wait_write(&self, lsn: Lsn) -> Result<(), BrokerError> {
        let durable = async |progress: &mut watch::Receiver<Progress>| {
            progress.wait_for(|progress| progress.durable >= lsn).await.is_ok()
        };
        match timeout(DURABLE_LIMIT, durable(&mut self.progress.subscribe())).await {
            Ok(true) => Ok(()),
            _ => Err(BrokerError::OutcomeUnknown(self.health().unwrap_or_else(late))),
        }
    }

    /// Returns when what is to be told is durable. Does not wait for an ill disk.
    pub(super) async fn wait_read(&self, lsn: Lsn) -> Result<(), BrokerError> {
        if self.progress.borrow().durable >= lsn {
            return Ok(());
        }
        let mut progress = self.progress.subscribe();
        let settled = progress.wait_for(|progress| progress.durable >= lsn || progress.fault.is_some());
        let settled = match timeout(DURABLE_LIMIT, settled).await {
            Ok(Ok(progress)) if progress.durable >= lsn => return Ok(()),
            Ok(Ok(progress)) => progress.fault.clone(),
            _ => None,
        };
        Err(BrokerError::Unavailable(settled.or_else(|| self.health()).unwrap_or_else(late)))
    }

    /// Has the thread keep what still waits, and end.
    fn close(&self) {
        self.queue().closed = true;
        self.filled.notify_all();
    }

    /// Commits and announces until the journal is closed.
    fn write(&self, store: &mut Store, policy: SyncPolicy, listeners: &ListenerSlot) {
        let mut unsynced: Option<Instant> = None;
        loop {
            let batch = self.next(unsynced.map(|since| since + SYNC_EVERY));
            let closing = batch.is_none();
            if let Some(JournalBatch { steps, last }) = batch.filter(|batch| !batch.steps.is_empty()) {
                let changes = merge(&steps);
                let sync = policy == SyncPolicy::Always;
                if !self.until_done(|| store.commit(&changes, sync)) {
                    return;
                }
                if !sync {
                    unsynced.get_or_insert_with(Instant::now);
                }
                self.tell(steps, last, listeners);
            }
            let due = unsynced.is_some_and(|since| closing || since.elapsed() >= SYNC_EVERY);
            if due && !self.until_done(|| store.sync()) {
                return;
            }
            if due {
                unsynced = None;
            }
            if closing {
                return;
            }
        }
    }

    /// What waits; nothing of it at the deadline; none once the journal is closed and empty.
    fn next(&self, deadline: Option<Instant>) -> Option<JournalBatch> {
        let mut queue = self.queue();
        while queue.steps.is_empty() && !queue.closed {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            queue = match left {
                Some(Duration::ZERO) => return Some(JournalBatch { steps: Vec::new(), last: queue.newest }),
                Some(left) => self.filled.wait_timeout(queue, left).expect("no holder of the lock panics").0,
                None => self.filled.wait(queue).expect("no holder of the lock panics"),
            };
        }
        let steps = std::mem::take(&mut queue.steps);
        (!steps.is_empty()).then_some(JournalBatch { steps, last: queue.newest })
    }

    /// Tries until it succeeds; false if the journal was closed before that.
    fn until_done(&self, mut work: impl FnMut() -> Result<(), StoreError>) -> bool {
        let mut pause = RETRY_FIRST;
        loop {
            self.queue().busy_since = Some(Instant::now());
            let done = work();
            self.queue().busy_since = None;
            let Err(error) = done else {
                if self.progress.send_if_modified(|progress| progress.fault.take().is_some()) {
                    tracing::info!("the data folder takes changes again");
                }
                return true;
            };
            let fault = error.fault();
            if self.progress.borrow().fault.as_ref() != Some(&fault) {
                tracing::error!(%fault, "what was changed can't be kept; writes are refused until it can");
            }
            self.progress.send_modify(|progress| progress.fault = Some(fault));
            let queue = self.queue();
            let waited = self.filled.wait_timeout_while(queue, pause, |queue| !queue.closed);
            if waited.expect("no holder of the lock panics").0.closed {
                tracing::error!("leaving, and the last changes are not kept");
                return false;
            }
            pause = (pause * 2).min(RETRY_MOST);
        }
    }

    fn tell(&self, steps: Vec<JournalStep>, last: Lsn, listeners: &ListenerSlot) {
        let bytes = steps.iter().flat_map(|step| &step.changes).map(RecordChange::bytes).sum::<usize>();
        self.queue().bytes -= bytes;
        if let Some(listeners) = listeners.get() {
            steps
                .into_iter()
                .flat_map(|step| step.announcements)
                .for_each(|announcement| announcement.send(listeners));
        }
        self.progress.send_modify(|progress| progress.durable = last);
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no holder of the lock panics")
    }
}

/// The last change of each key, which is all that is left of a batch.
fn merge(steps: &[JournalStep]) -> Changes {
    let mut changes = BTreeMap::new();
    for change in steps.iter().flat_map(|step| &step.changes) {
        changes.insert(change.key.clone(), change.value.clone());
    }
    changes
}

fn late() -> Fault {
    Fault::new(FaultKind::TimedOut, "the disk has not kept it in time")
}
