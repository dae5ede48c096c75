//! Heartbeats: when the next one of an idle stream is due, and what it is.

use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

/// Heartbeats that are due within a 16th of their interval are sent with one that is due now.
const EARLY_DIVISOR: u32 = 16;

/// How long a stream may be idle before it gets a heartbeat, and what that is.
#[derive(Clone, Copy, Debug)]
pub struct HeartbeatOptions {
    /// Not a `Duration`, which takes four times the memory of each stream.
    milliseconds: u32,
    is_event: bool,
}

impl HeartbeatOptions {
    /// A heartbeat after each `interval`: a comment, or an event with the position.
    pub fn new(interval: Duration, is_event: bool) -> Self {
        Self { milliseconds: u32::try_from(interval.as_millis()).unwrap_or(u32::MAX), is_event }
    }

    /// No heartbeats: the first one would come after 49 days.
    pub fn never() -> Self {
        Self { milliseconds: u32::MAX, is_event: false }
    }

    /// The interval in seconds.
    pub(super) fn seconds(self) -> Value {
        match self.milliseconds {
            whole if whole.is_multiple_of(1000) => (whole / 1000).into(),
            other => (f64::from(other) / 1000.0).into(),
        }
    }

    fn interval(self) -> Duration {
        Duration::from_millis(self.milliseconds.into())
    }
}

/// The next heartbeat of a stream. The task that serves the stream owns it.
pub(super) struct Heartbeat {
    due: Instant,
    // The members of the options, which take less memory here than beside `has_unsent_position`.
    milliseconds: u32,
    is_event: bool,
    has_unsent_position: bool,
}

impl Heartbeat {
    /// The first heartbeat of a stream that has just sent a block.
    pub(super) fn new(options: HeartbeatOptions) -> Self {
        let HeartbeatOptions { milliseconds, is_event } = options;
        Self { due: Instant::now() + options.interval(), milliseconds, is_event, has_unsent_position: false }
    }

    /// A block with the stream's position, or a heartbeat, was sent at this time.
    pub(super) fn sent(&mut self, now: Instant) {
        self.due = now + self.interval();
        self.has_unsent_position = false;
    }

    /// The stream has passed an event that its subscriber does not get, so its position is ahead of the last block.
    pub(super) fn skipped(&mut self) {
        self.has_unsent_position = true;
    }

    /// Whether it is an event with the stream's position, and no comment.
    pub(super) fn gives_position(&self) -> bool {
        self.is_event || self.has_unsent_position
    }

    /// When it is due.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Whether it is sent with another stream's heartbeat that is due now.
    pub(super) fn is_due_with_others(&self, now: Instant) -> bool {
        self.due <= now + self.interval() / EARLY_DIVISOR
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(self.milliseconds.into())
    }
}
