//! A replica's live rooms. It knows neither which broker carries the events nor how they leave: a subscriber owns a
//! position and asks for what follows.

mod encoded;
mod ends;
mod known;
mod lead;
mod mirror;
mod presence;
mod ring;
mod room;
mod subscription;

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{Instrument, Span, info_span};

pub use self::encoded::Encoded;
pub use self::ends::{Ending, Whose};
pub use self::lead::{Ahead, Lead, Level};
pub use self::presence::{PresenceSettings, Stay, Watch};
pub use self::subscription::{Delivery, Resume, Start, Subscription};

use self::ends::Ends;
use self::known::KnownIds;
use self::mirror::Taken;
use self::presence::Presence;
use self::room::{Room, Seat};
use crate::broker::{
    Appended, Broker, BrokerError, CALL_LIMIT, Entry, Fault, FaultKind, Listener, Occupancy, Once, Range, Slice,
    Stamp,
};
use crate::room::{Event, EventId, RoomName, SubscriberId};
use crate::shutdown::Tasks;
use crate::trace;

/// Longest time in which a stream opens or is told that it can't.
const JOIN_LIMIT: Duration = Duration::from_secs(4);
/// Every held room's chain is compared with the log's about this often.
const COMPARE_EVERY: Duration = Duration::from_secs(15);
/// Comparisons are spread over this many steps.
const COMPARE_STEPS: u32 = 15;
const TICK: Duration = Duration::from_secs(1);
/// Readers that fetch from the log at one time; more wait, so that a rush of them does not crowd out publishes.
const LOG_READERS: usize = 64;
/// Entries that one read of a page asks for, so that no single reply keeps others waiting for long.
const READ_EVENTS: usize = 50;
/// A page that has so many bytes gets no more.
const READ_BYTES: usize = 4 * 1024 * 1024;
/// A server's clock may be this far ahead of ours.
const CLOCKS_APART: Duration = Duration::from_hours(24);
/// Rooms that are vouched for at one time after the server's history has changed.
const VOUCH_AT_ONCE: usize = 64;

/// What a replica keeps of each room that has subscribers.
#[derive(Clone, Debug)]
pub struct HubSettings {
    /// Most events in a room's ring.
    pub ring_events: usize,
    /// Most bytes in it.
    pub ring_bytes: usize,
    /// How long a room is kept after its last subscriber has left.
    pub linger: Duration,
    /// Which rooms know who is in them.
    pub presence: PresenceSettings,
    /// The replica's subscribers are reported at least this often, and at once, in effect, when they change. The broker's rosters are
    /// compared with what is here as often.
    pub report_every: Duration,
}

/// The live rooms of a replica.
pub struct Hub {
    broker: Arc<dyn Broker>,
    settings: HubSettings,
    rooms: Mutex<HashMap<RoomName, Arc<Room>>>,
    known: KnownIds,
    presence: Presence,
    ends: Ends,
    streams: AtomicU64,
    readers: Semaphore,
    tasks: Tasks,
    junk: AtomicU64,
    history: tokio::sync::Notify,
}

impl Hub {
    /// A hub that hears what the broker announces.
    pub fn new(broker: Arc<dyn Broker>, settings: HubSettings, tasks: &Tasks) -> Arc<Self> {
        let hub = Arc::new(Self {
            broker,
            presence: Presence::new(settings.presence.clone()),
            ends: Ends::default(),
            streams: AtomicU64::new(0),
            settings,
            rooms: Mutex::default(),
            known: KnownIds::default(),
            readers: Semaphore::new(LOG_READERS),
            tasks: tasks.clone(),
            junk: AtomicU64::new(0),
            history: tokio::sync::Notify::new(),
        });
        hub.broker.listen(hub.clone());
        hub
    }

    /// Starts the background comparison, the report of subscribers, and the watch over the server's history.
    pub fn start(self: &Arc<Self>) {
        let hub = self.clone();
        self.tasks.supervise("comparison", async move { hub.compare_for_ever().await });
        let hub = self.clone();
        self.tasks.supervise("census", async move { hub.report_for_ever().await });
        let hub = self.clone();
        self.tasks.supervise("rosters", async move { hub.compare_rosters().await });
        let hub = self.clone();
        self.tasks.supervise("removals", async move { hub.keep_up_with_removals().await });
        let hub = self.clone();
        self.tasks.supervise("history", async move {
            loop {
                hub.history.notified().await;
                hub.vouch_for_recent_rooms().await;
            }
        });
    }

    /// The broker behind it.
    pub fn broker(&self) -> &dyn Broker {
        &*self.broker
    }

    /// How many rooms there are, a few without subscribers among them.
    pub fn rooms_held(&self) -> usize {
        self.rooms().len()
    }

    /// Messages that were no announcements, since the start.
    pub fn junk_announcements(&self) -> u64 {
        self.junk.load(Ordering::Relaxed)
    }

