//! Presence: the members that this replica's streams add to rooms. A task per room keeps the broker's member list in
//! step with them.
//!
//! A room's task sends one update to the broker at a time. Changes that come meanwhile go into the next update, after a
//! pause, so that many changes cost a few calls and a few log entries instead of one each. A member whose stream ends
//! has a grace time to come back before it leaves.

mod state;
mod task;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Waker;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::task::AtomicWaker;
use tokio::sync::oneshot;
use tokio::time::timeout;
use wildmatch::WildMatch;

use self::task::RoomPresence;
use crate::broker::{
    BrokerError, Generation, Member, MemberChange, MemberOutcome, MemberPage, MemberView, PresenceListener,
    PresenceStore, PresenceUpdate, Removal, read_with_deadline, read_with_patience, write_with_deadline,
};
use crate::live::LogClient;
use crate::names::{RoomName, SubscriberId};
use crate::shutdown::Tasks;

/// Longest wait of a new stream for the broker's answer. Without an answer the stream opens, and its member joins
/// later.
const JOIN_TIMEOUT: Duration = Duration::from_millis(1500);

/// Which rooms have presence, and its periods.
#[derive(Clone, Debug)]
pub struct PresenceSettings {
    /// Patterns of the rooms that have presence.
    pub rooms: Vec<WildMatch>,
    /// Grace time: how long a member whose stream has ended may take to come back.
    pub grace: Duration,
    /// How often the broker's member lists are compared with this replica's members.
    pub compare_every: Duration,
}

/// The members of all rooms on this replica.
pub struct Presence {
    log: Arc<LogClient>,
    store: Arc<dyn PresenceStore>,
    settings: PresenceSettings,
    rooms: Mutex<HashMap<RoomName, Arc<RoomPresence>>>,
    /// How many streams on this replica want `presence.join` and `presence.leave`, by room.
    watched: Mutex<HashMap<RoomName, u64>>,
    tasks: Tasks,
}

/// The token with which a stream was opened.
#[derive(Clone)]
pub struct StreamToken {
    /// Its `sub`.
    pub subject: Option<Arc<str>>,
    /// Its `jti`.
    pub id: Option<Arc<str>>,
}

/// A stream's membership of a room. When it is dropped, the member leaves after the grace time.
pub struct PresenceSession {
    room: Arc<RoomPresence>,
    subscriber: SubscriberId,
    handle: SessionHandle,
    /// Whether the stream may still be refused. The member then leaves without a grace time.
    is_tentative: bool,
}

/// A member, and the rooms with presence that its stream is to join, by what their lists say of its subscriber id.
pub struct JoinPlan {
    member: Arc<Member>,
    token: StreamToken,
    /// The id is free.
    free: Vec<RoomName>,
    /// The id belongs to the caller already: to a stream that this one ends.
    own: Vec<RoomName>,
}

/// Why a stream can't join its rooms.
#[derive(Debug)]
pub enum JoinError {
    /// The subscriber id belongs to another caller in this room.
    NameTaken(RoomName),
    /// The member lists can't be read.
    Broker(BrokerError),
}

/// The part of a session that its stream and the room's task share. Clones are the same session.
#[derive(Clone)]
struct SessionHandle(Arc<SessionState>);

struct SessionState {
    token: StreamToken,
    began_at: Instant,
    /// The stream has to end: the subscriber id belongs to another caller, or a later session has taken over.
    is_over: AtomicBool,
    /// Wakes the stream.
    waker: AtomicWaker,
    /// Sends the broker's answer to the stream that waits for it.
    answer: Mutex<Option<oneshot::Sender<MemberOutcome>>>,
}

impl PartialEq for SessionHandle {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl SessionHandle {
    fn new(token: StreamToken, answer: oneshot::Sender<MemberOutcome>) -> Self {
        Self(Arc::new(SessionState {
            token,
            began_at: Instant::now(),
            is_over: AtomicBool::new(false),
            waker: AtomicWaker::new(),
            answer: Mutex::new(Some(answer)),
        }))
    }

    /// Whether a removal names the subscriber, user or token of the session.
    fn is_named_by(&self, removal: &Removal, subscriber: &SubscriberId) -> bool {
        let same = |one: Option<&str>, other: Option<&str>| one.is_some() && one == other;
        removal.subscriber.as_ref() == Some(subscriber)
            || same(removal.user.as_deref(), self.0.token.subject.as_deref())
            || same(removal.token.as_deref(), self.0.token.id.as_deref())
    }

    /// Ends the stream.
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
    /// Ends the membership without a grace time. Dropping this ends it after one.
    pub fn leave(&self) {
        self.room.state().leave(&self.subscriber, &self.handle, Instant::now());
    }

    /// Whether another session has taken over. If not, the waker is woken when one does.
    pub fn is_superseded(&self, waker: &Waker) -> bool {
        self.handle.0.waker.register(waker);
        self.handle.0.is_over.load(Ordering::SeqCst)
    }
}

impl Drop for PresenceSession {
    fn drop(&mut self) {
        if self.is_tentative {
            self.leave();
        } else {
            self.room.state().end_session(&self.subscriber, &self.handle, Instant::now());
        }
        self.room.wake();
    }
}

/// A stream's wish for `presence.join` and `presence.leave` of a room; it ends when this is dropped.
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
    /// Presence with member lists in `store`. The broker has to be started with it as its presence listener.
    pub fn new(
        log: Arc<LogClient>,
        store: Arc<dyn PresenceStore>,
        settings: PresenceSettings,
        tasks: &Tasks,
    ) -> Arc<Self> {
        let (rooms, watched) = (Mutex::default(), Mutex::default());
        Arc::new(Self { log, store, settings, rooms, watched, tasks: tasks.clone() })
    }

