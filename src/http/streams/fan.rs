//! A room's fan: one task that writes each event to the sockets of all who are level with the room.
//!
//! It does what is common, and hands everything else back: whoever can't take a whole write, may have missed something, has
//! lived long enough, or is to be told its position, is driven by a task of its own again.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Wake;
use std::time::Duration;

use axum::body::Bytes;
use slab::Slab;
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::event_stream::EventStream;
use super::socket::{Line, drive};
use crate::http::App;
use crate::hub::{Ahead, Encoded, Lead, Level};
use crate::room::{Event, RoomName};
use crate::shutdown::Tasks;
use crate::sse::{HEARTBEAT, chunk};

/// Subscribers of one fan. A larger room has several, so that more than one processor can write.
const MOST_MEMBERS: usize = 4096;
/// Writes, or tasks begun, between which others get a turn; events that come meanwhile are written together.
const WRITES_A_TURN: usize = 64;
/// Heartbeats that are due within this part of their interval are sent together.
const BEATS_TOGETHER: u32 = 16;

/// The fans of a replica.
pub struct Fans {
    app: App,
    tasks: Tasks,
    cut: CancellationToken,
    rooms: Mutex<HashMap<RoomName, Vec<Arc<Door>>>>,
}

/// Where a fan is reached.
#[derive(Default)]
struct Door {
    waiting: Mutex<Waiting>,
    knock: Notify,
}

#[derive(Default)]
struct Waiting {
    joining: Vec<(Line, Level)>,
    /// Members whose sockets have something to say.
    woken: Vec<usize>,
    members: usize,
}

/// Wakes a fan for one of its members.
struct Bell {
    door: Arc<Door>,
    member: usize,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.door.waiting().woken.push(self.member);
        self.door.knock.notify_one();
    }
}

impl Door {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("no holder of the lock panics")
    }
}

impl Fans {
    /// None yet; their tasks are among `tasks`.
    pub fn new(app: &App, tasks: &Tasks) -> Arc<Self> {
        let (app, tasks, cut) = (app.clone(), tasks.clone(), CancellationToken::new());
        Arc::new(Self { app, tasks, cut, rooms: Mutex::default() })
    }

    /// Pause after which an idle stream gets a comment.
    fn heartbeat(&self) -> Duration {
        self.app.settings.heartbeat
    }

    /// Gives a stream a task of its own.
    pub(super) fn drive(self: &Arc<Self>, line: Line, rest: Bytes) {
        self.tasks.spawn(drive(line, rest, self.clone(), self.cut.clone()));
    }

    /// Cuts off whoever has a task of its own, and will have one.
    pub fn cut(&self) {
        self.cut.cancel();
    }

    /// Leads a stream that is level with its room.
    pub(super) fn join(self: &Arc<Self>, line: Line, level: Level) {
        let mut rooms = self.rooms();
        let doors = rooms.entry(line.cold.stream.room().clone()).or_default();
        let fan = doors.iter().find(|door| door.waiting().members < MOST_MEMBERS).cloned();
        let door = fan.unwrap_or_else(|| {
            let door = Arc::new(Door::default());
            doors.push(door.clone());
            let fan = Fan {
                fans: self.clone(),
                door: door.clone(),
                room: line.cold.stream.room().clone(),
                lead: line.cold.stream.lead(level),
                members: Slab::new(),
                beat_at: Instant::now() + self.heartbeat(),
                due: Instant::now() + self.heartbeat(),
                ask_at: None,
                orders: line.cold.stream.orders(),
            };
            self.tasks.spawn(fan.run());
            door
        });
        let mut waiting = door.waiting();
        waiting.members += 1;
        waiting.joining.push((line, level));
        door.knock.notify_one();
    }

    fn rooms(&self) -> MutexGuard<'_, HashMap<RoomName, Vec<Arc<Door>>>> {
        self.rooms.lock().expect("no holder of the lock panics")
    }
}

struct Member {
    line: Line,
    bell: Arc<Bell>,
    /// Whether it gets whatever is for everybody.
    takes_all: bool,
    /// It got the last events, which its stream does not know yet.
    is_written: bool,
}