    /// Appends an event to a room's log. Subscribers get it when it comes back from the broker.
    pub async fn publish(
        &self,
        room: &RoomName,
        event: &Event,
        once: Option<&Once>,
    ) -> Result<Appended, BrokerError> {
        let known = self.known.of(room);
        let span = if trace::is_sent() { info_span!("append", %room) } else { Span::none() };
        let append = self.broker.append(room, &known, event.encode(), once).instrument(span);
        let appended = answered("an append", append).await?;
        // What an earlier call appended may be lost since; only what was appended now is known to have existed now.
        if !appended.replayed {
            self.known.add(room, appended.id);
        }
        Ok(appended)
    }

    /// Empties a room's log; whoever comes back to a position before its end is told of a gap.
    pub async fn clear(&self, room: &RoomName) -> Result<(), BrokerError> {
        let known = self.known.of(room);
        answered("the emptying of a log", self.broker.clear(room, &known)).await
    }

    /// Reads a part of a room's log.
    pub async fn read(&self, room: &RoomName, range: Range, limit: usize) -> Result<Slice, BrokerError> {
        let read = async {
            let _turn = self.readers.acquire().await.expect("the semaphore is never closed");
            self.broker.read(room, &self.known.of(room), range, limit).await
        };
        let late = || Err(BrokerError::Unavailable(Fault::new(FaultKind::TimedOut, "no answer to a read")));
        let slice = timeout(CALL_LIMIT, read).await.unwrap_or_else(|_| late())?;
        // Whoever is told this position may come back to it: the replica has to remember that it was given out.
        self.known.add(room, slice.chain.end());
        Ok(slice)
    }

    /// Reads up to `limit` entries, in several reads where that is many, and fewer where they are large. Says whether it
    /// stopped because of their size.
    pub async fn read_page(
        &self,
        room: &RoomName,
        range: Range,
        limit: usize,
    ) -> Result<(Slice, bool), BrokerError> {
        let backwards = matches!(range, Range::Before(_) | Range::Newest);
        let mut asked = limit.min(READ_EVENTS);
        let mut page = self.read(room, range, asked).await?;
        let mut got = page.entries.len();
        loop {
            let left = limit.saturating_sub(page.entries.len());
            let (Some(first), Some(last)) = (page.entries.first(), page.entries.last()) else { break };
            if left == 0 || got < asked {
                break;
            }
            if page.entries.iter().map(|entry| entry.stored.len()).sum::<usize>() >= READ_BYTES {
                return Ok((page, true));
            }
            let range = if backwards { Range::Before(first.id) } else { Range::After(last.id) };
            asked = left.min(READ_EVENTS);
            let mut more = self.read(room, range, asked).await?.entries;
            got = more.len();
            if backwards {
                more.append(&mut page.entries);
                page.entries = more;
            } else {
                page.entries.append(&mut more);
            }
        }
        Ok((page, false))
    }

    /// Opens a stream of some rooms, each from its start. Ends within [`JOIN_LIMIT`].
    pub async fn subscribe(self: &Arc<Self>, rooms: Vec<(RoomName, Start)>) -> Result<Subscription, BrokerError> {
        let health = self.broker.health();
        let readable = |fault: &Fault| fault.kind.is_of_writes_alone();
        if let Some(fault) = health.commands.filter(|fault| !readable(fault)).or(health.delivery) {
            return Err(BrokerError::Unavailable(fault));
        }
        let late = || BrokerError::Unavailable(Fault::new(FaultKind::TimedOut, "the rooms could not be joined"));
        timeout(JOIN_LIMIT, Subscription::open(self, rooms)).await.map_err(|_| late())?
    }

    /// Open streams.
    pub fn streams(&self) -> u64 {
        self.streams.load(Ordering::Relaxed)
    }

    /// This replica's subscribers, by room.
    pub fn occupancy(&self) -> Occupancy {
        let rooms = self.rooms();
        let occupied = rooms.values().map(|room| (room.name().clone(), room.occupants()));
        occupied.filter(|(_, occupants)| *occupants > 0).collect()
    }

    fn enter(self: &Arc<Self>, name: &RoomName) -> Seat {
        let mut rooms = self.rooms();
        let room = match rooms.entry(name.clone()) {
            MapEntry::Occupied(entry) => entry.into_mut(),
            MapEntry::Vacant(entry) => {
                let room = entry.insert(Arc::new(Room::new(name.clone(), &self.settings)));
                self.tasks.spawn(Room::tend(room.clone(), self.clone()));
                room
            }
        };
        Seat::take(room)
    }

    /// Lets go of a room, unless someone has entered meanwhile.
    fn close(&self, room: &Arc<Room>) -> bool {
        let mut rooms = self.rooms();
        if room.occupants() > 0 {
            return false;
        }
        rooms.remove(room.name());
        // Under the lock, so that whoever opens the room again subscribes after this.
        self.broker.unsubscribe(room.name());
        true
    }

    fn held(&self, name: &RoomName) -> Option<Arc<Room>> {
        self.rooms().get(name).cloned()
    }

