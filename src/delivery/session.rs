//! A stream as text: which blocks one subscriber gets, and why its stream ends. The task that serves the stream
//! decides when they are sent.

use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

use super::format::{self, StreamOpen};
use super::heartbeat::Heartbeat;
use super::page::{EventPage, PageEvent, PageGap};
use super::{Delivery, EndReason, Ending, HeartbeatOptions, StreamFormat, Subscriber};
use crate::live::{CaughtUp, GroupCursor, LiveEvent, Subscription, Update, WatchEnd};
use crate::log::{Gap, LogView};
use crate::moderation::Termination;
use crate::names::{Bookmark, EventId, RoomName, Topic};

/// What a stream's request has chosen.
#[derive(Clone, Copy, Debug)]
pub struct SessionOptions {
    /// The format.
    pub format: StreamFormat,
    /// How the response ends.
    pub ending: Ending,
    /// The heartbeats.
    pub heartbeat: HeartbeatOptions,
    /// When the stream ends, if its token does not expire earlier.
    pub lifetime: Duration,
}

/// A stream as text. Blocks that are ready at the same time are sent together.
pub struct StreamSession {
    delivery: Arc<Delivery>,
    subscription: Subscription,
    subscriber: Subscriber,
    format: StreamFormat,
    ending: Ending,
    heartbeat: HeartbeatOptions,
    phase: Phase,
    /// When the stream ends while the replica shuts down, as a part of the drain window: 0 to 1.
    drain_slot: f32,
    /// How many terminations were checked. None of them applies to this stream.
    checked_terminations: u64,
    /// The end of the stream's lifetime.
    ends_at: Instant,
    /// Whether the lifetime ends because the token expires.
    ends_with_token: bool,
}

enum Phase {
    Opening,
    Open,
    /// Whether the connection is to be cut.
    Ended {
        is_cut: bool,
    },
}

impl StreamSession {
    /// A stream that ends when the caller's token expires, or earlier. `checked_terminations` is the number of
    /// terminations before the stream was requested.
    pub fn new(
        delivery: Arc<Delivery>,
        subscription: Subscription,
        subscriber: Subscriber,
        options: SessionOptions,
        checked_terminations: u64,
    ) -> Self {
        delivery.metrics.stream_opened();
        let SessionOptions { format, ending, heartbeat, lifetime } = options;
        let expires_at = subscriber.identity.expires_at;
        let left = expires_at.map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
        Self {
            ends_with_token: left.is_some_and(|left| left < lifetime),
            ends_at: Instant::now() + left.map_or(lifetime, |left| left.min(lifetime)),
            delivery,
            subscription,
            subscriber,
            format,
            ending,
            heartbeat,
            phase: Phase::Opening,
            drain_slot: fastrand::f32(),
            checked_terminations,
        }
    }

    /// The heartbeat of a stream that has just sent a block.
    pub(super) fn heartbeat(&self) -> Heartbeat {
        Heartbeat::new(self.heartbeat)
    }

    /// The next bytes to send. `None` after the end of the stream.
    pub(super) async fn next(&mut self, heartbeat: &mut Heartbeat) -> Option<Bytes> {
        loop {
            let bytes = self.step(heartbeat).await?;
            if !bytes.is_empty() {
                return Some(bytes);
            }
        }
    }

    /// Like [`Self::next`], but returns empty bytes after a step that sends nothing. Such a step may have moved the
    /// stream's position: the stream may now be caught up with its room.
    pub(super) async fn step(&mut self, heartbeat: &mut Heartbeat) -> Option<Bytes> {
        match self.phase {
            Phase::Ended { .. } => return None,
            Phase::Opening => return Some(self.open()),
            Phase::Open => {}
        }
        // A client that took its time with the last write gets no events after the end of the lifetime.
        if self.ends_at <= Instant::now() {
            // With an expired token, the client can't open another stream.
            return Some(self.end(if self.ends_with_token {
                EndReason::TokenExpired
            } else {
                EndReason::Lifetime
            }));
        }
        let mut checked = self.checked_terminations;
        let termination = self.termination(&mut checked);
        self.checked_terminations = checked;
        if let Some(termination) = termination {
            return Some(self.terminate(&termination));
        }
        let delivery = self.delivery.clone();
        let bytes = tokio::select! {
            // Reasons to end the stream come first.
            biased;
            () = delivery.moderation.terminations_beyond(self.checked_terminations) => return Some(Bytes::new()),
            () = self.subscriber.superseded() => Some(self.end(EndReason::Superseded)),
            () = delivery.drain.reaches(self.drain_slot) => Some(self.end(EndReason::Draining)),
            () = sleep_until(self.ends_at) => return Some(Bytes::new()),
            update = self.subscription.next() => self.write(&update),
            () = sleep_until(heartbeat.due()) => Some(self.write_heartbeat(heartbeat)),
        };
        if bytes.is_some() {
            heartbeat.sent(Instant::now());
        } else {
            heartbeat.skipped();
        }
        Some(bytes.unwrap_or_default())
    }

