//! The journal of a data folder: the order in which changes become durable, and when clients may learn of them.
//!
//! A step that changes the memory pushes its changes under the memory's lock, and gets an LSN (log sequence number).
//! One thread takes all steps that wait, commits their changes as one batch, sends their announcements, and then
//! publishes up to which LSN everything is durable. Until then, no client learns of a change.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::DataFolder;
use super::announcement::{Announcement, ListenerSlot};
use super::record::RecordChange;
use super::state::{HashFields, OVERHEAD_BYTES};
use super::store::{ChangeSet, Store, StoreError};
use crate::broker::{BrokerError, Fault, FaultKind};
use crate::names::HashName;
use crate::shutdown::Tasks;

/// The size of the changes that may wait for the disk. Beyond it, writes are refused.
const MAX_WAITING_BYTES: usize = 64 << 20;
/// How long a call waits until its change is durable. Shorter than `CALL_LIMIT`, so that the answer can say what is
/// wrong.
const DURABLE_TIMEOUT: Duration = Duration::from_secs(4);
/// A disk that takes longer than this for one commit is reported as failing.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(3);
/// The pause before a failed commit is tried again. It doubles with each attempt, up to the longest pause.
const FIRST_RETRY_PAUSE: Duration = Duration::from_millis(100);
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(1);
/// With `everysec`, the time between two flushes to the disk, which is what a power cut can cost.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// When changes are flushed to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SyncPolicy {
    /// Before a client learns of the change.
    Always,
    /// Once a second. Before a client learns of the change, it is with the operating system.
    Everysec,
}

/// A log sequence number: a position in the order of changes.
pub(super) type Lsn = u64;

/// What has to be durable before a client learns the outcome of a step.
#[derive(Clone, Copy)]
pub(super) enum DurableAt {
    /// A change that the step itself has made.
    Own(Lsn),
    /// An earlier change, which the step has read.
    Earlier(Lsn),
}

impl DurableAt {
    /// For a step that has changed something as `own`, if it has, or else read what was changed `last`. Updates `last`.
    pub(super) fn new(own: Option<Lsn>, last: &mut Lsn) -> Self {
        *last = own.unwrap_or(*last);
        own.map_or(Self::Earlier(*last), Self::Own)
    }
}

/// What one step has changed, and has to announce.
pub(super) struct JournalEntry {
    pub(super) changes: Vec<RecordChange>,
    /// A step that removes a hash changes no fields beside it.
    pub(super) removed_hash: Option<RemovedHash>,
    pub(super) announcements: Vec<Announcement>,
}

/// A hash that was removed, with the fields that it had.
pub(super) struct RemovedHash {
    pub(super) hash: HashName,
    pub(super) fields: Arc<HashFields>,
}

impl JournalEntry {
    /// Whether the step has changed nothing.
    pub(super) fn is_unchanged(&self) -> bool {
        self.changes.is_empty() && self.removed_hash.is_none()
    }

    /// The memory that the changes use until they are durable.
    fn bytes(&self) -> usize {
        let fields = self.removed_hash.as_ref().map_or(0, |removed| removed.fields.len());
        self.changes.iter().map(RecordChange::bytes).sum::<usize>() + fields * OVERHEAD_BYTES
    }

    /// The changes by key; of one key, the last.
    pub(super) fn add_to(&self, changes: &mut ChangeSet) {
        for change in &self.changes {
            changes.insert(change.key.clone(), change.value.clone());
        }
        if let Some(RemovedHash { hash, fields }) = &self.removed_hash {
            for field in fields.keys() {
                let RecordChange { key, value } = RecordChange::field(hash, field, None);
                changes.insert(key, value);
            }
        }
    }
}

/// Takes the changes of steps, and says when they are durable.
pub(super) struct Journal {
    queue: Mutex<Queue>,
    /// Signals the thread that the queue has a step, or is closed.
    wake: Condvar,
    progress: watch::Sender<Progress>,
}

#[derive(Default)]
struct Queue {
    entries: Vec<JournalEntry>,
    /// The size of the steps that wait and of those that are being committed.
    bytes: usize,
    newest: Lsn,
    /// When the present commit began.
    committing_since: Option<Instant>,
    is_closed: bool,
}

#[derive(Clone, Default)]
struct Progress {
    durable: Lsn,
    fault: Option<Fault>,
}

