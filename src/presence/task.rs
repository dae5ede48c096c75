//! The tasks of presence: one per room, which reports its members to the broker, and one that compares all member
//! lists.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until, timeout};

use super::state::{Effects, RoomState};
use super::{Presence, SessionHandle};
use crate::broker::{BrokerError, CALL_LIMIT, Member};
use crate::names::RoomName;

/// Pause between two updates of a room.
const UPDATE_PAUSE: Duration = Duration::from_millis(100);
/// Pause after an update that failed.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Longest sleep of a room's task.
const MAX_SLEEP: Duration = Duration::from_hours(1);
/// Members per page when a room's list is searched for orphans.
const PAGE_MEMBERS: usize = 500;

/// The presence of one room on this replica, shared by its task and its sessions.
pub(super) struct RoomPresence {
    room: RoomName,
    state: Mutex<GuardedState>,
    changed: Notify,
}

pub(super) struct GuardedState {
    state: RoomState<SessionHandle>,
    /// The task has ended, and `Presence` no longer has this room.
    is_closed: bool,
}

impl std::ops::Deref for GuardedState {
    type Target = RoomState<SessionHandle>;

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

    /// Wakes the room's task, which checks the state.
    pub(super) fn wake(&self) {
        self.changed.notify_one();
    }

    /// Reports the room's members to the broker, as long as there are any.
    async fn run(self: Arc<Self>, presence: Arc<Presence>) {
        loop {
            let changes = self.state().begin_update(Instant::now());
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
                    let effects = self.state().complete_update(&changes, update, Instant::now());
                    let is_visible = effects.is_visible;
                    apply(effects);
                    // An update that no other subscriber sees, such as the return of a client, adds nothing to the log,
                    // so there is no reason to collect more changes before the next one.
                    if !is_visible {
                        continue;
                    }
                    UPDATE_PAUSE
                }
                Err(error) => {
                    tracing::debug!(room = %self.room, %error, "a presence update failed; it is repeated");
                    apply(self.state().fail_update(&changes, Instant::now()));
                    RETRY_PAUSE
                }
            };
            sleep(pause).await;
        }
    }

    /// When the next member leaves. `None` if there are no members: the room is closed then.
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

fn apply(effects: Effects<SessionHandle>) {
    for session in effects.ended {
        session.end();
    }
    for (session, outcome) in effects.answers {
        session.answer(outcome);
    }
}

impl Presence {
    /// Joins a room with a session. Starts the room's task if there is none.
    pub(super) fn request_join(
        self: &Arc<Self>,
        room: &RoomName,
        member: Arc<Member>,
        session: &SessionHandle,
    ) -> Arc<RoomPresence> {
        loop {
            let room = self.open_room(room);
            let mut state = room.state();
            // It may have been closed since; then there is another one by now.
            if !state.is_closed {
                state.join(member, session.clone());
                drop(state);
                return room;
            }
        }
    }

    fn open_room(self: &Arc<Self>, room: &RoomName) -> Arc<RoomPresence> {
        let mut rooms = self.rooms();
        let presence = rooms.entry(room.clone()).or_insert_with(|| {
            let state = GuardedState { state: RoomState::new(self.settings.grace), is_closed: false };
            let presence =
                Arc::new(RoomPresence { room: room.clone(), state: Mutex::new(state), changed: Notify::new() });
            self.tasks.spawn(presence.clone().run(self.clone()));
            presence
        });
        presence.clone()
    }

    /// Compares the broker's member lists with this replica's members, again and again. Members that the broker has
    /// lost are reported again, orphans and members of dead replicas leave.
    pub(super) async fn compare_for_ever(&self) {
        let mut ticks = interval(self.settings.compare_every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let mut names: Vec<_> = self.rooms().keys().cloned().collect();
            let watched: Vec<_> = self.watched().keys().cloned().collect();
            names.extend(watched.into_iter().filter(|room| self.room(room).is_none()));
            // One call for all rooms, since the broker determines once per call which replicas are dead.
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

    /// Removes the members that the broker counts for this replica and that it does not have.
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