impl Member {
    /// Tells its stream what was written, after which it may be silent until `beat_at`.
    fn settle(&mut self, beat_at: Instant) {
        if std::mem::take(&mut self.is_written) {
            self.line.cold.stream.sent(beat_at);
        }
    }
}

struct Fan {
    fans: Arc<Fans>,
    door: Arc<Door>,
    room: RoomName,
    lead: Lead,
    members: Slab<Member>,
    /// When those who got the last events need a heartbeat.
    beat_at: Instant,
    /// When a member may have to be looked after.
    due: Instant,
    /// When the log may be asked again.
    ask_at: Option<Instant>,
    /// Orders to end streams that were looked at for all.
    orders: u64,
}

/// Events as they are written.
struct Batch<'a> {
    events: &'a [Arc<Encoded>],
    bytes: Bytes,
    /// Whether some are not for everybody.
    except: bool,
}

impl<'a> Batch<'a> {
    fn of(events: &'a [Arc<Encoded>]) -> Self {
        let bytes = match events {
            // The common case copies nothing.
            [one] => one.chunk().clone(),
            _ => concat(events.iter()),
        };
        Self {
            events,
            bytes,
            except: events.iter().any(|event| !event.event().except.is_empty() || event.event().is_presence()),
        }
    }

    /// What one stream gets of it, and how many events that is.
    fn of_stream(&self, stream: &EventStream) -> (Bytes, usize) {
        if !self.except && stream.takes_all() {
            return (self.bytes.clone(), self.events.len());
        }
        let events: Vec<_> = self.events.iter().filter(|event| stream.gets(event)).collect();
        (concat(events.iter().copied()), events.len())
    }
}

fn concat<'a>(events: impl Iterator<Item = &'a Arc<Encoded>>) -> Bytes {
    events.map(|event| &event.chunk()[..]).collect::<Vec<_>>().concat().into()
}

/// How long ago an event was published, by this machine's clock.
fn age(event: &Event) -> Option<Duration> {
    let published: jiff::Timestamp = event.published_at.parse().ok()?;
    Some(jiff::Timestamp::now().duration_since(published).unsigned_abs())
}

/// Counts writes of a fan, and lets others have their turns between.
#[derive(Default)]
struct Turns(usize);

impl Turns {
    async fn count(&mut self) {
        self.0 += 1;
        if self.0 == WRITES_A_TURN {
            self.0 = 0;
            yield_now().await;
        }
    }
}

impl Fan {
    async fn run(mut self) {
        let fans = self.fans.clone();
        let mut ends = pin!(fans.app.drain.ends_streams());
        let mut is_ending = false;
        let mut alarm = pin!(sleep_until(self.due));
        loop {
            self.pass().await;
            self.admit();
            self.attend();
            if is_ending {
                self.release_all().await;
            }
            if self.members.is_empty() && self.leave() {
                return;
            }
            let next = self.ask_at.map_or(self.due, |at| at.min(self.due));
            if alarm.deadline() != next {
                alarm.as_mut().reset(next);
            }
            tokio::select! {
                biased;
                () = &mut ends, if !is_ending => is_ending = true,
                () = &mut alarm => self.look_after().await,
                () = self.door.knock.notified() => {}
                () = self.lead.changed(), if self.ask_at.is_none() => {}
                () = fans.app.hub.ordered_beyond(self.orders) => self.obey().await,
            }
        }
    }

    /// Ends the fan if nobody waits at its door.
    fn leave(&self) -> bool {
        let mut rooms = self.fans.rooms();
        if !self.door.waiting().joining.is_empty() {
            return false;
        }
        if let Some(doors) = rooms.get_mut(&self.room) {
            doors.retain(|door| !Arc::ptr_eq(door, &self.door));
            if doors.is_empty() {
                rooms.remove(&self.room);
            }
        }
        true
    }

