//! Who is in a room: this replica's members, and the task of each room that keeps the broker's roster true to them.
//!
//! One change of a room's roster is under way at a time, and what comes meanwhile goes with the next, after a pause: a rush costs
//! a few steps and a few entries of the log, not one each. Who goes has some time to come back before it counts as gone.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Waker;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use wildmatch::WildMatch;

use super::{Hub, answered};
use crate::broker::{Attendance, Attended, BrokerError, CALL_LIMIT, Change, Member, Removal, Stamp, Step};
use crate::room::{RoomName, SubscriberId};

/// Changes of one step.
const BATCH_CHANGES: usize = 500;
/// Pause between two steps of a room.
const PAUSE: Duration = Duration::from_millis(100);
/// Pause after a step that failed.
const RETRY: Duration = Duration::from_secs(1);
/// Longest wait of a stream for its place on the roster; without an answer it opens, and gets its place later.
const ENTER_LIMIT: Duration = Duration::from_millis(1500);
/// When nothing is due.
const FAR: Duration = Duration::from_hours(1);

/// Which rooms know who is in them, and how.
#[derive(Clone, Debug)]
pub struct PresenceSettings {
    /// Patterns of rooms.
    pub rooms: Vec<WildMatch>,
    /// How long somebody who has gone may take to come back.
    pub grace: Duration,
}

/// This replica's members of all rooms.
pub(super) struct Presence {
    settings: PresenceSettings,
    rooms: Mutex<HashMap<RoomName, Arc<Roll>>>,
    /// How many streams of a room here have asked to see who comes and goes.
    watched: Mutex<HashMap<RoomName, u64>>,
}

/// A stream has asked to see who comes and goes, for as long as there is this.
pub struct Watch {
    hub: Arc<Hub>,
    room: RoomName,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watched = self.hub.presence.watched();
        if let Some(count) = watched.get_mut(&self.room) {
            *count -= 1;
            if *count == 0 {
                watched.remove(&self.room);
            }
        }
    }
}

/// This replica's members of one room.
pub(super) struct Roll {
    room: RoomName,
    grace: Duration,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    members: HashMap<SubscriberId, Here>,
    asked: Vec<Asked>,
    /// Whom the broker has to be told again.
    retell: VecDeque<SubscriberId>,
    /// Whom the broker counts here, and nobody here knows.
    strays: Vec<(SubscriberId, Stamp)>,
    /// The broker has counted more than there are, at the last comparison.
    has_surplus: bool,
    /// Members of replicas that are gone are to leave.
    has_ghosts: bool,
    /// The task has ended; another roll has taken its place.
    closed: bool,
}

/// A member that is here, or was a moment ago.
struct Here {
    member: Arc<Member>,
    token: Arc<Token>,
    /// It has gone, and counts as gone then.
    until: Option<Instant>,
}

/// What a stream and the roll know of its stay.
#[derive(Default)]
struct Token {
    /// 0: the broker has not answered yet.
    stamp: AtomicU64,
    /// The stream has ended before the broker had answered.
    has_gone: AtomicBool,
    /// The name is another's now, or a later stay's.
    is_over: AtomicBool,
    /// Wakes the stream.
    waker: AtomicWaker,
}

impl Token {
    fn stamp(&self) -> Option<Stamp> {
        Some(self.stamp.load(Ordering::SeqCst)).filter(|stamp| *stamp > 0)
    }

    /// The stream has to end.
    fn end(&self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.waker.wake();
    }
}

struct Asked {
    member: Arc<Member>,
    token: Arc<Token>,
    answer: oneshot::Sender<Attended>,
}

/// A stream's place on a room's roster. Dropped, it is given up after the grace.
pub struct Stay {
    roll: Arc<Roll>,
    subscriber: SubscriberId,
    token: Arc<Token>,
}

impl Stay {
    /// Gives it up without a grace.
    pub fn leave(&self) {
        self.roll.state().go(&self.subscriber, Instant::now(), |here| Arc::ptr_eq(&here.token, &self.token));
    }

    /// Whether another has taken its place. If not, the waker is woken when one does.
    pub fn is_superseded(&self, waker: &Waker) -> bool {
        self.token.waker.register(waker);
        self.token.is_over.load(Ordering::SeqCst)
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        let until = Instant::now() + self.roll.grace;
        let mut state = self.roll.state();
        self.token.has_gone.store(true, Ordering::SeqCst);
        state.go(&self.subscriber, until, |here| Arc::ptr_eq(&here.token, &self.token));
        drop(state);
        self.roll.changed.notify_one();
    }
}