    /// The first block of the stream. Empty if it has none.
    pub(super) fn open(&mut self) -> Bytes {
        self.phase = Phase::Open;
        if self.is_page() {
            return Bytes::new();
        }
        let left = self.ends_at.saturating_duration_since(Instant::now());
        let expires_at = self.ends_with_token.then(|| SystemTime::now() + left);
        let (subscriber, replica) = (&self.subscriber.id, &self.delivery.replica);
        let open = StreamOpen::new(subscriber, replica, self.heartbeat, expires_at, self.subscription.opening());
        format::open_block(self.delivery.settings.retry, &self.last_id(), &open)
    }

    /// The stream's place, if a broadcaster can keep it: nothing is due now, and it gets the room's shared blocks, or nothing
    /// before its page.
    pub(super) fn caught_up(&self, heartbeat: &Heartbeat) -> Option<CaughtUp> {
        let has_broadcasters = matches!(self.phase, Phase::Open)
            && self.format.has_broadcasters()
            && self.subscriber.fields().is_none();
        let is_due = || {
            heartbeat.due().min(self.ends_at) <= Instant::now()
                || self.delivery.drain.is_ending_streams()
                || self.delivery.moderation.terminations() != self.checked_terminations
                || self.subscriber.is_superseded(Waker::noop())
        };
        (has_broadcasters && !is_due()).then(|| self.subscription.caught_up()).flatten()
    }

    /// A cursor for all streams of this room that are at the same place.
    pub(super) fn group_cursor(&self, caught_up: CaughtUp) -> GroupCursor {
        self.subscription.group_cursor(caught_up)
    }

    /// The topic of a stream that has only one.
    pub(super) fn topic(&self) -> &Topic {
        self.subscription.topic(0)
    }

    /// Takes over the work of a broadcaster: it brought the stream to `position`, and checked so many
    /// terminations, of which none applies to the stream.
    pub(super) fn advance_to(&mut self, position: EventId, checked_terminations: u64) {
        self.subscription.advance_to(position);
        self.checked_terminations = self.checked_terminations.max(checked_terminations);
    }

    /// How many terminations were checked for this stream.
    pub(super) fn checked_terminations(&self) -> u64 {
        self.checked_terminations
    }

    /// Whether a termination after the first `checked` ones applies to the stream.
    pub(super) fn is_terminated(&self, mut checked: u64) -> bool {
        self.termination(&mut checked).is_some()
    }

    fn termination(&self, checked: &mut u64) -> Option<Termination> {
        let is_in = |room: &RoomName| self.subscription.bookmarks().any(|(topic, _)| topic.room() == Some(room));
        self.delivery.moderation.termination(checked, is_in, &self.subscriber.stream_identity())
    }

    /// Ends the stream. Extends a ban of its subscriber id to the owner of the id.
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

    /// What the subscriber gets of its room's log.
    pub(super) fn view(&self) -> LogView {
        self.subscriber.view()
    }

    /// Whether the stream carries the shared block of every published event, except those that exclude it by `except`.
    pub(super) fn has_no_selection(&self) -> bool {
        self.format.is_shared() && self.subscriber.has_no_selection()
    }

    /// Whether it waits for events, which it answers with one page.
    pub(super) fn is_page(&self) -> bool {
        matches!(self.format, StreamFormat::Page(_))
    }

    /// Whether the subscriber gets an event.
    pub(super) fn wants(&self, event: &LiveEvent) -> bool {
        self.subscriber.wants(event)
    }

    /// The end of the stream's lifetime.
    pub(super) fn ends_at(&self) -> Instant {
        self.ends_at
    }

    /// Whether a newer session of the same subscriber has replaced this one. If not, the waker is woken when one does.
    pub(super) fn is_superseded(&self, waker: &Waker) -> bool {
        self.subscriber.is_superseded(waker)
    }

