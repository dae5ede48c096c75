//! A stream as text: what is sent to one subscriber, and why it ends. When it is sent is for the task that serves it.

use std::sync::Arc;
use std::task::Waker;
use std::time::SystemTime;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

use super::format::{StreamOpen, is_room, opened_rooms};
use super::{Delivery, EndReason, StreamFormat, Subscriber};
use crate::live::{CaughtUp, GroupCursor, LiveEvent, Subscription, Update};
use crate::moderation::Termination;
use crate::names::{EventId, RoomName, Topic};

/// A stream as text. Everything that waits goes out together.
pub struct Session {
    delivery: Arc<Delivery>,
    subscription: Subscription,
    subscriber: Subscriber,
    format: StreamFormat,
    phase: Phase,
    /// When the replica leaves, the stream's place among the others that end: 0 to 1.
    drain_place: f32,
    /// Terminations that do not apply to it.
    terminations: u64,
    /// When the stream has lived long enough.
    ends_at: Instant,
    /// Whether that is when its token expires.
    ends_with_token: bool,
}

enum Phase {
    Opening,
    Open,
    Ended,
}

/// When a stream's next heartbeat is due, and whether it has to tell the position. The task that serves the stream owns it.
pub(super) struct Heartbeat {
    due: Instant,
    /// The position has moved on, but nothing that was sent says so.
    has_moved: bool,
}

impl Heartbeat {
    pub(super) fn new(due: Instant) -> Self {
        Self { due, has_moved: false }
    }

    /// Something that tells the position was sent; the next heartbeat is due then.
    pub(super) fn sent(&mut self, next: Instant) {
        *self = Self::new(next);
    }

    /// The stream has passed an event that its subscriber does not get.
    pub(super) fn skipped(&mut self) {
        self.has_moved = true;
    }

    pub(super) fn has_moved(&self) -> bool {
        self.has_moved
    }

    pub(super) fn due(&self) -> Instant {
        self.due
    }
}

impl Session {
    /// A stream that ends when its caller's token does, at the latest. `terminations` are those before it was opened.
    pub fn new(
        delivery: Arc<Delivery>,
        subscription: Subscription,
        subscriber: Subscriber,
        format: StreamFormat,
        terminations: u64,
    ) -> Self {
        delivery.metrics.stream_opened();
        // Spread, so that streams that opened together do not end together.
        let lifetime = delivery.settings.lifetime.mul_f64(fastrand::f64().mul_add(0.5, 0.75));
        let expires_at = subscriber.identity.expires_at;
        let left = expires_at.map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
        Self {
            ends_with_token: left.is_some_and(|left| left < lifetime),
            ends_at: Instant::now() + left.map_or(lifetime, |left| left.min(lifetime)),
            delivery,
            subscription,
            subscriber,
            format,
            phase: Phase::Opening,
            drain_place: fastrand::f32(),
            terminations,
        }
    }

    /// The heartbeat of a stream that has just sent something.
    pub(super) fn heartbeat(&self) -> Heartbeat {
        Heartbeat::new(self.next_heartbeat())
    }

    fn next_heartbeat(&self) -> Instant {
        Instant::now() + self.delivery.settings.heartbeat
    }

    /// The next bytes to send; None after the stream's end.
    pub(super) async fn next(&mut self, heartbeat: &mut Heartbeat) -> Option<Bytes> {
        loop {
            let bytes = self.step(heartbeat).await?;
            if !bytes.is_empty() {
                return Some(bytes);
            }
        }
    }

    /// The next bytes to send. They are empty if the stream has only moved on: it may be caught up with its room now.
    pub(super) async fn step(&mut self, heartbeat: &mut Heartbeat) -> Option<Bytes> {
        match self.phase {
            Phase::Ended => return None,
            Phase::Opening => return Some(self.open()),
            Phase::Open => {}
        }
        // A client that was slow to take the last write gets nothing more after its time.
        if self.is_over(Instant::now()) {
            // With an expired token there would be no other stream.
            return Some(self.end(if self.ends_with_token {
                EndReason::TokenExpired
            } else {
                EndReason::Lifetime
            }));
        }
        let mut seen = self.terminations;
        let termination = self.termination(&mut seen);
        self.terminations = seen;
        if let Some(termination) = termination {
            return Some(self.terminate(&termination));
        }
        let delivery = self.delivery.clone();
        let bytes = tokio::select! {
            // What ends the stream comes before everything else.
            biased;
            () = delivery.moderation.terminations_beyond(self.terminations) => return Some(Bytes::new()),
            () = self.subscriber.superseded() => Some(self.end(EndReason::Superseded)),
            () = delivery.drain.reaches(self.drain_place) => Some(self.end(EndReason::Draining)),
            () = sleep_until(self.ends_at) => return Some(Bytes::new()),
            update = self.subscription.next() => self.write(&update),
            () = sleep_until(heartbeat.due()) => Some(self.beat(heartbeat)),
        };
        if bytes.is_some() {
            heartbeat.sent(self.next_heartbeat());
        } else {
            heartbeat.skipped();
        }
        Some(bytes.unwrap_or_default())
    }

    /// The stream's first block.
    pub(super) fn open(&mut self) -> Bytes {
        self.phase = Phase::Open;
        let left = self.ends_at.saturating_duration_since(Instant::now());
        let open = StreamOpen {
            subscriber: &self.subscriber.id,
            replica: &self.delivery.replica,
            expires_at: self.ends_with_token.then(|| rfc3339(SystemTime::now() + left)),
            rooms: opened_rooms(self.subscription.opening()),
        };
        self.format.open(self.delivery.settings.retry, &self.last_id(), &open)
    }

