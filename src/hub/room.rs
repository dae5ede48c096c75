//! A room that has subscribers on this replica: its copy of the chain, its ring, and the task that keeps them true.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

use super::mirror::{Followed, Mirror, Taken};
use super::ring::{Limits, Ring};
use super::{Encoded, Hub, HubSettings};
use crate::broker::{BrokerError, Range};
use crate::follow::{Chain, Gap, Next, Settled};
use crate::room::{EventId, RoomName};

/// Most bytes that a subscriber is given at one time: a write's worth.
pub(super) const BATCH_BYTES: usize = 64 * 1024;
/// Most events fetched in one read.
const PAGE_EVENTS: u16 = 100;
/// Events in a reader's first page from the log. Later pages are as many as make up a few batches, whatever the events'
/// size, so that slow readers of large events cost little memory.
pub(super) const FIRST_PAGE_EVENTS: u16 = 8;
/// Bytes that a page should have.
const PAGE_BYTES: usize = 4 * BATCH_BYTES;
/// Pause before a subscriber asks the log again after it could not answer; jittered up to twice as long.
const ASK_AGAIN: Duration = Duration::from_millis(500);
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(1);

/// What the log said.
pub(super) enum Found {
    Events(Vec<Arc<Encoded>>),
    Gap(Gap),
    Nothing,
}

pub(super) struct Room {
    name: RoomName,
    linger: Duration,
    read_events: usize,
    mirror: Mutex<Mirror<Arc<Encoded>>>,
    /// Counts changes of the copy; 0 until it has been read first.
    changes: watch::Sender<u64>,
    doubt: Notify,
    /// The copy's, so that who looks each time needs no lock.
    recalls: AtomicU64,
    occupants: AtomicU64,
    vacated: Notify,
    /// What keeps the room from being read, if time alone will not mend it.
    refusal: watch::Sender<Option<BrokerError>>,
}

impl Room {
    pub(super) fn new(name: RoomName, settings: &HubSettings) -> Self {
        let limits = Limits { events: settings.ring_events.max(1), bytes: settings.ring_bytes };
        Self {
            name,
            linger: settings.linger,
            read_events: limits.events.min(PAGE_EVENTS.into()),
            mirror: Mutex::new(Mirror::new(limits)),
            changes: watch::channel(0).0,
            doubt: Notify::new(),
            recalls: AtomicU64::new(0),
            occupants: AtomicU64::new(0),
            vacated: Notify::new(),
            refusal: watch::channel(None).0,
        }
    }

    pub(super) fn name(&self) -> &RoomName {
        &self.name
    }

    pub(super) fn occupants(&self) -> u64 {
        self.occupants.load(Ordering::SeqCst)
    }

    /// Wakes with every change. The value is 0 until the room can be read.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Has the log read again.
    pub(super) fn doubt(&self) {
        self.doubt.notify_one();
    }

    /// Resolves if the room can't be read and time alone will not mend that.
    pub(super) async fn refusal(&self) -> BrokerError {
        let mut refusal = self.refusal.subscribe();
        match refusal.wait_for(Option::is_some).await.map(|refusal| refusal.clone()) {
            Ok(Some(error)) => error,
            // The sender is the room's own, so neither can be.
            _ => std::future::pending().await,
        }
    }

    /// Where the room's log ends, as far as this replica has read.
    pub(super) fn end(&self) -> Option<EventId> {
        self.mirror().end()
    }

    /// Whether this is the log's history as far as this replica has read.
    pub(super) fn is_of(&self, chain: &Chain) -> bool {
        self.mirror().chain() == Some(chain)
    }

    /// The log was emptied.
    pub(super) fn cleared(&self, position: EventId) {
        self.mirror().empty(position);
        self.doubt();
    }

    /// What follows a position, as far as this replica's copy of the log can say.
    pub(super) fn follow(&self, position: EventId, settled: Option<Settled>) -> Followed<Arc<Encoded>> {
        self.mirror().follow(position, settled, BATCH_BYTES)
    }

    /// What follows a position, from a fresh read of about `page` events: the only way in which a gap is told, but for
    /// recalls.
    pub(super) async fn ask_log(
        &self,
        hub: &Hub,
        position: EventId,
        settled: Option<Settled>,
        page: &mut u16,
    ) -> Result<Found, BrokerError> {
        let slice = hub.read(&self.name, Range::After(position), (*page).into()).await?;
        if !self.is_of(&slice.chain) {
            self.doubt();
        }
        let bytes: usize = slice.entries.iter().map(|entry| entry.stored.len()).sum();
        if let Some(mean) = bytes.checked_div(slice.entries.len()) {
            *page = u16::try_from(PAGE_BYTES / mean.max(1)).unwrap_or(PAGE_EVENTS).clamp(1, PAGE_EVENTS);
        }
        let read = Ring::of(Encoded::all(&slice.entries));
        Ok(match read.follow(&slice.chain, position, settled, BATCH_BYTES) {
            Ok(events) => Found::Events(events),
            Err(Next::Gap(gap)) => Found::Gap(gap),
            Err(Next::Nothing | Next::Event(_)) => Found::Nothing,
        })
    }

