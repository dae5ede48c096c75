//! Presence: which members this replica's streams give to rooms. A task a room keeps the broker's member list equal to them.
//!
//! One change of a room's member list is under way at a time. Later changes go with the next step, after a pause: many that come
//! together cost a few steps and a few entries of the log, not one each. A member whose stream ends has some time to come back
//! before it counts as gone.

mod state;
mod task;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Waker;
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use tokio::sync::oneshot;
use tokio::time::timeout;
use wildmatch::WildMatch;

use self::task::RoomPresence;
use crate::broker::{
    BrokerError, Generation, Member, MemberChange, MemberOutcome, MemberPage, MemberView, PresenceListener,
    PresenceStore, PresenceUpdate, Removal,
};
use crate::live::{LogClient, with_deadline};
use crate::names::{RoomName, SubscriberId};
use crate::shutdown::Tasks;

/// Longest wait of a stream for its place in a room. Without an answer the stream opens, and gets its place later.
const JOIN_LIMIT: Duration = Duration::from_millis(1500);

/// Which rooms have presence, and how.
#[derive(Clone, Debug)]
pub struct PresenceSettings {
    /// Patterns of rooms.
    pub rooms: Vec<WildMatch>,
    /// How long a member whose stream has ended may take to come back.
    pub grace: Duration,
    /// The broker's member lists are compared with this replica's members this often.
    pub compare_every: Duration,
}

/// This replica's members of all rooms.
pub struct Presence {
    log: Arc<LogClient>,
    store: Arc<dyn PresenceStore>,
    settings: PresenceSettings,
    rooms: Mutex<HashMap<RoomName, Arc<RoomPresence>>>,
    /// How many streams of a room here asked for `presence.join` and `presence.leave`.
    watched: Mutex<HashMap<RoomName, u64>>,
    tasks: Tasks,
}

/// A stream's place in a room. When it is dropped, the member leaves after the grace time.
pub struct PresenceSession {
    room: Arc<RoomPresence>,
    subscriber: SubscriberId,
    session: Session,
}

/// What a stream and the room's task share of a session. Clones are the same session.
#[derive(Clone)]
struct Session(Arc<SessionState>);

struct SessionState {
    /// The stream has to end: the name belongs to another caller, or to a later session.
    is_over: AtomicBool,
    /// Wakes the stream.
    waker: AtomicWaker,
    /// Where the stream waits for its place.
    answer: Mutex<Option<oneshot::Sender<MemberOutcome>>>,
}

impl PartialEq for Session {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Session {
    fn new(answer: oneshot::Sender<MemberOutcome>) -> Self {
        Self(Arc::new(SessionState {
            is_over: AtomicBool::new(false),
            waker: AtomicWaker::new(),
            answer: Mutex::new(Some(answer)),
        }))
    }

    fn end(&self) {
        self.0.is_over.store(true, Ordering::SeqCst);
        self.0.waker.wake();
    }

    fn answer(&self, outcome: MemberOutcome) {
        if let Some(answer) = self.0.answer.lock().expect("no holder of the lock panics").take() {
            let _ = answer.send(outcome);
        }
    }
}

impl PresenceSession {
    /// Leaves the room without a grace time.
    pub fn leave(&self) {
        self.room.state().leave(&self.subscriber, &self.session, Instant::now());
    }

    /// Whether another session has taken its place. If not, the waker is woken when one does.
    pub fn is_superseded(&self, waker: &Waker) -> bool {
        self.session.0.waker.register(waker);
        self.session.0.is_over.load(Ordering::SeqCst)
    }
}

impl Drop for PresenceSession {
    fn drop(&mut self) {
        self.room.state().end_session(&self.subscriber, &self.session, Instant::now());
        self.room.wake();
    }
}

/// A stream has asked for `presence.join` and `presence.leave` of a room, until this is dropped.
pub struct PresenceWatch {
    presence: Arc<Presence>,
    room: RoomName,
}

impl Drop for PresenceWatch {
    fn drop(&mut self) {
        let mut watched = self.presence.watched();
        if let Some(count) = watched.get_mut(&self.room) {
            *count -= 1;
            if *count == 0 {
                watched.remove(&self.room);
            }
        }
    }
}

impl Presence {
    /// Presence whose member lists `store` keeps. It is to be the listener of that broker.
    pub fn new(
        log: Arc<LogClient>,
        store: Arc<dyn PresenceStore>,
        settings: PresenceSettings,
        tasks: &Tasks,
    ) -> Arc<Self> {
        let (rooms, watched) = (Mutex::default(), Mutex::default());
        Arc::new(Self { log, store, settings, rooms, watched, tasks: tasks.clone() })
    }

