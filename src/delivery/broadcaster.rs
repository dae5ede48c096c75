//! The broadcasters of a room: each is a task that writes every event to the sockets of its streams, which are streams
//! of this one room that are caught up with it, up to [`MAX_STREAMS`].
//!
//! It handles the common case only. A stream gets a task of its own again if its socket does not take a whole write,
//! it may have missed an event, or its lifetime is over.

mod batch;
mod inbox;

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use slab::Slab;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use self::batch::EncodedBatch;
use self::inbox::{Inbox, StreamWaker};
use super::Delivery;
use super::connection::{StreamConn, serve_alone};
use super::format::{heartbeat_chunk, position_chunk};
use crate::live::{CaughtUp, GroupCursor, GroupPoll, LiveEvent};
use crate::log::LogView;
use crate::names::{Bookmark, EventId, Topic};
use crate::shutdown::Tasks;
use crate::timestamp;

/// Streams of one broadcaster. A larger room has several broadcasters, so that several processors can write.
const MAX_STREAMS: usize = 4096;
/// Writes, or tasks started, after which other tasks get a turn. Events that arrive meanwhile are written together.
const WRITES_PER_TURN: usize = 64;

/// The broadcasters of a replica.
pub struct Broadcasters {
    delivery: Arc<Delivery>,
    tasks: Tasks,
    cut: CancellationToken,
    topics: Mutex<HashMap<Topic, Vec<Arc<Inbox>>>>,
}

impl Broadcasters {
    /// No broadcasters yet. Their tasks, and those of streams, will run under `tasks`.
    pub fn new(delivery: Arc<Delivery>, tasks: &Tasks) -> Arc<Self> {
        let (tasks, cut) = (tasks.clone(), CancellationToken::new());
        Arc::new(Self { delivery, tasks, cut, topics: Mutex::default() })
    }

    /// Cuts off every stream that has a task of its own, now or later.
    pub fn cut(&self) {
        self.cut.cancel();
    }

    /// Gives a stream a task of its own. `rest` is the rest of an earlier write.
    pub(super) fn serve_alone(self: &Arc<Self>, conn: StreamConn, rest: Bytes) {
        self.tasks.spawn(serve_alone(conn, rest, self.clone(), self.cut.clone()));
    }

    /// Hands a stream that is caught up to a broadcaster of its room.
    pub(super) fn join(self: &Arc<Self>, conn: StreamConn, caught_up: CaughtUp) {
        let mut topics = self.topics();
        let topic = conn.state.session.topic();
        let inboxes = topics.entry(topic.clone()).or_default();
        let inbox = inboxes.iter().find(|inbox| inbox.contents().streams < MAX_STREAMS).cloned();
        let inbox = inbox.unwrap_or_else(|| {
            let inbox = Arc::new(Inbox::default());
            inboxes.push(inbox.clone());
            let broadcaster = Broadcaster {
                broadcasters: self.clone(),
                inbox: inbox.clone(),
                topic: topic.clone(),
                cursor: conn.state.session.group_cursor(caught_up),
                streams: Slab::new(),
                due: Instant::now() + self.longest_pause(),
                retry_at: None,
                checked_terminations: conn.state.session.checked_terminations(),
            };
            self.tasks.spawn(broadcaster.run());
            inbox
        });
        // While the topics are locked: an empty broadcaster closes under the same lock, and only if its inbox is empty.
        inbox.add(conn, caught_up);
    }

    /// How long a broadcaster waits for a deadline, if none of its streams has an earlier one.
    fn longest_pause(&self) -> Duration {
        self.delivery.settings.heartbeat
    }

    fn topics(&self) -> MutexGuard<'_, HashMap<Topic, Vec<Arc<Inbox>>>> {
        self.topics.lock().expect("no holder of the lock panics")
    }
}

struct GroupStream {
    conn: StreamConn,
    waker: Arc<StreamWaker>,
    /// Whether it carries the block of every published event, except those that exclude it.
    has_no_selection: bool,
}

/// Writes to all streams of a topic that are at the same position. It owns that position and every stream's
/// heartbeat. A stream's session decides which events the stream gets, and ends the stream.
struct Broadcaster {
    broadcasters: Arc<Broadcasters>,
    inbox: Arc<Inbox>,
    topic: Topic,
    cursor: GroupCursor,
    streams: Slab<GroupStream>,
    /// When a heartbeat may be due, or the end of a stream's lifetime.
    due: Instant,
    /// When the log may be read again after a failed read.
    retry_at: Option<Instant>,
    /// How many terminations were checked. None of them applies to one of its streams.
    checked_terminations: u64,
}