    /// Starts the background task that compares member lists.
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

    /// A page of about `limit` members of a room, on all replicas. `from` is the end of the page before.
    pub async fn members(
        &self,
        room: &RoomName,
        from: Option<&str>,
        limit: usize,
    ) -> Result<MemberPage, BrokerError> {
        self.store.members(room, from, limit).await
    }

    /// One member of a room, on any replica.
    pub async fn member(
        &self,
        room: &RoomName,
        subscriber: &SubscriberId,
    ) -> Result<Option<MemberView>, BrokerError> {
        self.store.member(room, subscriber).await
    }

    /// Checks that a stream's subscriber may join all of its rooms. Changes nothing.
    pub async fn plan_join(
        &self,
        rooms: &[RoomName],
        member: Member,
        token: StreamToken,
    ) -> Result<JoinPlan, JoinError> {
        let rooms: Vec<_> = rooms.iter().filter(|room| self.is_enabled(room)).cloned().collect();
        let mut plan = JoinPlan { member: Arc::new(member), token, free: Vec::new(), own: Vec::new() };
        // The step that joins a room checks the id, too. It can't span rooms.
        if rooms.len() <= 1 {
            return Ok(JoinPlan { own: rooms, ..plan });
        }
        let member = plan.member.clone();
        let owners = read_with_patience(|| async {
            let owners = self.store.owners(&rooms, &member.subscriber);
            read_with_deadline("the member lists could not be read in time", owners).await
        })
        .await;
        for (room, owner) in rooms.into_iter().zip(owners.map_err(JoinError::Broker)?) {
            // The broker may not have a member of this replica yet.
            let own_list = || self.room(&room).and_then(|room| room.state().owner(&member.subscriber));
            match owner.or_else(own_list) {
                None => plan.free.push(room),
                Some(owner) if owner == member.owner => plan.own.push(room),
                Some(_) => return Err(JoinError::NameTaken(room)),
            }
        }
        Ok(plan)
    }

    /// Makes a stream's subscriber a member of all the rooms of a plan, or of none. Earlier sessions of the same member
    /// end once it is a member where its id was free: only there can another caller have taken the id since.
    pub async fn join(self: &Arc<Self>, plan: &JoinPlan) -> Result<Vec<PresenceSession>, JoinError> {
        let free = plan.free.iter().map(|room| self.join_room(room, plan, true));
        let mut sessions = join_all(free).await.into_iter().collect::<Result<Vec<_>, _>>()?;
        let own = plan.own.iter().map(|room| self.join_room(room, plan, false));
        sessions.extend(join_all(own).await.into_iter().collect::<Result<Vec<_>, _>>()?);
        for session in &mut sessions {
            session.is_tentative = false;
        }
        Ok(sessions)
    }

    /// Makes a stream's subscriber a member of a room. An earlier session of the same member ends. Fails if the
    /// subscriber id belongs to another caller.
    async fn join_room(
        self: &Arc<Self>,
        room: &RoomName,
        plan: &JoinPlan,
        is_tentative: bool,
    ) -> Result<PresenceSession, JoinError> {
        let subscriber = plan.member.subscriber.clone();
        let (answer, answered) = oneshot::channel();
        let handle = SessionHandle::new(plan.token.clone(), answer);
        let presence = self.request_join(room, plan.member.clone(), &handle);
        presence.wake();
        // From here on, the member leaves again however this function ends.
        let session = PresenceSession { room: presence, subscriber, handle, is_tentative };
        match timeout(JOIN_TIMEOUT, answered).await {
            Ok(Ok(MemberOutcome::NameTaken | MemberOutcome::Superseded)) => Err(JoinError::NameTaken(room.clone())),
            Ok(Ok(MemberOutcome::Present(_) | MemberOutcome::Absent) | Err(_)) | Err(_) => Ok(session),
        }
    }

    /// Makes the broker append `presence.join` and `presence.leave` to a room's log from now on.
    pub async fn watch(self: &Arc<Self>, room: &RoomName) -> PresenceWatch {
        *self.watched().entry(room.clone()).or_default() += 1;
        let watch = PresenceWatch { presence: self.clone(), room: room.clone() };
        // If this fails, the next comparison repeats it.
        if timeout(JOIN_TIMEOUT, self.update(room, &[])).await.map_or(true, |updated| updated.is_err()) {
            tracing::debug!(%room, "a request for the room's presence events failed; the next comparison repeats it");
        }
        watch
    }

    /// Removes the members that a removal names, without a grace time, and without waiting for the ends of their
    /// streams: a client that does not read would delay them. Sessions that began after `at` stay.
    pub fn remove(&self, removal: &Removal, at: Instant) {
        let rooms: Vec<_> = match &removal.room {
            Some(room) => self.room(room).into_iter().collect(),
            None => self.rooms().values().cloned().collect(),
        };
        for room in rooms {
            let is_meant = |subscriber: &SubscriberId, session: &SessionHandle| {
                session.0.began_at <= at && session.is_named_by(removal, subscriber)
            };
            if room.state().remove(is_meant, Instant::now()) {
                room.wake();
            }
        }
    }

    async fn update(&self, room: &RoomName, changes: &[MemberChange]) -> Result<PresenceUpdate, BrokerError> {
        let watermarks = self.log.watermarks().take_for_call(&room.clone().into());
        let update = self.store.update_presence(room, &watermarks, changes, self.is_watched(room));
        write_with_deadline("a presence update", update).await
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
