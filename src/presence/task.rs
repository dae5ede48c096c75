//! The tasks of presence: one a room, which tells the broker of its members, and one that compares all of them.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until, timeout};

use super::state::{Effects, RoomState};
use super::{Presence, Session};
use crate::broker::{BrokerError, CALL_LIMIT, Member};
use crate::names::RoomName;

/// Pause between two steps of a room.
const STEP_PAUSE: Duration = Duration::from_millis(100);
/// Pause after a step that failed.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Longest sleep of a room's task.
const MAX_SLEEP: Duration = Duration::from_hours(1);
/// Members that one page of a room's list has when it is searched for orphans.
const PAGE_MEMBERS: usize = 500;

/// This replica's members of one room, and what wakes the room's task.
pub(super) struct RoomPresence {
    room: RoomName,
    state: Mutex<GuardedState>,
    changed: Notify,
}

pub(super) struct GuardedState {
    state: RoomState<Session>,
    /// The task has ended, and the room is no longer among the presence's rooms.
    is_closed: bool,
}

impl std::ops::Deref for GuardedState {
    type Target = RoomState<Session>;

    fn deref(&self) -> &Self::Target {
        &self.state
    }
}

impl std::ops::DerefMut for GuardedState {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.state
    }
}

impl RoomPresence {
    pub(super) fn state(&self) -> MutexGuard<'_, GuardedState> {
        self.state.lock().expect("no holder of the lock panics")
    }

    /// Has the room's task look at the state.
    pub(super) fn wake(&self) {
        self.changed.notify_one();
    }

    /// Tells the broker of the room's members, for as long as there are any.
    async fn run(self: Arc<Self>, presence: Arc<Presence>) {
        loop {
            let changes = self.state().begin_step(Instant::now());
            let Some(changes) = changes else {
                let Some(next) = self.next_due(&presence) else { return };
                tokio::select! {
                    () = self.changed.notified() => {}
                    () = sleep_until(next.into()) => {}
                }
                continue;
            };
            let pause = match presence.update(&self.room, &changes).await {
                Ok(update) => {
                    let effects = self.state().complete_step(&changes, update, Instant::now());
                    // A step that nobody sees, such as a client's return, need not wait to be put together with others.
                    let pause = effects.is_visible.then_some(STEP_PAUSE);
                    apply(effects);
                    let Some(pause) = pause else { continue };
                    pause
                }
                Err(error) => {
                    tracing::debug!(room = %self.room, %error, "the broker could not be told of the room's members");
                    apply(self.state().fail_step(&changes, Instant::now()));
                    RETRY_PAUSE
                }
            };
            sleep(pause).await;
        }
    }

    /// When the next member leaves. None if there are no members: the room is closed then.
    fn next_due(&self, presence: &Presence) -> Option<Instant> {
        let mut rooms = presence.rooms();
        let mut state = self.state();
        if state.is_empty() {
            state.is_closed = true;
            rooms.remove(&self.room);
            return None;
        }
        let latest = Instant::now() + MAX_SLEEP;
        Some(state.next_leave().map_or(latest, |at| at.min(latest)))
    }
}

fn apply(effects: Effects<Session>) {
    for session in effects.ended {
        session.end();
    }
    for (session, outcome) in effects.answers {
        session.answer(outcome);
    }
}

impl Presence {
    /// Asks for a place in a room; starts the room's task if there is none.
    pub(super) fn request_place(
        self: &Arc<Self>,
        room: &RoomName,
        member: Arc<Member>,
        session: &Session,
    ) -> Arc<RoomPresence> {
        loop {
            let open = self.open_room(room);
            let mut state = open.state();
            if !state.is_closed {
                state.join(member, session.clone());
                drop(state);
                return open;
            }
        }
    }

    fn open_room(self: &Arc<Self>, room: &RoomName) -> Arc<RoomPresence> {
        let mut rooms = self.rooms();
        let open = rooms.entry(room.clone()).or_insert_with(|| {
            let state = GuardedState { state: RoomState::new(self.settings.grace), is_closed: false };
            let open =
                Arc::new(RoomPresence { room: room.clone(), state: Mutex::new(state), changed: Notify::new() });
            self.tasks.spawn(open.clone().run(self.clone()));
            open
        });
        open.clone()
    }

    /// Compares the broker's member lists with this replica's members: it tells the broker again what that has lost, and has
    /// members of dead replicas leave.
    pub(super) async fn compare_for_ever(&self) {
        let mut ticks = interval(self.settings.compare_every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let mut names: Vec<_> = self.rooms().keys().cloned().collect();
            let watched: Vec<_> = self.watched().keys().cloned().collect();
            names.extend(watched.into_iter().filter(|room| self.room(room).is_none()));
            // All together, since which replicas are dead is asked once for all.
            let summaries = timeout(CALL_LIMIT, self.store.presence_summaries(&names)).await;
            let Ok(Ok(summaries)) = summaries else { continue };
            for (name, summary) in names.iter().zip(summaries) {
                let is_unwatched = self.is_watched(name) && !summary.watched;
                let room = self.room(name);
                if is_unwatched || (summary.has_stale && room.is_none()) {
                    let _ = self.update(name, &[]).await;
                }
                let Some(room) = room else { continue };
                let has_orphans = room.state().compare(summary);
                room.wake();
                if has_orphans {
                    let _ = timeout(CALL_LIMIT, self.find_orphans(&room)).await;
                }
            }
        }
    }

    /// Has members leave that the broker counts for this replica and that are not here.
    async fn find_orphans(&self, room: &RoomPresence) -> Result<(), BrokerError> {
        let mut from = None;
        loop {
            let page = self.store.members(&room.room, from.as_deref(), PAGE_MEMBERS).await?;
            let mut state = room.state();
            page.members.into_iter().filter(|member| member.is_here).for_each(|member| state.check_orphan(member));
            drop(state);
            from = page.next;
            if from.is_none() {
                room.wake();
                return Ok(());
            }
        }
    }
}