/// Counts the writes of a broadcaster, and gives other tasks their turns in between.
#[derive(Default)]
struct Turns(usize);

impl Turns {
    async fn count(&mut self) {
        self.0 += 1;
        if self.0 == WRITES_PER_TURN {
            self.0 = 0;
            yield_now().await;
        }
    }
}

impl Broadcaster {
    async fn run(mut self) {
        let broadcasters = self.broadcasters.clone();
        let delivery = &broadcasters.delivery;
        let mut streams_end = pin!(delivery.drain.streams_end());
        let mut is_ending = false;
        let mut alarm = pin!(sleep_until(self.due));
        loop {
            self.write_new().await;
            self.accept_new();
            self.handle_wakeups();
            if is_ending {
                self.release_all().await;
            }
            if self.streams.is_empty() && self.close() {
                return;
            }
            let next = self.retry_at.map_or(self.due, |at| at.min(self.due));
            if alarm.deadline() != next {
                alarm.as_mut().reset(next);
            }
            tokio::select! {
                biased;
                () = &mut streams_end, if !is_ending => is_ending = true,
                () = &mut alarm => self.handle_deadlines().await,
                () = self.inbox.changed() => {}
                () = self.cursor.changed(), if self.retry_at.is_none() => {}
                () = delivery.moderation.terminations_beyond(self.checked_terminations) => {
                    self.apply_terminations().await;
                }
            }
        }
    }

    /// Ends the broadcaster, unless a stream waits in its inbox. Returns whether it has ended.
    fn close(&self) -> bool {
        let mut topics = self.broadcasters.topics();
        if !self.inbox.contents().joining.is_empty() {
            return false;
        }
        if let Some(inboxes) = topics.get_mut(&self.topic) {
            inboxes.retain(|inbox| !Arc::ptr_eq(inbox, &self.inbox));
            if inboxes.is_empty() {
                topics.remove(&self.topic);
            }
        }
        true
    }

    /// Writes new events until there are none left.
    async fn write_new(&mut self) {
        if self.retry_at.is_some_and(|at| at > Instant::now()) {
            return;
        }
        self.retry_at = None;
        loop {
            let poll = match self.cursor.poll() {
                GroupPoll::NeedsLog => {
                    let poll = self.cursor.read_log(self.view()).await;
                    // The read may have lasted beyond the end of a stream's lifetime.
                    self.handle_deadlines().await;
                    poll
                }
                poll => poll,
            };
            // Before the events are written: a terminated stream gets nothing more.
            if self.broadcasters.delivery.moderation.terminations() != self.checked_terminations {
                self.apply_terminations().await;
            }
            match poll {
                GroupPoll::Events(events) => {
                    let before = self.cursor.position();
                    self.cursor.advance(&events);
                    self.write(&events, before).await;
                    // In a room that is never quiet, this loop does not end, so everything else has to be handled
                    // here too.
                    self.handle_deadlines().await;
                    self.accept_new();
                    self.handle_wakeups();
                    if self.broadcasters.delivery.drain.is_ending_streams() {
                        return self.release_all().await;
                    }
                }
                GroupPoll::PollEach => return self.release_all().await,
                GroupPoll::RetryAt(at) => return self.retry_at = Some(at),
                GroupPoll::Nothing | GroupPoll::NeedsLog => return,
            }
        }
    }

    /// What its streams get. If only some of them get presence events, and some of these were dropped, each stream has to ask
    /// for itself.
    fn view(&self) -> LogView {
        let sees_all = |(_, stream): (usize, &GroupStream)| stream.conn.state.session.view() == LogView::All;
        if self.streams.iter().any(sees_all) { LogView::All } else { LogView::Messages }
    }

    /// Writes events to all streams, which were at the position `before`.
    async fn write(&mut self, events: &[Arc<LiveEvent>], before: EventId) {
        let batch = EncodedBatch::new(events, self.cursor.base());
        let now = Instant::now();
        let (mut turns, mut delivered) = (Turns::default(), 0);
        for slot in 0..self.streams.capacity() {
            let count = match self.streams.get_mut(slot) {
                None => 0,
                // The common case touches as little memory of each stream as possible: its socket and its heartbeat.
                Some(stream) if stream.has_no_selection && !batch.is_selective => {
                    stream.conn.heartbeat.sent(now);
                    self.try_write(slot, &batch.bytes);
                    events.len()
                }
                Some(stream) if stream.conn.state.session.is_page() => {
                    let is_answered = events.iter().any(|event| stream.conn.state.session.wants(event));
                    if is_answered {
                        // The stream makes its page itself.
                        self.release_at(slot, before, Bytes::new());
                        turns.count().await;
                    }
                    0
                }
                Some(_) => self.write_selected(slot, &batch, now),
            };
            delivered += count;
            if count > 0 {
                turns.count().await;
            }
        }
        let metrics = &self.broadcasters.delivery.metrics;
        metrics.delivered(delivered as u64);
        if let Some(lag) = events.last().and_then(|event| timestamp::age(&event.event().published_at)) {
            metrics.lagged(lag);
        }
    }