impl State {
    /// Has a member that is meant count as gone at a time.
    fn go(&mut self, subscriber: &SubscriberId, until: Instant, is_meant: impl Fn(&Here) -> bool) {
        if let Some(here) = self.members.get_mut(subscriber).filter(|here| is_meant(here)) {
            here.until = Some(here.until.map_or(until, |before| before.min(until)));
        }
    }

    fn told(&self) -> u64 {
        self.members.values().filter(|here| here.token.stamp().is_some()).count() as u64
    }
}

impl Presence {
    pub(super) fn new(settings: PresenceSettings) -> Self {
        Self { settings, rooms: Mutex::default(), watched: Mutex::default() }
    }

    fn is_kept(&self, room: &RoomName) -> bool {
        self.settings.rooms.iter().any(|pattern| pattern.matches(room.as_str()))
    }

    /// Has whom a removal is about leave at once.
    pub(super) fn removed(&self, removal: &Removal) {
        let Some(subscriber) = &removal.subscriber else { return };
        let Some(roll) = removal.room.as_ref().and_then(|room| self.roll(room)) else { return };
        roll.state().go(subscriber, Instant::now(), |_| true);
        roll.changed.notify_one();
    }

    /// A later stay has begun elsewhere.
    pub(super) fn superseded(&self, room: &RoomName, subscriber: &SubscriberId, stamp: Stamp) {
        if let Some(roll) = self.roll(room) {
            let mut state = roll.state();
            let is_it = |here: &Here| here.token.stamp().is_some_and(|own| own < stamp);
            if state.members.get(subscriber).is_some_and(is_it)
                && let Some(here) = state.members.remove(subscriber)
            {
                here.token.end();
            }
        }
    }

    fn is_watched(&self, room: &RoomName) -> bool {
        self.watched().contains_key(room)
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<RoomName, u64>> {
        self.watched.lock().expect("no holder of the lock panics")
    }

    fn roll(&self, room: &RoomName) -> Option<Arc<Roll>> {
        self.rooms().get(room).cloned()
    }

    fn rooms(&self) -> MutexGuard<'_, HashMap<RoomName, Arc<Roll>>> {
        self.rooms.lock().expect("no holder of the lock panics")
    }
}