    fn rooms(&self) -> MutexGuard<'_, HashMap<RoomName, Arc<Room>>> {
        self.rooms.lock().expect("no holder of the lock panics")
    }

    /// Pub/sub is a hint: an announcement that never came is found here.
    async fn compare_for_ever(&self) {
        let mut ticks = interval(COMPARE_EVERY / COMPARE_STEPS);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut due: Vec<Arc<Room>> = Vec::new();
        let mut share = 0;
        loop {
            ticks.tick().await;
            if due.is_empty() {
                due = self.rooms().values().cloned().collect();
                share = due.len().div_ceil(COMPARE_STEPS as usize);
            }
            let batch = due.split_off(due.len().saturating_sub(share));
            if batch.is_empty() {
                continue;
            }
            let names: Vec<_> = batch.iter().map(|room| room.name().clone()).collect();
            for name in &names {
                self.known.keep(name);
            }
            // While the broker is away there is nothing to compare; its return brings a doubt of its own.
            let Ok(Ok(chains)) = timeout(CALL_LIMIT, self.broker.chains(&names)).await else { continue };
            for (room, chain) in batch.iter().zip(chains) {
                if chain.is_none_or(|chain| !room.is_of(&chain)) {
                    room.doubt();
                }
            }
        }
    }

    async fn report_for_ever(&self) {
        let mut ticks = interval(TICK.min(self.settings.report_every));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told: Option<Occupancy> = None;
        let mut due = Instant::now();
        loop {
            ticks.tick().await;
            let now = self.occupancy();
            if told.as_ref() == Some(&now) && Instant::now() < due {
                continue;
            }
            due = Instant::now() + self.settings.report_every.saturating_sub(TICK / 2);
            let reported = timeout(CALL_LIMIT, self.broker.report(&now, self.streams())).await;
            told = matches!(reported, Ok(Ok(()))).then_some(now);
        }
    }

    /// Whoever comes back to a room that this replica no longer holds must be told of a loss too.
    async fn vouch_for_recent_rooms(&self) {
        let rooms = self.known.rooms();
        let unheld = rooms.into_iter().filter(|name| self.held(name).is_none());
        let reads = unheld.map(|name| async move {
            if let Err(error) = self.read(&name, Range::Newest, 1).await {
                tracing::debug!(room = %name, %error, "not vouched for after a change of history");
            }
        });
        futures_util::stream::iter(reads).buffer_unordered(VOUCH_AT_ONCE).collect::<()>().await;
    }
}

/// The outcome of a step that changes something, within [`CALL_LIMIT`]. Without an answer, it may have been done.
async fn answered<T>(step: &str, outcome: impl Future<Output = Result<T, BrokerError>>) -> Result<T, BrokerError> {
    timeout(CALL_LIMIT, outcome).await.unwrap_or_else(|_| {
        Err(BrokerError::OutcomeUnknown(Fault::new(FaultKind::TimedOut, format!("no answer to {step}"))))
    })
}

/// An epoch is a time in microseconds. One that lies far ahead would push all later ones ahead of it, beyond what can be
/// counted: no server gives it out.
fn is_credible(id: EventId) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u128::from(id.epoch) <= (now + CLOCKS_APART).as_micros()
}

impl Listener for Hub {
    fn heard(&self, room: &RoomName, entry: Entry) {
        // Only a room that is held is subscribed; what comes after it was let go is of no more use.
        let Some(held) = self.held(room) else { return };
        let event = Encoded::new(&entry).ok().filter(|_| is_credible(entry.id));
        let Some(event) = event else { return self.junk(room) };
        let span = match event.event().traceparent.as_deref().filter(|_| trace::is_sent()) {
            None => Span::none(),
            Some(publish) => {
                let (id, subscribers) = (entry.id, held.occupants());
                let span = info_span!(parent: None, "deliver", %room, %id, subscribers, otel.kind = "consumer");
                trace::follow(&span, publish);
                span
            }
        };
        let _delivering = span.entered();
        match held.heard(Arc::new(event)) {
            Taken::Added | Taken::Held => self.known.add(room, entry.id),
            Taken::Waiting | Taken::Unexpected => self.known.add_foreign(room, entry.id),
            Taken::Conflicting => self.junk(room),
        }
    }

    fn cleared(&self, room: &RoomName, position: EventId) {
        match self.held(room) {
            Some(held) if is_credible(position) => held.cleared(position),
            Some(_) => self.junk(room),
            None => {}
        }
    }

    fn doubt(&self, room: &RoomName) {
        if let Some(room) = self.held(room) {
            room.doubt();
        }
    }

    fn removed(&self) {
        self.ends.look();
    }

    fn superseded(&self, room: &RoomName, subscriber: &SubscriberId, stamp: Stamp) {
        self.presence.superseded(room, subscriber, stamp);
    }

    fn history_changed(&self) {
        for room in self.rooms().values() {
            room.doubt();
        }
        self.history.notify_one();
    }

    fn junk(&self, room: &RoomName) {
        self.junk.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(%room, "junk on the room's channel");
        self.doubt(room);
    }
}