    /// When to ask again after the log could not answer.
    pub(super) fn ask_again_at(&self, error: &BrokerError) -> Instant {
        tracing::debug!(room = %self.name, %error, "the log can't be asked");
        Instant::now() + ASK_AGAIN.mul_f64(1.0 + fastrand::f64())
    }

    /// How many ids were recalled so far.
    pub(super) fn recalls(&self) -> u64 {
        self.recalls.load(Ordering::SeqCst)
    }

    /// The lowest id above a position that was recalled since there were so many; counts on.
    pub(super) fn recalled_since(&self, seen: &mut u64, position: EventId) -> Option<EventId> {
        if *seen == self.recalls() {
            return None;
        }
        let mirror = self.mirror();
        let before = std::mem::replace(seen, mirror.recalls());
        mirror.recalled_after(before, position)
    }

    /// An announcement.
    pub(super) fn heard(&self, event: Arc<Encoded>) -> Taken {
        let taken = self.mirror().hear(event);
        match taken {
            Taken::Added => self.wake(),
            Taken::Held | Taken::Waiting => {}
            Taken::Unexpected | Taken::Conflicting => self.doubt(),
        }
        taken
    }

    /// Keeps the room subscribed and read until it has been empty for a while. Owns its place in the hub.
    pub(super) async fn tend(room: Arc<Self>, hub: Arc<Hub>) {
        loop {
            tokio::select! {
                () = hub.broker().subscribe(&room.name) => break,
                () = room.deserted() => if hub.close(&room) { return },
            }
        }
        loop {
            tokio::select! {
                () = room.read_until_done(&hub) => {}
                () = room.deserted() => if hub.close(&room) { return } else { continue },
            }
            let foreign = hub.known.foreign_wait(&room.name);
            tokio::select! {
                () = room.doubt.notified() => {}
                () = sleep(foreign.unwrap_or_default()), if foreign.is_some() => {}
                () = room.deserted() => if hub.close(&room) { return },
            }
        }
    }

    /// Resolves when nobody has been in the room for the linger time.
    async fn deserted(&self) {
        loop {
            while self.occupants() > 0 {
                self.vacated.notified().await;
            }
            sleep(self.linger).await;
            if self.occupants() == 0 {
                return;
            }
        }
    }

    async fn read_until_done(&self, hub: &Hub) {
        let schedule = ExponentialBuilder::new()
            .with_min_delay(RETRY_FIRST)
            .with_max_delay(RETRY_MOST)
            .without_max_times()
            .with_jitter();
        let mut delays = schedule.build();
        while let Err(error) = self.read(hub).await {
            self.refusal.send_replace(matches!(error, BrokerError::WrongType).then(|| error.clone()));
            tracing::debug!(room = %self.name, %error, "the room's log can't be read; trying again");
            sleep(delays.next().unwrap_or(RETRY_MOST)).await;
        }
        self.refusal.send_replace(None);
    }

    /// Reads forward from the ring's last event, or the newest events where there is none to go on from.
    async fn read(&self, hub: &Hub) -> Result<(), BrokerError> {
        /// Announcements wait until the read is done, however it ends.
        struct Reading<'a>(&'a Room);
        impl Drop for Reading<'_> {
            fn drop(&mut self) {
                let mut mirror = self.0.mirror();
                let (again, is_read) = (mirror.give_up_read(), mirror.end().is_some());
                drop(mirror);
                if again {
                    self.0.doubt();
                }
                if is_read {
                    self.0.wake();
                }
            }
        }
        let from = {
            let mut mirror = self.mirror();
            mirror.begin_read();
            mirror.read_from()
        };
        let page = self.read_events;
        let reading = Reading(self);
        let range = from.map_or(Range::Newest, Range::After);
        let mut slice = hub.read(&self.name, range, page).await?;
        let mut events = Encoded::all(&slice.entries);
        self.compare(&slice.chain, &events);
        if from.is_some() && events.last().is_some_and(|event| event.id() != slice.chain.end()) {
            slice = hub.read(&self.name, Range::Newest, page).await?;
            events = Encoded::all(&slice.entries);
        }
        if self.mirror().end_read(&slice.chain, events) {
            self.doubt();
        }
        drop(reading);
        Ok(())
    }

    fn compare(&self, chain: &Chain, events: &[Arc<Encoded>]) {
        let mut mirror = self.mirror();
        let before = mirror.recalls();
        mirror.compare(chain, events);
        if mirror.recalls() > before {
            self.recalls.store(mirror.recalls(), Ordering::SeqCst);
            tracing::warn!(room = %self.name, "an announced event was not the log's: its subscribers are told of a gap");
        }
    }

    fn wake(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn mirror(&self) -> MutexGuard<'_, Mirror<Arc<Encoded>>> {
        self.mirror.lock().expect("no holder of the lock panics")
    }
}

/// A subscriber's place in a room; leaves it when dropped.
pub(super) struct Seat(Arc<Room>);

impl Seat {
    /// Under the lock of the hub's rooms, so that the room is not let go meanwhile.
    pub(super) fn take(room: &Arc<Room>) -> Self {
        room.occupants.fetch_add(1, Ordering::SeqCst);
        Self(room.clone())
    }

    pub(super) fn room(&self) -> &Arc<Room> {
        &self.0
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.0.occupants.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.vacated.notify_one();
        }
    }
}