impl Roll {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of the lock panics")
    }

    /// Tells the broker what it has to know, for as long as there is anybody.
    async fn keep(self: Arc<Self>, hub: Arc<Hub>) {
        loop {
            let (asked, changes, has_ghosts) = self.due();
            if changes.is_empty() && !has_ghosts {
                let Some(next) = self.next_due(&hub) else { return };
                tokio::select! {
                    () = self.changed.notified() => {}
                    () = sleep_until(next) => {}
                }
                continue;
            }
            let pause = match hub.attend(&self.room, &changes).await {
                // Who was here already is not news: nobody is told of it, so it need not wait for others.
                Ok(step) => {
                    if !self.settle(asked, &changes, step) {
                        continue;
                    }
                    PAUSE
                }
                Err(error) => {
                    tracing::debug!(room = %self.room, %error, "who is in the room could not be told");
                    self.put_off(asked, changes);
                    RETRY
                }
            };
            sleep(pause).await;
        }
    }

    /// What the next step is about: who has asked to enter first, then whom the broker may not know, then who has gone.
    fn due(&self) -> (Vec<Asked>, Vec<Change>, bool) {
        let now = Instant::now();
        let mut state = self.state();
        let most = state.asked.len().min(BATCH_CHANGES);
        let asked: Vec<_> = state.asked.drain(..most).collect();
        let enter = |member: &Arc<Member>, stamp| Change::Enter { member: member.clone(), stamp };
        let mut changes: Vec<_> = asked.iter().map(|asked| enter(&asked.member, None)).collect();
        while changes.len() < BATCH_CHANGES
            && let Some(subscriber) = state.retell.pop_front()
        {
            // Who has asked to enter meanwhile is told of by that.
            let is_asked = asked.iter().any(|asked| asked.member.subscriber == subscriber);
            let here = state.members.get(&subscriber).filter(|here| here.until.is_none() && !is_asked);
            changes.extend(here.map(|here| enter(&here.member, here.token.stamp())));
        }
        let has_passed = |here: &Here| here.until.is_some_and(|until| until <= now);
        let mut strays = std::mem::take(&mut state.strays);
        // One that was on its way when it was looked for is none.
        strays
            .retain(|(name, stamp)| state.members.get(name).is_none_or(|here| here.token.stamp() != Some(*stamp)));
        // Where the stamp is not known, the broker may have put it on the roster all the same; unless it is about to enter again, since
        // such a leave is of whatever stay there is.
        let enters = |here: &Here| {
            let mut asked = asked.iter().chain(&state.asked);
            asked.any(|asked| asked.member.subscriber == here.member.subscriber)
        };
        let gone = state.members.values().filter(|here| has_passed(here));
        let gone = gone.filter(|here| here.token.stamp().is_some() || !enters(here)).take(BATCH_CHANGES);
        changes.extend(gone.map(|here| Change::Leave { member: here.member.clone(), stamp: here.token.stamp() }));
        changes.extend(strays.into_iter().map(|(subscriber, stamp)| {
            let member = Member { subscriber, owner: "-".into(), address: None, card: "".into() };
            Change::Leave { member: Arc::new(member), stamp: Some(stamp) }
        }));
        (asked, changes, state.has_ghosts)
    }

    /// When something is due by time alone; none if there is nobody left, and the roll is closed.
    fn next_due(&self, hub: &Hub) -> Option<Instant> {
        let mut rooms = hub.presence.rooms();
        let mut state = self.state();
        if state.members.is_empty() && state.asked.is_empty() {
            state.closed = true;
            rooms.remove(&self.room);
            return None;
        }
        let far = Instant::now() + FAR;
        Some(state.members.values().filter_map(|here| here.until).min().map_or(far, |until| until.min(far)))
    }

    /// Takes over what became of a step. Whether somebody came or has gone.
    fn settle(&self, asked: Vec<Asked>, changes: &[Change], step: Step) -> bool {
        let mut asked = asked.into_iter();
        let mut state = self.state();
        let mut is_news = state.has_ghosts;
        state.has_ghosts = step.has_ghosts;
        for (change, outcome) in changes.iter().zip(step.outcomes) {
            match (change, asked.next()) {
                (Change::Enter { member, .. }, Some(asked)) => {
                    if let Attended::Stays(stamp) = outcome {
                        asked.token.stamp.store(stamp, Ordering::SeqCst);
                        let has_gone = asked.token.has_gone.load(Ordering::SeqCst);
                        let until = has_gone.then(|| Instant::now() + self.grace);
                        let here = Here { member: member.clone(), token: asked.token.clone(), until };
                        match state.members.insert(member.subscriber.clone(), here) {
                            Some(before) => before.token.end(),
                            None => is_news = true,
                        }
                    }
                    if outcome == Attended::Taken {
                        // The stream may not have waited for it.
                        asked.token.end();
                    }
                    let _ = asked.answer.send(outcome);
                }
                (Change::Enter { member, .. }, None) => {
                    let Some(here) = state.members.get(&member.subscriber) else { continue };
                    if let Attended::Stays(stamp) = outcome {
                        here.token.stamp.store(stamp, Ordering::SeqCst);
                        continue;
                    }
                    // It is another's by now.
                    here.token.end();
                    state.members.remove(&member.subscriber);
                }
                (Change::Leave { member, stamp }, _) => {
                    is_news = true;
                    let here = state.members.get(&member.subscriber);
                    if here.is_some_and(|here| here.token.stamp() == *stamp && here.until.is_some()) {
                        state.members.remove(&member.subscriber);
                    }
                }
            }
        }
        is_news
    }

    /// A step failed, and may yet have been done: all of it is told again.
    fn put_off(&self, asked: Vec<Asked>, changes: Vec<Change>) {
        let mut state = self.state();
        for Asked { member, token, answer } in asked {
            let is_free =
                state.members.get(&member.subscriber).is_none_or(|here| here.member.owner == member.owner);
            // It gets its place when the broker can give it one.
            if is_free {
                let until = token.has_gone.load(Ordering::SeqCst).then(|| Instant::now() + self.grace);
                let name = member.subscriber.clone();
                if let Some(before) = state.members.insert(name, Here { member, token, until }) {
                    before.token.end();
                }
            }
            let _ = answer.send(if is_free { Attended::Gone } else { Attended::Taken });
        }
        for change in changes {
            if let Change::Enter { member, .. } = change {
                state.retell.push_back(member.subscriber.clone());
            }
        }
    }

    /// Compares with what the broker knows; whether the broker may count somebody here whom nobody knows.
    fn compare(&self, found: Attendance) -> bool {
        let mut state = self.state();
        let told = state.told();
        state.has_ghosts |= found.has_ghosts;
        if found.own != told {
            state.retell = state.members.keys().cloned().collect();
        }
        let has_surplus = found.own > told;
        // What is under way looks like it for a moment.
        let is_lasting = has_surplus && state.has_surplus;
        state.has_surplus = has_surplus;
        drop(state);
        self.changed.notify_one();
        is_lasting
    }

    /// Has whom the broker counts here leave if nobody here knows them.
    async fn find_strays(&self, hub: &Hub) -> Result<(), BrokerError> {
        let mut from = None;
        loop {
            let page = hub.broker.members(&self.room, from.as_deref(), BATCH_CHANGES).await?;
            let mut state = self.state();
            for shown in page.members.into_iter().filter(|shown| shown.is_here) {
                let known = state.members.get(&shown.subscriber);
                let is_asked = state.asked.iter().any(|asked| asked.member.subscriber == shown.subscriber);
                if known.is_none() && !is_asked {
                    state.strays.push((shown.subscriber, shown.stamp));
                }
            }
            drop(state);
            from = page.next;
            if from.is_none() {
                self.changed.notify_one();
                return Ok(());
            }
        }
    }
}

