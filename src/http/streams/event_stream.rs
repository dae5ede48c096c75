//! A subscription as text: what is sent to one subscriber, and nothing of how.

use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, SystemTime};

use axum::body::Bytes;
use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use super::reader::Reader;
use crate::http::events::GapDescription;
use crate::http::{App, time_text};
use crate::hub::{Delivery, Encoded, Ending, Lead, Level, Subscription};
use crate::room::{Cursor, EventId, RoomName, SubscriberId};
use crate::sse::{Block, HEARTBEAT};

/// What events look like.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As published; the id is the event's.
    Single,
    /// In an envelope; the id is a cursor of all rooms.
    Enveloped,
}

/// A subscription as text. Everything that waits goes out together.
pub(super) struct EventStream {
    app: App,
    subscription: Subscription,
    reader: Reader,
    form: Form,
    state: StreamState,
    /// When the next comment is due.
    beat_at: Instant,
    /// The position has moved on, but nothing that was sent says so.
    moved: bool,
    /// When the replica leaves, this stream's place among the others that end.
    place: f32,
    /// When the stream has lived long enough.
    end_at: Instant,
    /// Whether that is when its token expires.
    ends_with_token: bool,
}

enum StreamState {
    Opening,
    Open,
    Ended,
}

impl EventStream {
    /// A stream that ends when its caller's token does, at the latest.
    pub(super) fn new(app: App, subscription: Subscription, reader: Reader, form: Form) -> Self {
        let expiry = reader.caller.expires_at;
        app.metrics.stream_opened();
        let beat_at = Instant::now() + app.settings.heartbeat;
        // Spread, so that streams that opened together do not end together.
        let lifetime = app.settings.stream_lifetime.mul_f64(fastrand::f64().mul_add(0.5, 0.75));
        let left = expiry.map(|expiry| expiry.duration_since(SystemTime::now()).unwrap_or_default());
        let ends_with_token = left.is_some_and(|left| left < lifetime);
        let end_at = Instant::now() + left.map_or(lifetime, |left| left.min(lifetime));
        Self {
            app,
            subscription,
            reader,
            form,
            state: StreamState::Opening,
            beat_at,
            moved: false,
            place: fastrand::f32(),
            end_at,
            ends_with_token,
        }
    }