    /// Starts the background comparison.
    pub fn start(self: &Arc<Self>) {
        let presence = self.clone();
        self.tasks.supervise("presence", async move { presence.compare_for_ever().await });
    }

    /// Whether a room has presence.
    pub fn is_enabled(&self, room: &RoomName) -> bool {
        self.settings.rooms.iter().any(|pattern| pattern.matches(room.as_str()))
    }

    /// How many members this replica has, in all rooms.
    pub fn member_count(&self) -> usize {
        self.rooms().values().map(|room| room.state().len()).sum()
    }

    /// About `limit` members of a room on all replicas, from where an earlier page ended.
    pub async fn members(
        &self,
        room: &RoomName,
        from: Option<&str>,
        limit: usize,
    ) -> Result<MemberPage, BrokerError> {
        self.store.members(room, from, limit).await
    }

    /// One member of a room, on whichever replica it is.
    pub async fn member(
        &self,
        room: &RoomName,
        subscriber: &SubscriberId,
    ) -> Result<Option<MemberView>, BrokerError> {
        self.store.member(room, subscriber).await
    }

    /// Gives a stream its place in a room; an earlier session of the same member ends. None if the name belongs to another
    /// caller.
    pub async fn join(self: &Arc<Self>, room: &RoomName, member: Member) -> Option<PresenceSession> {
        let subscriber = member.subscriber.clone();
        let (answer, answered) = oneshot::channel();
        let session = Session::new(answer);
        let room = self.request_place(room, Arc::new(member), &session);
        room.wake();
        // From here on the place is given up again however this ends.
        let session = PresenceSession { room, subscriber, session };
        match timeout(JOIN_LIMIT, answered).await {
            Ok(Ok(MemberOutcome::NameTaken | MemberOutcome::Superseded)) => None,
            Ok(Ok(MemberOutcome::Present(_) | MemberOutcome::Absent) | Err(_)) | Err(_) => Some(session),
        }
    }

    /// Has `presence.join` and `presence.leave` appended to a room's log from now on.
    pub async fn watch(self: &Arc<Self>, room: &RoomName) -> PresenceWatch {
        *self.watched().entry(room.clone()).or_default() += 1;
        let watch = PresenceWatch { presence: self.clone(), room: room.clone() };
        // If this fails, the next comparison tells the broker.
        if timeout(JOIN_LIMIT, self.update(room, &[])).await.map_or(true, |updated| updated.is_err()) {
            tracing::debug!(%room, "the broker could not be told that a stream watches the room's presence");
        }
        watch
    }

    /// Has the member that a removal names leave at once.
    pub fn remove(&self, removal: &Removal) {
        let Some(subscriber) = &removal.subscriber else { return };
        let Some(room) = removal.room.as_ref().and_then(|room| self.room(room)) else { return };
        room.state().remove(subscriber, Instant::now());
        room.wake();
    }

    async fn update(&self, room: &RoomName, changes: &[MemberChange]) -> Result<PresenceUpdate, BrokerError> {
        let watermarks = self.log.watermarks().get(&room.clone().into());
        let update = self.store.update_presence(room, &watermarks, changes, self.is_watched(room));
        with_deadline("a change of presence", update).await
    }

    fn is_watched(&self, room: &RoomName) -> bool {
        self.watched().contains_key(room)
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<RoomName, u64>> {
        self.watched.lock().expect("no holder of the lock panics")
    }

    fn room(&self, room: &RoomName) -> Option<Arc<RoomPresence>> {
        self.rooms().get(room).cloned()
    }

    fn rooms(&self) -> MutexGuard<'_, HashMap<RoomName, Arc<RoomPresence>>> {
        self.rooms.lock().expect("no holder of the lock panics")
    }
}

impl PresenceListener for Presence {
    fn superseded(&self, room: &RoomName, subscriber: &SubscriberId, generation: Generation) {
        let ended = self.room(room).and_then(|room| room.state().supersede(subscriber, generation));
        if let Some(session) = ended {
            session.end();
        }
    }
}
