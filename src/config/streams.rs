//! Settings of streams, and of the live rooms behind them.

use std::time::Duration;

use clap::Args;

use super::parse::{count, duration_between, interval, lifetime, pause};
use crate::delivery::DeliverySettings;

/// Streams, and the live rooms behind them.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Streams")]
pub struct StreamArgs {
    /// Rooms that one stream may read, 1 to 100.
    #[arg(long, env = "ROOMCAST_MAX_ROOMS_PER_STREAM", default_value_t = 20, value_name = "COUNT",
        value_parser = clap::value_parser!(u16).range(1..=100))]
    pub max_rooms_per_stream: u16,

    /// Time after which an idle stream gets a heartbeat, 10ms to 1h, or as it asks (heartbeat=). Keep it below the
    /// timeouts of proxies.
    #[arg(long, env = "ROOMCAST_HEARTBEAT", default_value = "15s", value_parser = interval, value_name = "TIME")]
    pub heartbeat: Duration,

    /// Time after which a stream ends and its client reconnects, perhaps to another replica, 1s to 365d. It varies at
    /// random by up to a quarter.
    #[arg(
        id = "stream-lifetime",
        long,
        env = "ROOMCAST_STREAM_LIFETIME",
        default_value = "6h",
        value_parser = lifetime,
        value_name = "TIME"
    )]
    pub lifetime: Duration,

    /// Time that clients wait before they reconnect, 0 to 1h; after a `stream.end`, at random up to twice as long.
    #[arg(long, env = "ROOMCAST_RETRY", default_value = "2s", value_parser = pause, value_name = "TIME")]
    pub retry: Duration,

    /// Time after which a client that takes no data is cut off, 1s to 1h. It can resume at its position.
    #[arg(
        long,
        env = "ROOMCAST_STALL_TIMEOUT",
        default_value = "30s",
        value_parser = stall_timeout,
        value_name = "TIME"
    )]
    pub stall_timeout: Duration,

    /// Bytes of kernel memory for what a connection's client has not taken yet. The kernel may double it.
    #[arg(long, env = "ROOMCAST_SEND_BUFFER_BYTES", default_value_t = 64 * 1024, value_name = "BYTES")]
    pub send_buffer_bytes: usize,

    /// Recent events of each room with subscribers here that are kept in memory; at least 1. Streams that are further
    /// behind read the log.
    #[arg(long, env = "ROOMCAST_RING_EVENTS", default_value_t = 256, value_name = "COUNT", value_parser = count)]
    pub ring_events: usize,

    /// Bytes of these, for each room. The newest event is kept at any size.
    #[arg(long, env = "ROOMCAST_RING_BYTES", default_value_t = 1024 * 1024, value_name = "BYTES")]
    pub ring_bytes: usize,

    /// Time for which a room stays live (recent events in memory, channel subscribed) after its last subscriber has
    /// left, 0 to 1h.
    #[arg(long, env = "ROOMCAST_ROOM_IDLE_TTL", default_value = "10s", value_parser = pause, value_name = "TIME")]
    pub room_idle_ttl: Duration,
}

impl StreamArgs {
    /// The settings of delivery.
    pub fn delivery(&self) -> DeliverySettings {
        DeliverySettings { heartbeat: self.heartbeat, retry: self.retry, lifetime: self.lifetime }
    }
}

/// The kernel counts the times of keep-alive in whole seconds, up to 32,767 of them.
fn stall_timeout(text: &str) -> Result<Duration, String> {
    duration_between(Duration::from_secs(1), Duration::from_hours(1), text)
}