    /// Writes what is new, until there is nothing more.
    async fn pass(&mut self) {
        if self.ask_at.is_some_and(|at| at > Instant::now()) {
            return;
        }
        self.ask_at = None;
        loop {
            let ahead = match self.lead.look() {
                Ahead::Unsure => {
                    let found = self.lead.ask().await;
                    // That may have taken long enough for somebody's time to be over.
                    self.look_after().await;
                    found
                }
                ahead => ahead,
            };
            // Before anything is told: whom an order is about does not hear what came of it.
            if self.fans.app.hub.orders() != self.orders {
                self.obey().await;
            }
            match ahead {
                Ahead::Events(events) => {
                    self.lead.go_past(&events);
                    self.write(&events).await;
                    // In a room that is never quiet, it would else be nobody's turn.
                    self.look_after().await;
                    self.admit();
                    self.attend();
                    if self.fans.app.drain.ends_streams_now() {
                        return self.release_all().await;
                    }
                }
                Ahead::Parted => return self.release_all().await,
                Ahead::Later(at) => return self.ask_at = Some(at),
                Ahead::Nothing | Ahead::Unsure => return,
            }
        }
    }

    async fn write(&mut self, events: &[Arc<Encoded>]) {
        let batch = Batch::of(events);
        let beat_at = Instant::now() + self.fans.heartbeat();
        let before = std::mem::replace(&mut self.beat_at, beat_at);
        let (mut turns, mut delivered) = (Turns::default(), 0);
        for slot in 0..self.members.capacity() {
            let given = match self.members.get_mut(slot) {
                None => 0,
                // The common case touches as little memory of each member as there is: its socket.
                Some(member) if member.takes_all && !batch.except => {
                    member.is_written = true;
                    self.offer(slot, &batch.bytes);
                    events.len()
                }
                Some(member) => {
                    member.settle(before);
                    self.give(slot, &batch, beat_at)
                }
            };
            delivered += given;
            if given > 0 {
                turns.count().await;
            }
        }
        let metrics = &self.fans.app.metrics;
        metrics.delivered(delivered as u64);
        if let Some(lag) = events.last().and_then(|event| age(event.event())) {
            metrics.lagged(lag);
        }
    }

    /// Writes to a member what it gets of some events. How many that were.
    fn give(&mut self, slot: usize, batch: &Batch<'_>, beat_at: Instant) -> usize {
        let Some(Member { line, .. }) = self.members.get_mut(slot) else { return 0 };
        let (bytes, count) = batch.of_stream(&line.cold.stream);
        if count == 0 {
            line.cold.stream.skip();
            return 0;
        }
        line.cold.stream.sent(beat_at);
        self.offer(slot, &bytes);
        count
    }

    /// Writes to a member. Whoever does not take all of it at once takes the rest in a task of its own.
    fn offer(&mut self, slot: usize, bytes: &Bytes) {
        let Some(Member { line, .. }) = self.members.get(slot) else { return };
        match line.socket.offer(bytes) {
            Ok(written) if written == bytes.len() => {}
            Ok(written) => self.release(slot, bytes.slice(written..)),
            Err(_) => self.forget(slot),
        }
    }

    /// Takes in those who wait at the door.
    fn admit(&mut self) {
        let joining = std::mem::take(&mut self.door.waiting().joining);
        for (mut line, level) in joining {
            if self.members.is_empty() {
                // The room may have been let go of and opened again since.
                self.lead = line.cold.stream.lead(level);
            }
            if self.lead.is_behind(&level) {
                // The next pass will bring the others there.
                self.door.waiting().joining.push((line, level));
                continue;
            }
            if line.cold.stream.orders() < self.orders {
                // It has not looked at orders that the others are past.
                self.door.waiting().members -= 1;
                self.fans.drive(line, Bytes::new());
                continue;
            }
            let missed = self.lead.catch_up(&level);
            self.due = self.due.min(line.cold.stream.due());
            let entry = self.members.vacant_entry();
            let slot = entry.key();
            let bell = Arc::new(Bell { door: self.door.clone(), member: slot });
            let waker = bell.clone().into();
            let is_there = line.socket.watch(&waker);
            let is_superseded = line.cold.stream.is_superseded(&waker);
            let takes_all = line.cold.stream.takes_all();
            entry.insert(Member { line, bell, takes_all, is_written: false });
            match missed.as_deref() {
                _ if !is_there => self.forget(slot),
                _ if is_superseded => self.part(slot, Bytes::new()),
                None => self.part(slot, Bytes::new()),
                Some([]) => {}
                // What has come since it was level.
                Some(missed) => {
                    let given = self.give(slot, &Batch::of(missed), Instant::now() + self.fans.heartbeat());
                    self.fans.app.metrics.delivered(given as u64);
                }
            }
        }
    }

