//! A watched hash on this replica: its mirror, and the snapshots that its watchers begin with.
//!
//! The mirror follows the hash's log like a subscriber. Where it can't go on without a gap it is dropped, and the hash is
//! read again. A read is at the same time a comparison with the mirror, which finds what other clients of the server have
//! changed; that becomes an entry of the log, so that all watchers on all replicas are told alike.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Mutex, MutexGuard, Notify, oneshot};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use super::LogClient;
use super::snapshot::{Snapshot, Snapshots};
use super::topic::{Following, LiveTopic};
use crate::broker::{BrokerError, Fault, FaultKind, OtherClients, ReadLimit, ReadRange};
use crate::cache::Lookup;
use crate::log::{LogView, Next};
use crate::mirror::{Comparison, HashRead, Mirror, StoredState};
use crate::names::{Bookmark, EventId, HashChange, HashName, MAX_NUMBER, WatchBase, digest};
use crate::timestamp;

/// Fields of one page of a read.
const PAGE_FIELDS: usize = 2000;
/// Bytes of names and values of the largest hash that can be watched.
const MAX_WATCHED_BYTES: usize = 16 * 1024 * 1024;
/// Fields of the largest hash that can be watched.
const MAX_WATCHED_FIELDS: usize = 100_000;
/// A hash that changes while it is read is read again, at most so many times in all, if it has one page. The state is
/// correct all the same, but for what other clients change meanwhile, which a later comparison finds.
const SMALL_READS: usize = 3;
/// Reads of a hash, each of which may find that the log no longer reaches back to its beginning.
const READ_ATTEMPTS: usize = 3;
/// A snapshot that is not older serves those who ask for one.
const SNAPSHOT_AGE: Duration = Duration::from_secs(1);
/// Shortest time between two comparisons of a hash that nobody asks for.
const COMPARE_EVERY: Duration = Duration::from_secs(5);
/// The same if the server tells of changes. It does not tell of those of all keys together.
const COMPARE_NOTIFIED_EVERY: Duration = Duration::from_mins(1);
/// How long the announcement of a gateway's step comes after the notifications of its changes, at most.
const HINT_DELAY: Duration = Duration::from_millis(100);
/// The time between two comparisons is at least this many times as long as the last one took, up to
/// [`MAX_COMPARE_PAUSE`].
const COMPARE_SHARE: u32 = 100;
/// The same for one that the server hints at.
const HINTED_SHARE: u32 = 20;
/// A comparison that took long on a slow machine does not put off the next one for longer.
const MAX_COMPARE_PAUSE: Duration = Duration::from_mins(1);
/// How long after a hash's expiry it is looked at.
const EXPIRY_DELAY: Duration = Duration::from_millis(50);
/// Bytes of values that are digested before other tasks of the thread get a turn.
const BYTES_BETWEEN_YIELDS: usize = 256 * 1024;

/// A watched hash.
pub(super) struct WatchedHash {
    hash: HashName,
    log: Arc<LogClient>,
    snapshots: Arc<Snapshots>,
    state: Mutex<MirrorState>,
    /// Streams that wait for a snapshot.
    waiting: std::sync::Mutex<Vec<Waiting>>,
    asked: Notify,
    /// The number of the mirror; 0 if there is none.
    mirror: AtomicU64,
    /// Notifications of changes that belong to no announcement that has come so far.
    unaccounted: AtomicU32,
    hinted: Notify,
}

/// A stream that waits for a snapshot at a position or a later one.
struct Waiting {
    at_least: EventId,
    reply: oneshot::Sender<Result<Arc<Snapshot>, BrokerError>>,
}

struct MirrorState {
    mirror: Option<Mirror>,
    /// How many of the log's retractions the mirror has handled.
    retractions: u64,
    /// The position at which the mirror began.
    start: Option<EventId>,
    snapshot: Weak<Snapshot>,
    /// When the hash is compared next, or looked at for a reason to compare it.
    due: Option<Instant>,
    /// When the next comparison is due that nothing hints at.
    compare_at: Option<Instant>,
    /// Hints cause no comparison before this time.
    hint_at: Instant,
}

impl MirrorState {
    fn new() -> Self {
        Self {
            mirror: None,
            retractions: 0,
            start: None,
            snapshot: Weak::new(),
            due: None,
            compare_at: None,
            hint_at: Instant::now(),
        }
    }

