//! Delivery: how what follows a subscriber's position reaches its client. It knows Server-Sent Events and HTTP/1.1 chunks, and
//! nothing of routes and requests.
//!
//! A stream that is caught up with its room is served by the room's [`broadcaster`]. Every other stream has a task of its own,
//! which catches up from its position and then hands the connection to the broadcaster.

mod broadcaster;
mod connection;
pub mod encoded;
mod end_reason;
mod format;
mod http1;
mod session;
mod sse;
mod subscriber;

use std::sync::Arc;
use std::time::Duration;

pub use self::broadcaster::Broadcasters;
pub use self::connection::{ConnGuard, DetachableStream};
pub use self::end_reason::EndReason;
pub use self::format::StreamFormat;
pub use self::session::Session;
pub use self::subscriber::{NameTaken, Subscriber};
use crate::live::Live;
use crate::metrics::Metrics;
use crate::moderation::Moderation;
use crate::presence::Presence;
use crate::shutdown::Drain;

/// How streams are delivered.
#[derive(Clone, Copy, Debug)]
pub struct DeliverySettings {
    /// An idle stream gets a heartbeat after this pause.
    pub heartbeat: Duration,
    /// How long clients wait before they reconnect.
    pub retry: Duration,
    /// How long a stream lives, give or take a quarter.
    pub lifetime: Duration,
}

/// What every stream of a replica works with.
pub struct Delivery {
    /// The live topics.
    pub live: Arc<Live>,
    /// The members of rooms.
    pub presence: Arc<Presence>,
    /// What ends streams before their time.
    pub moderation: Arc<Moderation>,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// Whether the replica is leaving.
    pub drain: Drain,
    /// How streams are delivered.
    pub settings: DeliverySettings,
    /// This replica's name.
    pub replica: Arc<str>,
}

impl Delivery {
    /// A stream of one block, which refuses it for now.
    pub fn refusal(&self, format: StreamFormat, reason: EndReason, last_id: Option<&str>) -> String {
        self.metrics.stream_refused(reason.name());
        format.end(self.settings.retry, reason, last_id)
    }
}