    /// The next bytes to send; nothing after the stream's end.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        loop {
            let bytes = self.step().await?;
            if !bytes.is_empty() {
                return Some(bytes);
            }
        }
    }

    /// The next bytes to send, or none of them if it has moved on without any: it may be level with its room now.
    pub(super) async fn step(&mut self) -> Option<Bytes> {
        match self.state {
            StreamState::Ended => return None,
            StreamState::Opening => return Some(self.open()),
            StreamState::Open => {}
        }
        // A reader that was slow to take the last write gets nothing more after its time.
        if self.is_over(Instant::now()) {
            return Some(if self.ends_with_token {
                // With the same token there would be no other stream.
                self.end("token_expired", "never")
            } else {
                self.end("lifetime", "now")
            });
        }
        if let Some(ending) = self.ordered() {
            return Some(self.obey(&ending));
        }
        let drain = self.app.drain.clone();
        let hub = self.app.hub.clone();
        let bytes = tokio::select! {
            // What ends it comes before what else there is to be told.
            biased;
            () = hub.ordered_beyond(self.reader.orders) => return Some(Bytes::new()),
            () = self.reader.superseded() => Some(self.end("superseded", "never")),
            () = drain.reaches(self.place) => Some(self.end("draining", "now")),
            () = sleep_until(self.end_at) => return Some(Bytes::new()),
            delivery = self.subscription.next() => self.write(&delivery),
            () = sleep_until(self.beat_at) => Some(self.beat()),
        };
        if bytes.is_some() {
            self.sent(Instant::now() + self.app.settings.heartbeat);
        } else {
            self.skip();
        }
        Some(bytes.unwrap_or_default())
    }

    /// The stream's first block.
    pub(super) fn open(&mut self) -> Bytes {
        self.state = StreamState::Open;
        self.open_block().into()
    }

    /// The stream's place, if it has nothing to be told now and can be led.
    pub(super) fn level(&self) -> Option<Level> {
        let leads = matches!(self.state, StreamState::Open) && self.form == Form::Single;
        let is_due = || {
            self.due() <= Instant::now()
                || self.app.drain.ends_streams_now()
                || self.app.hub.orders() != self.reader.orders
                || self.reader.is_superseded(Waker::noop())
        };
        (leads && !is_due()).then(|| self.subscription.level()).flatten()
    }

    /// Leads those who are at a place in this stream's room.
    pub(super) fn lead(&self, place: Level) -> Lead {
        self.subscription.lead(place)
    }

    /// The room of a stream of one.
    pub(super) fn room(&self) -> &RoomName {
        self.subscription.room(0)
    }

    /// It has been led to a position, and past orders to end streams that were none of its own.
    pub(super) fn led_to(&mut self, position: EventId, orders: u64) {
        self.subscription.led_to(position);
        self.reader.orders = self.reader.orders.max(orders);
    }

    /// How many orders to end streams it has looked at.
    pub(super) fn orders(&self) -> u64 {
        self.reader.orders
    }

    /// Whether one of the orders beyond so many is about it.
    pub(super) fn is_ordered(&self, mut beyond: u64) -> bool {
        self.ending(&mut beyond).is_some()
    }

    /// Why it has to end by an order, if it has.
    fn ordered(&mut self) -> Option<Ending> {
        let mut seen = self.reader.orders;
        let ending = self.ending(&mut seen);
        self.reader.orders = seen;
        ending
    }

    fn ending(&self, seen: &mut u64) -> Option<Ending> {
        let is_in = |room: &RoomName| self.subscription.positions().any(|(of, _)| of == room);
        self.app.hub.ending(seen, is_in, &self.reader.whose())
    }

    /// Ends as ordered; an owner who is kept out by its name alone is kept out by what it is.
    fn obey(&mut self, ending: &Ending) -> Bytes {
        if let Ending::Denied(removal) = ending {
            self.app.hub.keep_out(removal, &self.reader.whose());
        }
        self.reader.leave();
        let (reason, reconnect) = match ending {
            Ending::Removed => ("removed", "later"),
            Ending::Denied(_) => ("removed", "never"),
            Ending::Revoked => ("token_revoked", "never"),
        };
        self.end(reason, reconnect)
    }

    /// Whether it gets all events, but for those that are not for its subscriber.
    pub(super) fn takes_all(&self) -> bool {
        self.reader.takes_all()
    }

    /// Whether it gets an event.
    pub(super) fn gets(&self, event: &Encoded) -> bool {
        self.reader.gets(event)
    }

    /// Something that says where it is has been sent; after which it may be silent until `beat_at`.
    pub(super) fn sent(&mut self, beat_at: Instant) {
        self.beat_at = beat_at;
        self.moved = false;
    }

    /// It has been led past an event that it does not get.
    pub(super) fn skip(&mut self) {
        self.moved = true;
    }

    /// Whether nothing that was sent says where it is.
    pub(super) fn has_moved(&self) -> bool {
        self.moved
    }

    /// When it needs a heartbeat, or is to end.
    pub(super) fn due(&self) -> Instant {
        self.beat_at.min(self.end_at)
    }

    /// Whether it needs a heartbeat by then.
    pub(super) fn needs_beat(&self, by: Instant) -> bool {
        self.beat_at <= by
    }

    /// Whether another has taken its place. If not, the waker is woken when one does.
    pub(super) fn is_superseded(&self, waker: &Waker) -> bool {
        self.reader.is_superseded(waker)
    }

    /// Whether it has lived long enough.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.end_at <= now
    }

    /// The stream's last block.
    fn end(&mut self, reason: &'static str, reconnect: &str) -> Bytes {
        self.state = StreamState::Ended;
        self.app.metrics.stream_ended(reason);
        end_block(self.app.settings.retry, reason, reconnect, Some(&self.last_id())).into()
    }

    fn open_block(&self) -> String {
        #[derive(Serialize)]
        struct Open<'a> {
            subscriber: &'a SubscriberId,
            replica: &'a str,
            /// When the stream ends with its token.
            #[serde(skip_serializing_if = "Option::is_none")]
            expires_at: Option<String>,
            rooms: std::collections::BTreeMap<&'a RoomName, RoomOpen>,
        }
        #[derive(Serialize)]
        struct RoomOpen {
            position: String,
            resume: &'static str,
        }
        let rooms = self.subscription.opening().map(|(room, position, resume)| {
            (room, RoomOpen { position: position.to_string(), resume: resume.name() })
        });
        let left = self.end_at.saturating_duration_since(Instant::now());
        let expires_at = self.ends_with_token.then(|| time_text(SystemTime::now() + left));
        let (subscriber, replica) = (&self.reader.subscriber, &*self.app.replica);
        let open = Open { subscriber, replica, expires_at, rooms: rooms.collect() };
        let retry = self.app.settings.retry.as_millis();
        Block::new().retry(retry).id(self.last_id()).event(Some("stream.open")).data(&to_json(&open)).finish()
    }

    /// What the client sends back if it is cut off now.
    fn last_id(&self) -> String {
        match self.form {
            Form::Single => self.position().to_string(),
            Form::Enveloped => Cursor::of(self.subscription.positions()).encode(),
        }
    }

    /// The same, at an event among those that one room has just given.
    fn id_at(&self, room: usize, event: EventId) -> String {
        let positions = self.subscription.positions().enumerate();
        let positions = positions.map(|(n, (name, position))| (name, if n == room { event } else { position }));
        Cursor::of(positions).encode()
    }

    /// Where a stream of one room is.
    fn position(&self) -> EventId {
        self.subscription.positions().next().map_or(EventId::start_of(0), |(_, position)| position)
    }

    fn write(&self, delivery: &Delivery) -> Option<Bytes> {
        #[derive(Serialize)]
        struct RoomGap<'a> {
            room: &'a RoomName,
            #[serde(flatten)]
            gap: GapDescription,
        }
        match delivery {
            Delivery::Gap { room, gap } => {
                self.app.metrics.gap(gap.reason.name());
                let gap = RoomGap { room: self.subscription.room(*room), gap: GapDescription::of(gap) };
                let block = Block::new().id(self.last_id()).event(Some("stream.gap")).data(&to_json(&gap));
                Some(block.finish().into())
            }
            Delivery::Events { room, events } => self.write_events(*room, events),
        }
    }

    fn write_events(&self, room: usize, events: &[Arc<Encoded>]) -> Option<Bytes> {
        let mut blocks: Vec<Bytes> = Vec::with_capacity(events.len());
        let mut count = 0;
        for event in events.iter().filter(|event| self.gets(event)) {
            count += 1;
            if self.form == Form::Enveloped {
                blocks.push(Block::new().id(self.id_at(room, event.id())).into_lines().into());
                blocks.push(event.enveloped(self.subscription.room(room)).clone());
            } else {
                blocks.push(event.block());
            }
        }
        self.app.metrics.delivered(count);
        match blocks.as_slice() {
            [] => None,
            // The common case copies nothing.
            [one] => Some(one.clone()),
            _ => Some(blocks.concat().into()),
        }
    }

    /// Some clients take over an id only together with data.
    fn beat(&self) -> Bytes {
        #[derive(Serialize)]
        struct Position<'a> {
            position: &'a str,
        }
        if !self.moved {
            return Bytes::from_static(HEARTBEAT.as_bytes());
        }
        let id = self.last_id();
        let data = to_json(&Position { position: &id });
        Block::new().id(&id).event(Some("stream.position")).data(&data).finish().into()
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        if !matches!(self.state, StreamState::Ended) {
            self.app.metrics.stream_ended("disconnected");
        }
    }
}

/// The last block of a stream: why it ends, and when to come back.
pub(super) fn end_block(retry: Duration, reason: &str, reconnect: &str, last_id: Option<&str>) -> String {
    #[derive(Serialize)]
    struct End<'a> {
        reason: &'a str,
        reconnect: &'a str,
    }
    // Jittered, so that those who were sent away together do not come back together.
    let mut block = Block::new().retry(retry.mul_f64(1.0 + fastrand::f64()).as_millis());
    // A block without an id would erase the client's position: the id buffer starts empty on each stream (HTML 9.2.6).
    if let Some(id) = last_id {
        block = block.id(id);
    }
    block.event(Some("stream.end")).data(&to_json(&End { reason, reconnect })).finish()
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("strings and maps of strings always serialise")
}