    /// Makes the hash be compared when it expires, if that is before the next comparison.
    fn schedule_expiry(&mut self) {
        let expires_at = self.mirror.as_ref().map_or(0, Mirror::expires_at);
        if expires_at > 0 {
            let left = Duration::from_millis(expires_at).saturating_sub(timestamp::since_1970());
            let expiry = Instant::now() + left.max(EXPIRY_DELAY) + EXPIRY_DELAY;
            let earlier = |at: Option<Instant>| Some(at.map_or(expiry, |at| at.min(expiry)));
            (self.compare_at, self.due) = (earlier(self.compare_at), earlier(self.due));
        }
    }
}

/// What a read has found.
struct ReadOutcome {
    /// The state, with the changes since.
    stored: StoredState,
    /// When the hash expires, in milliseconds since 1970; 0 if it does not.
    expires_at: u64,
    /// The changes since the mirror's position.
    since: ChangesSince,
    /// Whether the log has all changes since the mirror's position.
    reaches_mirror: bool,
    /// Whether the key has another type. To watchers, it is a hash without fields.
    is_other_type: bool,
}

/// A state of the hash that watchers can be given.
struct ReadState {
    fields: BTreeMap<Box<str>, Bytes>,
    position: EventId,
    is_other_type: bool,
}

/// The fields as they are stored.
struct ReadPages {
    fields: BTreeMap<Box<str>, Bytes>,
    count: usize,
    /// What the log has got meanwhile.
    since: ChangesSince,
    /// Whether the key has another type.
    is_other_type: bool,
}

/// The changes in the log from a position to its end.
struct ChangesSince {
    changes: Vec<(EventId, HashChange)>,
    bytes: usize,
    end: EventId,
}

impl ChangesSince {
    fn new(position: EventId) -> Self {
        Self { changes: Vec::new(), bytes: 0, end: position }
    }
}

impl WatchedHash {
    pub(super) fn new(hash: HashName, log: Arc<LogClient>, snapshots: Arc<Snapshots>) -> Self {
        Self {
            hash,
            log,
            snapshots,
            state: Mutex::new(MirrorState::new()),
            waiting: std::sync::Mutex::default(),
            asked: Notify::new(),
            mirror: AtomicU64::new(0),
            unaccounted: AtomicU32::new(0),
            hinted: Notify::new(),
        }
    }

    /// The number of the mirror; 0 if there is none now.
    pub(super) fn mirror(&self) -> u64 {
        self.mirror.load(Ordering::SeqCst)
    }

    /// The number that stands for the mirror and a selection of fields. None if there is no mirror now.
    pub(super) fn number(&self, selection: u64) -> Option<u64> {
        let mirror = self.mirror();
        (mirror != 0).then_some(mirror ^ selection)
    }

    /// Some client has changed the hash.
    pub(super) fn touched(&self) {
        if self.unaccounted.fetch_add(1, Ordering::SeqCst) == 0 {
            self.hinted.notify_one();
        }
    }