    /// Lets go of those whom an order is about.
    async fn obey(&mut self) {
        let before = self.orders;
        let now = self.fans.app.hub.orders();
        let mut turns = Turns::default();
        for slot in 0..self.members.capacity() {
            if self.members.get(slot).is_some_and(|member| member.line.cold.stream.is_ordered(before)) {
                self.release(slot, Bytes::new());
                turns.count().await;
            }
        }
        self.orders = now;
    }

    /// Looks at the sockets that have something to say.
    fn attend(&mut self) {
        let woken = std::mem::take(&mut self.door.waiting().woken);
        for slot in woken {
            let Some(Member { line, bell, .. }) = self.members.get_mut(slot) else { continue };
            let waker = bell.clone().into();
            if !line.socket.watch(&waker) {
                self.forget(slot);
            } else if line.cold.stream.is_superseded(&waker) {
                self.release(slot, Bytes::new());
            }
        }
    }

    /// Sends heartbeats, and lets go of those for whom it is time.
    async fn look_after(&mut self) {
        let now = Instant::now();
        if now < self.due {
            return;
        }
        let soon = now + self.fans.heartbeat() / BEATS_TOGETHER;
        let beat_at = now + self.fans.heartbeat();
        let beat = Bytes::from(chunk(HEARTBEAT.as_bytes()));
        let (mut turns, mut due) = (Turns::default(), beat_at);
        for slot in 0..self.members.capacity() {
            let Some(member) = self.members.get_mut(slot) else { continue };
            member.settle(self.beat_at);
            let stream = &mut member.line.cold.stream;
            if stream.is_over(now) || (stream.needs_beat(now) && stream.has_moved()) {
                self.release(slot, Bytes::new());
                turns.count().await;
                continue;
            }
            let beats = stream.needs_beat(soon) && !stream.has_moved();
            if beats {
                stream.sent(beat_at);
            }
            due = due.min(stream.due());
            if beats {
                self.offer(slot, &beat);
                turns.count().await;
            }
        }
        self.due = due;
    }

    async fn release_all(&mut self) {
        let mut turns = Turns::default();
        for slot in 0..self.members.capacity() {
            self.release(slot, Bytes::new());
            turns.count().await;
        }
    }

    /// Gives a member that is where all are a task of its own, with what is left of a write.
    fn release(&mut self, slot: usize, rest: Bytes) {
        if let Some(member) = self.members.get_mut(slot) {
            member.settle(self.beat_at);
            member.line.cold.stream.led_to(self.lead.position(), self.orders);
            self.part(slot, rest);
        }
    }

    fn part(&mut self, slot: usize, rest: Bytes) {
        if let Some(Member { line, .. }) = self.remove(slot) {
            self.fans.drive(line, rest);
        }
    }

    /// A member has gone.
    fn forget(&mut self, slot: usize) {
        drop(self.remove(slot));
    }

    fn remove(&mut self, slot: usize) -> Option<Member> {
        let member = self.members.try_remove(slot)?;
        self.door.waiting().members -= 1;
        Some(member)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::http::fuzz::app;
    use crate::hub::Start;
    use crate::room::Data;

    #[tokio::test]
    async fn what_came_between_a_streams_place_and_its_lead_is_news() {
        let app = app();
        let room = RoomName::new("a").unwrap();
        let subscription = app.hub.subscribe(vec![(room.clone(), Start::Now)]).await.unwrap();
        let level = subscription.level().expect("the room is quiet");
        let event = Event {
            name: None,
            data: Data::Text("x".into()),
            published_at: "2026-01-02T03:04:05.678Z".into(),
            except: Vec::new(),
            publish_id: None,
            traceparent: None,
        };
        app.hub.publish(&room, &event, None).await.unwrap();
        while subscription.level().is_some() {
            yield_now().await;
        }
        let mut lead = subscription.lead(level);
        timeout(Duration::from_secs(30), lead.changed()).await.expect("it is told at once to look");
        let Ahead::Events(events) = lead.look() else { panic!("an event is ahead") };
        assert_eq!(events.len(), 1);
        assert_ne!(lead.position(), events[0].id(), "nobody has got it yet");
        lead.go_past(&events);
        assert_eq!(lead.position(), events[0].id());
    }
}