    /// Writes to a stream those events of a batch that it gets. Returns how many these are.
    fn write_selected(&mut self, slot: usize, batch: &EncodedBatch<'_>, now: Instant) -> usize {
        let Some(GroupStream { conn, .. }) = self.streams.get_mut(slot) else { return 0 };
        let (bytes, count) = batch.for_session(&conn.state.session);
        if count == 0 {
            conn.heartbeat.skipped();
            return 0;
        }
        conn.heartbeat.sent(now);
        self.try_write(slot, &bytes);
        count
    }

    /// Writes to a stream. A stream whose socket does not take all of it at once gets a task of its own for the rest.
    fn try_write(&mut self, slot: usize, bytes: &Bytes) {
        let Some(GroupStream { conn, .. }) = self.streams.get(slot) else { return };
        match conn.socket.try_write(bytes) {
            Ok(written) if written == bytes.len() => {}
            Ok(written) => self.release(slot, bytes.slice(written..)),
            Err(_) => drop(self.remove(slot)),
        }
    }

    /// Accepts the streams that wait in the inbox.
    fn accept_new(&mut self) {
        let joining = std::mem::take(&mut self.inbox.contents().joining);
        for (conn, caught_up) in joining {
            if self.streams.is_empty() {
                // The topic may have been dropped and opened again since the cursor was made.
                self.cursor = conn.state.session.group_cursor(caught_up);
            }
            if self.cursor.is_behind(&caught_up) {
                // The next write brings the others to the stream's position. Until then, the stream waits.
                self.inbox.contents().joining.push((conn, caught_up));
            } else if conn.state.session.checked_terminations() < self.checked_terminations {
                // The broadcaster has passed terminations that may apply to the stream. The stream checks them itself.
                self.inbox.contents().streams -= 1;
                self.broadcasters.serve_alone(conn, Bytes::new());
            } else {
                self.accept(conn, caught_up);
            }
        }
    }

    /// Accepts a stream. Writes to it the events between its position and that of the group.
    fn accept(&mut self, mut conn: StreamConn, caught_up: CaughtUp) {
        let missed = self.cursor.catch_up(&caught_up);
        self.due = self.due.min(conn.heartbeat.due()).min(conn.state.session.ends_at());
        let entry = self.streams.vacant_entry();
        let slot = entry.key();
        let stream_waker = Arc::new(StreamWaker { inbox: self.inbox.clone(), slot });
        let waker = stream_waker.clone().into();
        let is_connected = conn.socket.watch(&waker);
        let is_superseded = conn.state.session.is_superseded(&waker);
        let has_no_selection = conn.state.session.has_no_selection();
        let is_page = conn.state.session.is_page();
        entry.insert(GroupStream { conn, waker: stream_waker, has_no_selection });
        match missed.as_deref() {
            _ if !is_connected => drop(self.remove(slot)),
            // The stream keeps its own position, which may be behind that of the group.
            _ if is_superseded => self.hand_back(slot, Bytes::new()),
            None => self.hand_back(slot, Bytes::new()),
            Some([]) => {}
            // It makes its page itself.
            Some(_) if is_page => self.hand_back(slot, Bytes::new()),
            Some(missed) => {
                let batch = EncodedBatch::new(missed, self.cursor.base());
                let count = self.write_selected(slot, &batch, Instant::now());
                self.broadcasters.delivery.metrics.delivered(count as u64);
            }
        }
    }

    /// Releases the streams that a termination applies to.
    async fn apply_terminations(&mut self) {
        let before = self.checked_terminations;
        let now = self.broadcasters.delivery.moderation.terminations();
        let mut turns = Turns::default();
        for slot in 0..self.streams.capacity() {
            if self.streams.get(slot).is_some_and(|stream| stream.conn.state.session.is_terminated(before)) {
                self.release(slot, Bytes::new());
                turns.count().await;
            }
        }
        self.checked_terminations = now;
    }

