//! A room that has subscribers on this replica: its copy of the chain, its ring, and the task that keeps them true.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use super::ring::Ring;
use super::{Encoded, Hub, HubSettings};
use crate::broker::{BrokerError, Range, Slice};
use crate::follow::{Chain, Next, next};
use crate::room::{EventId, RoomName};

/// Most bytes that a subscriber is given at one time: a write's worth.
pub(super) const BATCH_BYTES: usize = 64 * 1024;
/// Most events fetched for the ring in one read.
const PAGE_EVENTS: usize = 100;
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(1);

pub(super) struct Room {
    name: RoomName,
    linger: Duration,
    state: Mutex<State>,
    /// Counts changes of the state; 0 until it has been read first.
    changes: watch::Sender<u64>,
    doubt: Notify,
    occupants: AtomicU64,
    vacated: Notify,
    /// What keeps the room from being read, if time alone will not mend it.
    refusal: watch::Sender<Option<BrokerError>>,
}

struct State {
    /// The copy of the log's chain; none before the first read.
    chain: Option<Chain>,
    ring: Ring,
    /// What is announced while the log is being read, to be taken after it.
    reading: Option<VecDeque<Arc<Encoded>>>,
    limit: usize,
}

/// What follows a position as far as the ring can say. It never says that there is a gap.
pub(super) enum Followed {
    Events(Vec<Arc<Encoded>>),
    Nothing,
    /// Only the log can tell.
    Unsure,
}

impl Room {
    pub(super) fn new(name: RoomName, settings: HubSettings) -> Self {
        let limit = settings.ring_events.max(1);
        Self {
            name,
            linger: settings.linger,
            state: Mutex::new(State { chain: None, ring: Ring::new(settings), reading: None, limit }),
            changes: watch::channel(0).0,
            doubt: Notify::new(),
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
        self.state().chain.as_ref().map(Chain::end)
    }

    pub(super) fn is_at(&self, end: EventId) -> bool {
        self.end() == Some(end)
    }

    /// What follows a position, from the ring. An event and nothing stand; anything else is for the log to say.
    pub(super) fn follow(&self, mut position: EventId) -> Followed {
        let state = self.state();
        let Some(chain) = &state.chain else { return Followed::Unsure };
        let (mut events, mut bytes) = (Vec::new(), 0);
        loop {
            match next(chain, &state.ring, position) {
                Next::Event(id) if bytes < BATCH_BYTES => {
                    let Some(event) = state.ring.event(id) else { return Followed::Unsure };
                    bytes += event.block().len();
                    events.push(event.clone());
                    position = id;
                }
                _ if !events.is_empty() => return Followed::Events(events),
                Next::Nothing => return Followed::Nothing,
                Next::Event(_) | Next::Gap(_) => return Followed::Unsure,
            }
        }
    }

    /// An announcement.
    pub(super) fn heard(&self, event: Arc<Encoded>) -> Taken {
        let mut state = self.state();
        let limit = state.limit;
        if let Some(waiting) = &mut state.reading {
            // Beyond the limit it may be forgotten: what follows will not be the next one, and be read.
            if waiting.len() < limit {
                waiting.push_back(event);
            }
            return Taken::Waiting;
        }
        let taken = state.take(event);
        drop(state);
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
                self.0.end_reading();
            }
        }
        let (last, page) = {
            let mut state = self.state();
            state.reading = Some(VecDeque::new());
            (state.ring.last(), state.limit.min(PAGE_EVENTS))
        };
        let reading = Reading(self);
        let mut slice = match last {
            Some(last) => hub.read(&self.name, Range::After(last), page).await?,
            None => hub.read(&self.name, Range::Newest, page).await?,
        };
        if last.is_some() && slice.entries.last().is_some_and(|entry| entry.id != slice.chain.end()) {
            slice = hub.read(&self.name, Range::Newest, page).await?;
        }
        self.state().adopt(&slice);
        drop(reading);
        self.wake();
        Ok(())
    }

    fn end_reading(&self) {
        let mut state = self.state();
        let waiting = state.reading.take().unwrap_or_default();
        if state.chain.is_none() {
            return;
        }
        for event in waiting {
            if matches!(state.take(event), Taken::Unexpected | Taken::Conflicting) {
                self.doubt();
            }
        }
    }

    fn wake(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the lock panics")
    }
}

/// What became of an announcement.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// It was the next one.
    Added,
    /// The room had it.
    Held,
    /// The log is being read; it is taken after that.
    Waiting,
    /// It was not the next one.
    Unexpected,
    /// The ring held another event of this id.
    Conflicting,
}

impl State {
    /// Takes an announcement unread only if it is the next offset of the newest epoch that has been read.
    fn take(&mut self, event: Arc<Encoded>) -> Taken {
        let Some(chain) = &mut self.chain else { return Taken::Held };
        if chain.holds(event.id()) {
            let same = self.ring.event(event.id()).is_none_or(|held| held.event() == event.event());
            if same {
                return Taken::Held;
            }
            // Two different events must never pass for one because they share an id: the log decides, for all of them.
            self.ring.clear();
            return Taken::Conflicting;
        }
        if event.id() != chain.upcoming() {
            return Taken::Unexpected;
        }
        chain.extend();
        self.ring.push(event);
        Taken::Added
    }

    fn adopt(&mut self, slice: &Slice) {
        self.ring.keep_only(&slice.chain);
        for event in Encoded::all(&slice.entries) {
            if let Some(last) = self.ring.last() {
                if event.id() <= last {
                    continue;
                }
                if next(&slice.chain, &[event.id()][..], last) != Next::Event(event.id()) {
                    self.ring.clear();
                }
            }
            self.ring.push(event);
        }
        self.chain = Some(slice.chain.clone());
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