    /// So many of the changes belong to a gateway's step, whose announcement comes next.
    pub(super) fn accounted(&self, count: u32) {
        let _ = self.unaccounted.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |unaccounted| {
            Some(unaccounted.saturating_sub(count))
        });
    }

    /// Keeps the mirror true. Never ends.
    pub(super) async fn run(&self, topic: &LiveTopic) {
        let mut changes = topic.changes();
        loop {
            let due = self.state.lock().await.due;
            tokio::select! {
                // The topic owns the sender, so the channel can't close.
                _ = changes.changed() => self.catch_up(topic, &mut self.state.lock().await).await,
                () = self.asked.notified() => self.answer(topic).await,
                () = self.hinted.notified() => {
                    let mut state = self.state.lock().await;
                    let at = state.hint_at.max(Instant::now() + HINT_DELAY);
                    state.due = state.due.into_iter().chain([at]).min();
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.compare(topic).await,
            }
        }
    }

    /// Asks for a snapshot at this position or a later one. The read that it needs goes on when nobody waits any longer.
    pub(super) fn ask(&self, at_least: EventId) -> oneshot::Receiver<Result<Arc<Snapshot>, BrokerError>> {
        let (reply, answer) = oneshot::channel();
        self.waiting.lock().expect("no holder of the lock panics").push(Waiting { at_least, reply });
        self.asked.notify_one();
        answer
    }

    fn take_waiting(&self) -> Vec<Waiting> {
        std::mem::take(&mut *self.waiting.lock().expect("no holder of the lock panics"))
    }

    /// Answers all who wait for a snapshot, with one read.
    async fn answer(&self, topic: &LiveTopic) {
        let mut waiting = self.take_waiting();
        waiting.retain(|waiting| !waiting.reply.is_closed());
        let Some(at_least) = waiting.iter().map(|waiting| waiting.at_least).max() else { return };
        let snapshot = self.snapshot(topic, at_least).await;
        if snapshot.is_err() {
            // Those who have asked meanwhile would find the same.
            waiting.extend(self.take_waiting());
        }
        for Waiting { reply, .. } in waiting {
            // A stream that has ended needs no answer.
            let _ = reply.send(snapshot.clone());
        }
    }

    async fn snapshot(&self, topic: &LiveTopic, at_least: EventId) -> Result<Arc<Snapshot>, BrokerError> {
        let mut state = self.state.lock().await;
        self.catch_up(topic, &mut state).await;
        let is_usable = |snapshot: &Arc<Snapshot>| {
            snapshot.mirror == self.mirror() && snapshot.age() < SNAPSHOT_AGE && !snapshot.is_other_type
        };
        if let Some(snapshot) = state.snapshot.upgrade().filter(is_usable)
            // A client may have a position that the log never had. Then the log's end is the latest that there is.
            && (snapshot.position >= at_least || snapshot.position == self.log.end(&self.hash).await?)
        {
            return Ok(snapshot);
        }
        let began = Instant::now();
        let ReadState { fields, position, is_other_type } = self.read(topic, &mut state).await?;
        let snapshot = Snapshot::new(&self.hash, self.mirror(), position, &fields, is_other_type).await;
        let snapshot = self.snapshots.keep(snapshot);
        state.snapshot = Arc::downgrade(&snapshot);
        self.schedule(&mut state, began);
        Ok(snapshot)
    }

    /// The bookmark of a client that has these fields and no others, if that is the mirror's state.
    pub(super) async fn bookmark_of(&self, topic: &LiveTopic, fields: &[(String, Bytes)]) -> Option<Bookmark> {
        // A read of the hash would take a while.
        let mut state = self.state.try_lock().ok()?;
        self.catch_up(topic, &mut state).await;
        let mirror = state.mirror.as_ref()?;
        let digests = fields.iter().map(|(field, value)| (field.as_str().into(), digest(value))).collect();
        let base = Some(WatchBase::Mirror(self.mirror()));
        mirror.differing(&digests).is_empty().then(|| Bookmark { id: mirror.position(), base })
    }

    async fn compare(&self, topic: &LiveTopic) {
        let mut state = self.state.lock().await;
        let began = Instant::now();
        let is_due = state.compare_at.is_none_or(|at| at <= began);
        if self.unaccounted.swap(0, Ordering::SeqCst) == 0 && !is_due {
            // The changes were those of gateways.
            state.due = state.compare_at;
            return;
        }
        self.catch_up(topic, &mut state).await;
        let read = match state.mirror {
            Some(_) => self.read(topic, &mut state).await.map(drop),
            None => Ok(()),
        };
        self.schedule(&mut state, began);
        if let Err(error) = read {
            tracing::debug!(hash = %self.hash, %error, "a watched hash could not be compared; it will be tried again");
            // The hints for it would be lost otherwise.
            let retry_at = state.hint_at.max(topic.retry_at(&error));
            (state.compare_at, state.due) = (Some(retry_at), Some(retry_at));
        }
    }

    /// Sets the time of the next comparison, after one that began at this time.
    fn schedule(&self, state: &mut MirrorState, began: Instant) {
        let now = Instant::now();
        let pause = |share| ((now - began) * share).min(MAX_COMPARE_PAUSE);
        let every = match self.log.other_clients() {
            OtherClients::None => None,
            OtherClients::Notified => Some(COMPARE_NOTIFIED_EVERY),
            OtherClients::Unnoticed => Some(COMPARE_EVERY),
        };
        let jitter = fastrand::f64().mul_add(0.2, 1.0);
        let next = every.map(|every| now + every.max(pause(COMPARE_SHARE)).mul_f64(jitter));
        state.hint_at = now + pause(HINTED_SHARE);
        (state.compare_at, state.due) = (next, next);
        state.schedule_expiry();
    }

    /// Brings the mirror to the end of the log, as far as this replica has the log. Drops it if that leaves a gap.
    async fn catch_up(&self, topic: &LiveTopic, state: &mut MutexGuard<'_, MirrorState>) {
        let MirrorState { mirror: Some(mirror), retractions, start, .. } = &mut **state else { return };
        let start = start.unwrap_or(mirror.position());
        let expires_at = mirror.expires_at();
        let retracted = topic.retracted_since(retractions, start).filter(|id| *id <= mirror.position());
        let mut is_lost = retracted.is_some();
        while !is_lost {
            let events = match topic.after(mirror.position(), None) {
                Lookup::Events(events) => events,
                Lookup::Nothing => break,
                Lookup::Unknown => match topic.read_log(mirror.position(), None, LogView::All).await {
                    Ok((Following::Events(events), _)) => events,
                    Ok((Following::NothingUpTo(position), _)) => {
                        mirror.advance_to(position);
                        break;
                    }
                    Ok((Following::Gap(_), _)) => {
                        is_lost = true;
                        break;
                    }
                    // The next change or comparison tries again.
                    Err(_) => break,
                },
            };
            for event in events {
                match event.effect() {
                    Some(effect) => mirror.apply(event.id(), effect),
                    None => mirror.advance_to(event.id()),
                }
            }
        }
        let has_new_expiry = mirror.expires_at() != expires_at;
        if is_lost {
            self.drop_mirror(topic, state);
        } else if has_new_expiry {
            // Each write may move the expiry. The next comparison is not put off by that.
            state.schedule_expiry();
        }
    }

    fn drop_mirror(&self, topic: &LiveTopic, state: &mut MirrorState) {
        state.mirror = None;
        state.snapshot = Weak::new();
        self.mirror.store(0, Ordering::SeqCst);
        topic.wake();
    }

    /// Reads the hash, and appends to its log what others have changed. Makes a mirror if there is none. Returns the state,
    /// and the position up to which it has the changes.
    async fn read(
        &self,
        topic: &LiveTopic,
        state: &mut MutexGuard<'_, MirrorState>,
    ) -> Result<ReadState, BrokerError> {
        let read = self.read_stored(state.mirror.as_ref().map(Mirror::position)).await;
        if matches!(read, Err(BrokerError::TooLargeToWatch)) {
            // Its streams ask for a snapshot, and end.
            self.drop_mirror(topic, state);
        }
        let ReadOutcome { stored, expires_at, since, reaches_mirror, is_other_type } = read?;
        let ChangesSince { changes, end, .. } = since;
        if state.mirror.is_some() && !reaches_mirror {
            self.drop_mirror(topic, state);
        }
        let Some(mirror) = &mut state.mirror else {
            state.mirror = Some(Mirror::new(end, stored.digests, expires_at));
            state.start = Some(end);
            state.retractions = topic.retractions();
            // Other mirrors have other numbers, and 0 is none.
            self.mirror.store(fastrand::u64(1..MAX_NUMBER), Ordering::SeqCst);
            topic.wake();
            return Ok(ReadState { fields: stored.fields, position: end, is_other_type });
        };
        if changes.is_empty() {
            mirror.set_expiry(expires_at);
        }
        let mut comparison = Comparison::new(mirror, stored, &changes, end);
        while let Some((end, fields)) = comparison.to_append() {
            if let Some(count) = self.log.append_external(&self.hash, end, fields).await? {
                comparison.appended(count);
                continue;
            }
            let Some(ChangesSince { changes, end, .. }) = self.changes_after(comparison.position()).await? else {
                return Err(changes_too_fast());
            };
            if !comparison.catch_up(mirror, &changes, end) {
                return Err(changes_too_fast());
            }
        }
        let position = comparison.position();
        Ok(ReadState { fields: comparison.into_stored().fields, position, is_other_type })
    }

    /// Reads the whole hash as it is stored, and its log from this position on, if one is given.
    async fn read_stored(&self, mirror_position: Option<EventId>) -> Result<ReadOutcome, BrokerError> {
        for _ in 0..READ_ATTEMPTS {
            for small_read in 1..=SMALL_READS {
                let mut read = HashRead::new(self.log.end(&self.hash).await?, mirror_position);
                let Some(ReadPages { fields, count, since, is_other_type }) = self.read_pages(&mut read).await?
                else {
                    break;
                };
                let expires_at = self.log.hash_expiry(&self.hash).await?;
                if count == 1 && !read.is_unchanged(&since.changes) && small_read < SMALL_READS {
                    continue;
                }
                let mut stored = StoredState::new(fields);
                digest_all(&mut stored).await;
                let reaches_mirror = read.finish(&mut stored, &since.changes, since.end);
                return Ok(ReadOutcome { stored, expires_at, since, reaches_mirror, is_other_type });
            }
        }
        Err(changes_too_fast())
    }

    /// Reads all fields. None if the log no longer reaches back to the beginning of the read.
    async fn read_pages(&self, read: &mut HashRead) -> Result<Option<ReadPages>, BrokerError> {
        let (mut fields, mut bytes, mut count, mut next) = (BTreeMap::new(), 0, 0, None);
        let mut since = ChangesSince::new(read.log_from());
        loop {
            let page = match self.log.hash_page(&self.hash, next.as_deref(), PAGE_FIELDS).await {
                Err(BrokerError::WrongType) => None,
                page => Some(page?),
            };
            count += 1;
            // After each page, so that the log does not lose the changes before they are read.
            while !self.add_changes(&mut since).await? {
                if !read.give_up_mirror() {
                    return Ok(None);
                }
                since = ChangesSince::new(read.log_from());
            }
            let Some(page) = page else {
                return Ok(Some(ReadPages { fields: BTreeMap::new(), count: 1, since, is_other_type: true }));
            };
            bytes += page.bytes();
            fields.extend(page.fields.into_iter().map(|(field, value)| (field.into_boxed_str(), value)));
            if bytes > MAX_WATCHED_BYTES || fields.len() > MAX_WATCHED_FIELDS {
                return Err(BrokerError::TooLargeToWatch);
            }
            if since.bytes > MAX_WATCHED_BYTES {
                return Err(changes_too_fast());
            }
            next = page.next;
            if next.is_none() {
                return Ok(Some(ReadPages { fields, count, since, is_other_type: false }));
            }
        }
    }

    /// The changes after a position. None if there is a gap between.
    async fn changes_after(&self, position: EventId) -> Result<Option<ChangesSince>, BrokerError> {
        let mut since = ChangesSince::new(position);
        Ok(self.add_changes(&mut since).await?.then_some(since))
    }

    /// Adds the changes up to the end of the log. Returns false if there is a gap between.
    async fn add_changes(&self, since: &mut ChangesSince) -> Result<bool, BrokerError> {
        let topic = self.hash.clone().into();
        loop {
            let limit = ReadLimit { entries: 100, bytes: BYTES_BETWEEN_YIELDS };
            let slice = self.log.read(&topic, ReadRange::After(since.end), LogView::All, limit).await?;
            for entry in &slice.entries {
                if slice.history.next_after(since.end, &slice, None) != Next::Event(entry.id) {
                    return Ok(false);
                }
                since.end = entry.id;
                since.bytes += entry.stored.len();
                // An entry that can't be read may have changed any field.
                let Ok(change) = HashChange::decode(&entry.stored) else { return Ok(false) };
                since.changes.push((entry.id, change));
            }
            if slice.is_end {
                let has_all = matches!(slice.history.next_after(since.end, &slice, None), Next::Nothing);
                since.end = slice.history.end();
                return Ok(has_all);
            }
        }
    }
}

async fn digest_all(stored: &mut StoredState) {
    let mut bytes = 0;
    for (field, value) in &stored.fields {
        stored.digests.insert(field.clone(), digest(value));
        bytes += value.len();
        if bytes >= BYTES_BETWEEN_YIELDS {
            bytes = 0;
            yield_now().await;
        }
    }
}

fn changes_too_fast() -> BrokerError {
    let detail = "a watched hash changes faster than it can be read";
    BrokerError::Unavailable(Fault::new(FaultKind::Failed, detail))
}