impl Hub {
    /// Whether it is known who is in such a room.
    pub fn keeps_presence(&self, room: &RoomName) -> bool {
        self.presence.is_kept(room)
    }

    /// Puts a subscriber on the roster of a room. None if the name is another owner's. An earlier stream of the same one ends.
    pub async fn check_in(self: &Arc<Self>, room: &RoomName, member: Member) -> Option<Stay> {
        let subscriber = member.subscriber.clone();
        let member = Arc::new(member);
        let token = Arc::<Token>::default();
        let (answer, answered) = oneshot::channel();
        let roll = loop {
            let roll = self.roll(room);
            let mut state = roll.state();
            if state.closed {
                continue;
            }
            state.asked.push(Asked { member, token: token.clone(), answer });
            drop(state);
            break roll;
        };
        roll.changed.notify_one();
        // From here on it is given up again however this ends.
        let stay = Stay { roll, subscriber, token };
        match timeout(ENTER_LIMIT, answered).await {
            Ok(Ok(Attended::Taken | Attended::Superseded)) => None,
            Ok(Ok(Attended::Stays(_) | Attended::Gone) | Err(_)) | Err(_) => Some(stay),
        }
    }

    fn roll(self: &Arc<Self>, room: &RoomName) -> Arc<Roll> {
        let mut rooms = self.presence.rooms();
        let roll = rooms.entry(room.clone()).or_insert_with(|| {
            let roll = Arc::new(Roll {
                room: room.clone(),
                grace: self.presence.settings.grace,
                state: Mutex::default(),
                changed: Notify::new(),
            });
            self.tasks.spawn(roll.clone().keep(self.clone()));
            roll
        });
        roll.clone()
    }

    /// Has who comes and goes stand in a room's log from now on.
    pub async fn watch(self: &Arc<Self>, room: &RoomName) -> Watch {
        *self.presence.watched().entry(room.clone()).or_default() += 1;
        let watch = Watch { hub: self.clone(), room: room.clone() };
        // It is told again with the next comparison.
        if timeout(ENTER_LIMIT, self.attend(room, &[])).await.map_or(true, |attended| attended.is_err()) {
            tracing::debug!(%room, "that somebody wants to see who comes and goes could not be told");
        }
        watch
    }

    async fn attend(&self, room: &RoomName, changes: &[Change]) -> Result<Step, BrokerError> {
        let known = self.known.of(room);
        let attend = self.broker.attend(room, &known, changes, self.presence.is_watched(room));
        answered("who is in a room", attend).await
    }

    /// How many members this replica has, of all rooms.
    pub fn members_here(&self) -> usize {
        self.presence.rooms().values().map(|roll| roll.state().members.len()).sum()
    }

    /// Compares the broker's roster with what is here: what it has lost it is told again, and whom a replica left that is gone
    /// leaves.
    pub(super) async fn compare_rosters(&self) {
        let mut ticks = interval(self.settings.report_every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let mut names: Vec<_> = self.presence.rooms().keys().cloned().collect();
            let watched: Vec<_> = self.presence.watched().keys().cloned().collect();
            names.extend(watched.into_iter().filter(|room| self.presence.roll(room).is_none()));
            // All together, since what is known of replicas that are gone is known of all.
            let Ok(Ok(found)) = timeout(CALL_LIMIT, self.broker.attendance(&names)).await else { continue };
            for (room, found) in names.iter().zip(found) {
                let is_unwatched = self.presence.is_watched(room) && !found.watched;
                let roll = self.presence.roll(room);
                if is_unwatched || (found.has_ghosts && roll.is_none()) {
                    let _ = self.attend(room, &[]).await;
                }
                if roll.as_ref().is_some_and(|roll| roll.compare(found))
                    && let Some(roll) = roll
                {
                    let _ = timeout(CALL_LIMIT, roll.find_strays(self)).await;
                }
            }
        }
    }
}