    /// Where the stream is, if a broadcaster can serve it: it has nothing to be told now, and its blocks are the room's.
    pub(super) fn caught_up(&self, heartbeat: &Heartbeat) -> Option<CaughtUp> {
        let is_shared = matches!(self.phase, Phase::Open) && self.format.is_shared();
        let is_due = || {
            heartbeat.due().min(self.ends_at) <= Instant::now()
                || self.delivery.drain.ends_streams_now()
                || self.delivery.moderation.terminations() != self.terminations
                || self.subscriber.is_superseded(Waker::noop())
        };
        (is_shared && !is_due()).then(|| self.subscription.caught_up()).flatten()
    }

    /// A cursor for all streams of this room that are at the same place.
    pub(super) fn group_cursor(&self, place: CaughtUp) -> GroupCursor {
        self.subscription.group_cursor(place)
    }

    /// The topic of a stream of one.
    pub(super) fn topic(&self) -> &Topic {
        self.subscription.topic(0)
    }

    /// A broadcaster has brought the stream to a position, and past terminations that do not apply to it.
    pub(super) fn advance_to(&mut self, position: EventId, terminations: u64) {
        self.subscription.advance_to(position);
        self.terminations = self.terminations.max(terminations);
    }

    /// Terminations that do not apply to it.
    pub(super) fn terminations(&self) -> u64 {
        self.terminations
    }

    /// Whether one of the terminations after so many applies to it.
    pub(super) fn is_terminated(&self, mut seen: u64) -> bool {
        self.termination(&mut seen).is_some()
    }

    fn termination(&self, seen: &mut u64) -> Option<Termination> {
        let is_in = |room: &RoomName| self.subscription.positions().any(|(topic, _)| is_room(topic, room));
        self.delivery.moderation.termination(seen, is_in, &self.subscriber.stream_identity())
    }

    /// Ends the stream. A ban of its subscriber id is extended to its owner.
    fn terminate(&mut self, termination: &Termination) -> Bytes {
        if let Termination::Banned(removal) = termination {
            self.delivery.moderation.ban_owner(removal, &self.subscriber.stream_identity());
        }
        self.subscriber.leave();
        self.end(match termination {
            Termination::Removed => EndReason::Removed,
            Termination::Banned(_) => EndReason::Banned,
            Termination::Revoked => EndReason::TokenRevoked,
        })
    }

    /// Whether the subscriber gets every event, but for those that except it.
    pub(super) fn wants_all(&self) -> bool {
        self.subscriber.wants_all()
    }

    /// Whether the subscriber gets an event.
    pub(super) fn wants(&self, event: &LiveEvent) -> bool {
        self.subscriber.wants(event)
    }

    /// When the stream has lived long enough.
    pub(super) fn ends_at(&self) -> Instant {
        self.ends_at
    }

    /// Whether the stream has lived long enough.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.ends_at <= now
    }

    /// Whether another session has taken its place. If not, the waker is woken when one does.
    pub(super) fn is_superseded(&self, waker: &Waker) -> bool {
        self.subscriber.is_superseded(waker)
    }

    /// The stream's last block.
    fn end(&mut self, reason: EndReason) -> Bytes {
        self.phase = Phase::Ended;
        self.delivery.metrics.stream_ended(reason.name());
        self.format.end(self.delivery.settings.retry, reason, Some(&self.last_id())).into()
    }

    /// What the client sends back if its connection breaks now.
    fn last_id(&self) -> String {
        self.format.id(self.subscription.positions())
    }

    fn write(&self, update: &Update) -> Option<Bytes> {
        match update {
            Update::Gap { index, gap } => {
                self.delivery.metrics.gap(gap.reason.name());
                Some(self.format.gap(&self.last_id(), self.subscription.topic(*index), gap))
            }
            Update::Events { index, events } => self.write_events(*index, events),
        }
    }

    fn write_events(&self, index: usize, events: &[Arc<LiveEvent>]) -> Option<Bytes> {
        let topic = self.subscription.topic(index);
        let mut blocks: Vec<Bytes> = Vec::with_capacity(events.len());
        let mut count = 0;
        for event in events.iter().filter(|event| self.wants(event)) {
            count += 1;
            self.format.event(&mut blocks, topic, event, || {
                // Where the stream is at this event, not after the last of them.
                let positions = self.subscription.positions().enumerate();
                self.format.id(positions.map(|(n, (topic, at))| (topic, if n == index { event.id() } else { at })))
            });
        }
        self.delivery.metrics.delivered(count);
        match blocks.as_slice() {
            [] => None,
            // The common case copies nothing.
            [one] => Some(one.clone()),
            _ => Some(blocks.concat().into()),
        }
    }

    fn beat(&self, heartbeat: &Heartbeat) -> Bytes {
        if heartbeat.has_moved() { self.format.position(&self.last_id()) } else { self.format.heartbeat() }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !matches!(self.phase, Phase::Ended) {
            self.delivery.metrics.stream_ended(EndReason::DISCONNECTED);
        }
    }
}

/// A time, RFC 3339 in UTC with milliseconds.
fn rfc3339(time: SystemTime) -> String {
    let time = jiff::Timestamp::try_from(time).unwrap_or(jiff::Timestamp::MAX);
    format!("{time:.3}")
}