/// All steps that waited, and the LSN of the last one.
struct JournalBatch {
    entries: Vec<JournalEntry>,
    last: Lsn,
}

/// Starts the journal's thread. It opens the folder, loads it with `load`, and then writes until the gateway stops.
pub(super) async fn open<T: Send + 'static>(
    folder: DataFolder,
    listeners: ListenerSlot,
    tasks: &Tasks,
    load: impl FnOnce(&mut Store) -> Result<T, StoreError> + Send + 'static,
) -> Result<(Arc<Journal>, T), StoreError> {
    let progress = watch::channel(Progress::default()).0;
    let journal = Arc::new(Journal { queue: Mutex::default(), wake: Condvar::new(), progress });
    let (opened, answer) = oneshot::channel();
    let (ending, mut ended) = oneshot::channel::<()>();
    let writer = journal.clone();
    let run = move || {
        // Dropped at the end of the thread, also if it panics.
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
    // The store's library panics at some kinds of damage.
    let loaded =
        answer.await.unwrap_or_else(|_| Err(StoreError::Damaged("it could not be read to its end".into())))?;
    let close_on_drop = CloseOnDrop(journal.clone());
    tasks.supervise_to_end("journal", async |stop| {
        tokio::select! {
            _ = &mut ended => return,
            () = stop.cancelled() => {}
        }
        drop(close_on_drop);
        let _ = ended.await;
    });
    Ok((journal, loaded))
}

/// Closes the journal when its task ends, for whatever reason.
struct CloseOnDrop(Arc<Journal>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Journal {
    /// Why nothing may be changed now.
    pub(super) fn refusal(&self) -> Option<Fault> {
        let queue = self.queue();
        let closed = || Fault::new(FaultKind::Failed, "the gateway is stopping, and the data folder is closed");
        let full = || {
            let detail = format!("more than {MAX_WAITING_BYTES} bytes of changes wait for the disk");
            Fault::new(FaultKind::Busy, detail)
        };
        let fault = self.fault(&queue).or_else(|| queue.is_closed.then(closed));
        fault.or_else(|| (queue.bytes > MAX_WAITING_BYTES).then(full))
    }

    /// What is wrong with the disk.
    pub(super) fn health(&self) -> Option<Fault> {
        self.fault(&self.queue())
    }

    fn fault(&self, queue: &Queue) -> Option<Fault> {
        let is_slow = queue.committing_since.is_some_and(|since| since.elapsed() > COMMIT_TIMEOUT);
        let slow = || {
            let detail = format!("a write to the data folder takes longer than {COMMIT_TIMEOUT:?}");
            Fault::new(FaultKind::TimedOut, detail)
        };
        self.progress.borrow().fault.clone().or_else(|| is_slow.then(slow))
    }

    /// Adds a step. Called under the memory's lock, so that the journal has the order in which the memory was changed.
    pub(super) fn push(&self, entry: JournalEntry) -> Lsn {
        let mut queue = self.queue();
        queue.bytes += entry.bytes();
        queue.newest += 1;
        queue.entries.push(entry);
        self.wake.notify_one();
        queue.newest
    }

    /// Waits until a change of the caller's own is durable.
    pub(super) async fn wait_write(&self, lsn: Lsn) -> Result<(), BrokerError> {
        let durable = async |progress: &mut watch::Receiver<Progress>| {
            progress.wait_for(|progress| progress.durable >= lsn).await.is_ok()
        };
        match timeout(DURABLE_TIMEOUT, durable(&mut self.progress.subscribe())).await {
            Ok(true) => Ok(()),
            _ => Err(BrokerError::OutcomeUnknown(self.health().unwrap_or_else(not_durable))),
        }
    }

    /// Waits until a change that the caller has read is durable. Does not wait for a disk that fails.
    pub(super) async fn wait_read(&self, lsn: Lsn) -> Result<(), BrokerError> {
        if self.progress.borrow().durable >= lsn {
            return Ok(());
        }
        let mut progress = self.progress.subscribe();
        let is_decided = progress.wait_for(|progress| progress.durable >= lsn || progress.fault.is_some());
        let fault = match timeout(DURABLE_TIMEOUT, is_decided).await {
            Ok(Ok(progress)) if progress.durable >= lsn => return Ok(()),
            Ok(Ok(progress)) => progress.fault.clone(),
            _ => None,
        };
        Err(BrokerError::Unavailable(fault.or_else(|| self.health()).unwrap_or_else(not_durable)))
    }

    /// Lets the thread commit what still waits, and end.
    fn close(&self) {
        self.queue().is_closed = true;
        self.wake.notify_all();
    }

    /// Commits steps and sends their announcements, until the journal is closed.
    fn write(&self, store: &mut Store, policy: SyncPolicy, listeners: &ListenerSlot) {
        let mut unsynced_since: Option<Instant> = None;
        loop {
            let batch = self.next_batch(unsynced_since.map(|since| since + SYNC_EVERY));
            let is_closing = batch.is_none();
            if let Some(JournalBatch { entries, last }) = batch.filter(|batch| !batch.entries.is_empty()) {
                let changes = merge(&entries);
                let sync = policy == SyncPolicy::Always;
                if !self.retry(|| store.commit(&changes, sync)) {
                    return;
                }
                if !sync {
                    unsynced_since.get_or_insert_with(Instant::now);
                }
                self.complete(entries, last, listeners);
            }
            let is_due = unsynced_since.is_some_and(|since| is_closing || since.elapsed() >= SYNC_EVERY);
            if is_due && !self.retry(|| store.sync()) {
                return;
            }
            if is_due {
                unsynced_since = None;
            }
            if is_closing {
                return;
            }
        }
    }

    /// Waits for steps. Returns an empty batch at the deadline, and none once the journal is closed and empty.
    fn next_batch(&self, deadline: Option<Instant>) -> Option<JournalBatch> {
        let mut queue = self.queue();
        while queue.entries.is_empty() && !queue.is_closed {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            queue = match left {
                Some(Duration::ZERO) => return Some(JournalBatch { entries: Vec::new(), last: queue.newest }),
                Some(left) => self.wake.wait_timeout(queue, left).expect("no holder of the lock panics").0,
                None => self.wake.wait(queue).expect("no holder of the lock panics"),
            };
        }
        let entries = std::mem::take(&mut queue.entries);
        (!entries.is_empty()).then_some(JournalBatch { entries, last: queue.newest })
    }

    /// Repeats `work` until it succeeds. Returns false if the journal was closed before that.
    fn retry(&self, mut work: impl FnMut() -> Result<(), StoreError>) -> bool {
        let mut pause = FIRST_RETRY_PAUSE;
        loop {
            self.queue().committing_since = Some(Instant::now());
            let result = work();
            self.queue().committing_since = None;
            let Err(error) = result else {
                if self.progress.send_if_modified(|progress| progress.fault.take().is_some()) {
                    tracing::info!("the data folder can be written again");
                }
                return true;
            };
            let fault = error.fault();
            if self.progress.borrow().fault.as_ref() != Some(&fault) {
                tracing::error!(%fault, "the data folder can't be written; writes are refused until it can");
            }
            self.progress.send_modify(|progress| progress.fault = Some(fault));
            let queue = self.queue();
            let waited = self.wake.wait_timeout_while(queue, pause, |queue| !queue.is_closed);
            if waited.expect("no holder of the lock panics").0.is_closed {
                tracing::error!("the gateway stops, and its last changes could not be written to the data folder");
                return false;
            }
            pause = (pause * 2).min(MAX_RETRY_PAUSE);
        }
    }

    /// Sends the announcements of a batch that is durable, and releases the calls that wait for it.
    fn complete(&self, entries: Vec<JournalEntry>, last: Lsn, listeners: &ListenerSlot) {
        let bytes = entries.iter().map(JournalEntry::bytes).sum::<usize>();
        self.queue().bytes -= bytes;
        if let Some(listeners) = listeners.get() {
            entries
                .into_iter()
                .flat_map(|entry| entry.announcements)
                .for_each(|announcement| announcement.send(listeners));
        }
        self.progress.send_modify(|progress| progress.durable = last);
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no holder of the lock panics")
    }
}

/// The last change of each key in a batch. Earlier ones need not be written.
fn merge(entries: &[JournalEntry]) -> ChangeSet {
    let mut changes = ChangeSet::new();
    for entry in entries {
        entry.add_to(&mut changes);
    }
    changes
}

fn not_durable() -> Fault {
    Fault::new(FaultKind::TimedOut, format!("the data folder did not store the change within {DURABLE_TIMEOUT:?}"))
}