    /// The last block of the stream.
    fn end(&mut self, reason: EndReason) -> Bytes {
        self.phase = Phase::Ended { is_cut: self.ending.cuts(reason) };
        self.delivery.metrics.stream_ended(reason.name());
        if self.is_page() {
            return self.page(&[], None);
        }
        format::end_block(self.delivery.settings.retry, reason, Some(&self.last_id())).into()
    }

    /// Whether the stream has ended, and its connection is to be cut.
    pub(super) fn ends_with_a_cut(&self) -> bool {
        matches!(self.phase, Phase::Ended { is_cut: true })
    }

    /// The `id:` for the stream's position, which the client sends back if the connection breaks now.
    fn last_id(&self) -> String {
        self.format.id(self.subscription.bookmarks())
    }

    /// The blocks for an update. `None` if the subscriber gets none of its events.
    fn write(&mut self, update: &Update) -> Option<Bytes> {
        match update {
            Update::Finished => Some(self.end(EndReason::Finished)),
            Update::End(WatchEnd::TooSlow) => Some(self.end(EndReason::TooSlow)),
            Update::End(WatchEnd::TooLarge) => Some(self.end(EndReason::HashTooLarge)),
            Update::Snapshot { part, .. } => {
                Some(format::snapshot_block(&self.last_id(), part, self.subscriber.fields()))
            }
            Update::Gap { index, gap } => {
                self.delivery.metrics.gap(gap.reason.name());
                if self.is_page() {
                    return Some(self.answer(&[], Some(gap)));
                }
                Some(format::gap_block(&self.last_id(), self.subscription.topic(*index), gap))
            }
            Update::Events { events, .. } if self.is_page() => {
                let events: Vec<_> = events.iter().filter(|event| self.wants(event)).cloned().collect();
                (!events.is_empty()).then(|| self.answer(&events, None))
            }
            Update::Events { index, events } => self.write_events(*index, events),
        }
    }

    fn write_events(&self, index: usize, events: &[Arc<LiveEvent>]) -> Option<Bytes> {
        let topic = self.subscription.topic(index);
        let mut blocks: Vec<Bytes> = Vec::with_capacity(events.len());
        let mut count = 0;
        for event in events.iter().filter(|event| self.wants(event)) {
            let is_reported = self.format.event(&mut blocks, topic, event, self.subscriber.fields(), || {
                // The position after this event. The subscription is already at the last one.
                let bookmarks = self.subscription.bookmarks().enumerate();
                let at_event = |n, bookmark: Bookmark| if n == index { bookmark.at(event.id()) } else { bookmark };
                self.format.id(bookmarks.map(|(n, (topic, bookmark))| (topic, at_event(n, bookmark))))
            });
            count += u64::from(is_reported);
        }
        self.delivery.metrics.delivered(count);
        match blocks.as_slice() {
            [] => None,
            // The common case copies nothing.
            [one] => Some(one.clone()),
            _ => Some(blocks.concat().into()),
        }
    }

    /// The page that answers a read that has waited. It ends the stream.
    fn answer(&mut self, events: &[Arc<LiveEvent>], gap: Option<&Gap>) -> Bytes {
        self.phase = Phase::Ended { is_cut: false };
        self.delivery.metrics.stream_ended(EndReason::ANSWERED);
        self.page(events, gap)
    }

    /// A page of as many of these events as it may have, which are the last ones up to the stream's position.
    fn page(&self, events: &[Arc<LiveEvent>], gap: Option<&Gap>) -> Bytes {
        let (StreamFormat::Page(limit), Topic::Room(room)) = (self.format, self.subscription.topic(0)) else {
            return Bytes::new();
        };
        let (listed, rest) = events.split_at(events.len().min(limit.into()));
        self.delivery.metrics.delivered(listed.len() as u64);
        let next = match listed.last() {
            Some(last) if !rest.is_empty() => last.id().to_string(),
            _ => self.last_id(),
        };
        let page = EventPage {
            room,
            events: listed.iter().map(|event| PageEvent::new(event.id(), event.event())).collect(),
            oldest: None,
            head: self.subscription.end().to_string(),
            gap: gap.map(PageGap::from),
            next: Some(next),
            finished: rest.is_empty() && self.subscription.is_finished(),
        };
        format::to_json(&page).into()
    }

    fn write_heartbeat(&self, heartbeat: &Heartbeat) -> Bytes {
        if heartbeat.gives_position() { format::position_block(&self.last_id()) } else { format::heartbeat() }
    }
}

impl Drop for StreamSession {
    fn drop(&mut self) {
        if !matches!(self.phase, Phase::Ended { .. }) {
            self.delivery.metrics.stream_ended(EndReason::DISCONNECTED);
        }
    }
}
