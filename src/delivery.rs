//! Delivery: writes to a client the events that follow its subscriber's position. This layer knows Server-Sent Events
//! and HTTP/1.1 chunks. It knows neither routes nor requests.
//!
//! The [`broadcaster`]s of a room serve the streams of that one room that are caught up with it. Every other stream has
//! a task of its own, which catches up from the stream's position and then hands the connection to a broadcaster. A
//! stream of several rooms keeps its task.

mod broadcaster;
mod connection;
mod end_reason;
pub mod format;
mod heartbeat;
mod http1;
pub mod page;
mod session;
mod sse;
mod subscriber;

use std::sync::Arc;
use std::time::Duration;

pub use self::broadcaster::Broadcasters;
pub use self::connection::{ConnGuard, ConnPermit, DetachableStream, Framing, cut_after};
pub use self::end_reason::{EndReason, Ending};
pub use self::format::StreamFormat;
pub use self::heartbeat::HeartbeatOptions;
pub use self::session::{SessionOptions, StreamSession};
pub use self::subscriber::Subscriber;
use crate::metrics::Metrics;
use crate::moderation::Moderation;
use crate::shutdown::Drain;

/// How streams are delivered.
#[derive(Clone, Copy, Debug)]
pub struct DeliverySettings {
    /// An idle stream gets a heartbeat after this time, if its client asks for no other one.
    pub heartbeat: Duration,
    /// How long clients wait before they reconnect.
    pub retry: Duration,
    /// How long a stream lives. Each stream's lifetime is longer or shorter than this by up to a quarter.
    pub lifetime: Duration,
}

impl DeliverySettings {
    /// The lifetime of one stream. It is random, so that streams that opened together do not end together.
    pub fn random_lifetime(&self) -> Duration {
        self.lifetime.mul_f64(fastrand::f64().mul_add(0.5, 0.75))
    }
}

/// What all streams of a replica use.
pub struct Delivery {
    /// The removals that end streams early.
    pub moderation: Arc<Moderation>,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// Whether the replica is shutting down.
    pub drain: Drain,
    /// How streams are delivered.
    pub settings: DeliverySettings,
    /// The name of this replica.
    pub replica: Arc<str>,
}

impl Delivery {
    /// The body of a refused stream: one `stream.end` block, which repeats the client's position. Counts the refusal.
    pub fn refusal(&self, reason: EndReason, last_id: Option<&str>) -> String {
        self.metrics.stream_refused(reason.name());
        format::end_block(self.settings.retry, reason, last_id)
    }
}