    /// Handles the streams that were woken: by their sockets, or by a newer presence session.
    fn handle_wakeups(&mut self) {
        let woken = std::mem::take(&mut self.inbox.contents().woken);
        for slot in woken {
            let Some(GroupStream { conn, waker, .. }) = self.streams.get_mut(slot) else { continue };
            let waker = waker.clone().into();
            if !conn.socket.watch(&waker) {
                drop(self.remove(slot));
            } else if conn.state.session.is_superseded(&waker) {
                self.release(slot, Bytes::new());
            }
        }
    }

    /// Sends the heartbeats that are due. Releases streams whose lifetime is over.
    async fn handle_deadlines(&mut self) {
        let now = Instant::now();
        if now < self.due {
            return;
        }
        let comment = heartbeat_chunk();
        // The same for all: they are at the group's position.
        let position = Bookmark { id: self.cursor.position(), base: self.cursor.base() };
        let mut position_bytes = None;
        let (mut turns, mut due) = (Turns::default(), now + self.broadcasters.longest_pause());
        for slot in 0..self.streams.capacity() {
            let Some(GroupStream { conn, .. }) = self.streams.get_mut(slot) else { continue };
            let ends_at = conn.state.session.ends_at();
            if ends_at <= now {
                self.release(slot, Bytes::new());
                turns.count().await;
                continue;
            }
            let bytes = match &conn.heartbeat {
                heartbeat if !heartbeat.is_due_with_others(now) => None,
                heartbeat if heartbeat.gives_position() => {
                    Some(position_bytes.get_or_insert_with(|| position_chunk(position)).clone())
                }
                _ => Some(comment.clone()),
            };
            if bytes.is_some() {
                conn.heartbeat.sent(now);
            }
            due = due.min(conn.heartbeat.due()).min(ends_at);
            if let Some(bytes) = bytes {
                self.try_write(slot, &bytes);
                turns.count().await;
            }
        }
        self.due = due;
    }

    async fn release_all(&mut self) {
        let mut turns = Turns::default();
        for slot in 0..self.streams.capacity() {
            self.release(slot, Bytes::new());
            turns.count().await;
        }
    }

    /// Gives a stream that is at the group's position a task of its own. `rest` is the rest of a write.
    fn release(&mut self, slot: usize, rest: Bytes) {
        self.release_at(slot, self.cursor.position(), rest);
    }

    /// Gives a stream that is at this position a task of its own.
    fn release_at(&mut self, slot: usize, position: EventId, rest: Bytes) {
        if let Some(stream) = self.streams.get_mut(slot) {
            stream.conn.state.session.advance_to(position, self.checked_terminations);
            self.hand_back(slot, rest);
        }
    }

    /// Gives a stream a task of its own, at the position of its session.
    fn hand_back(&mut self, slot: usize, rest: Bytes) {
        if let Some(GroupStream { conn, .. }) = self.remove(slot) {
            self.broadcasters.serve_alone(conn, rest);
        }
    }

    fn remove(&mut self, slot: usize) -> Option<GroupStream> {
        let stream = self.streams.try_remove(slot)?;
        self.inbox.contents().streams -= 1;
        Some(stream)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::http::test_app;
    use crate::live::{Start, test_event};
    use crate::log::LogView;
    use crate::names::RoomName;
    use crate::rate_limit::RateKey;

    #[tokio::test]
    async fn a_group_cursor_delivers_an_event_that_came_between_the_streams_position_and_its_creation() {
        let app = test_app();
        let topic = Topic::from(RoomName::new("a").unwrap());
        let subscription =
            app.live.subscribe(vec![(topic.clone(), Start::Now)], LogView::All, None, |_| true).await.unwrap();
        let caught_up = subscription.caught_up().expect("the room is quiet");
        let event = test_event("x");
        app.log.append(&topic, &event, None, &RateKey::All).await.unwrap();
        while subscription.caught_up().is_some() {
            yield_now().await;
        }
        let mut cursor = subscription.group_cursor(caught_up);
        timeout(Duration::from_secs(30), cursor.changed()).await.expect("a new cursor reports a change at once");
        let GroupPoll::Events(events) = cursor.poll() else { panic!("the event follows") };
        assert_eq!(events.len(), 1);
        assert_ne!(cursor.position(), events[0].id(), "no stream has got the event yet");
        cursor.advance(&events);
        assert_eq!(cursor.position(), events[0].id());
    }
}
