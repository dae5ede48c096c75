//! Limits of connections and of single requests.

use std::time::Duration;

use clap::Args;

use super::parse::{count, duration_between, interval};

/// Limits of connections and of single requests.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Requests")]
pub struct RequestArgs {
    /// Open connections, streams included; at least 1, and at most the limit of open files minus 320. Further requests
    /// get 503, further streams `stream.end`.
    #[arg(long, env = "ROOMCAST_MAX_CONNECTIONS", default_value_t = 50_000, value_name = "COUNT", value_parser = count)]
    pub max_connections: usize,

    /// Time for a connection's first bytes, and for a request's head from its first byte on, 10ms to 1h. Then the
    /// connection is closed.
    #[arg(long, env = "ROOMCAST_HEADER_TIMEOUT", default_value = "10s", value_parser = interval, value_name = "TIME")]
    pub header_timeout: Duration,

    /// Time for which a connection may be idle between requests, 10ms to 24h; longer than a balancer keeps it.
    #[arg(long, env = "ROOMCAST_KEEP_ALIVE", default_value = "150s", value_parser = keep_alive, value_name = "TIME")]
    pub keep_alive: Duration,

    /// Time for the body of a request, 10ms to 1h. Then the request gets 408.
    #[arg(long, env = "ROOMCAST_REQUEST_TIMEOUT", default_value = "15s", value_parser = interval, value_name = "TIME")]
    pub request_timeout: Duration,

    /// Bytes of a request's body, also of a batch. Larger bodies get 413.
    #[arg(long, env = "ROOMCAST_MAX_BODY_BYTES", default_value_t = 1024 * 1024, value_name = "BYTES")]
    pub max_body_bytes: usize,

    /// Bytes of all bodies at one time; at least twice --max-body-bytes. Those of one subject, or of one address without
    /// a subject, may take as many as are free. Further bodies get 503.
    #[arg(long, env = "ROOMCAST_MAX_TOTAL_BODY_BYTES", default_value_t = 64 * 1024 * 1024, value_name = "BYTES")]
    pub max_total_body_bytes: usize,

    /// Bytes of one event's data; at most --max-body-bytes. Larger data gets 413, and so does data whose line breaks or
    /// control characters make it take more than twice as many bytes in a stream.
    #[arg(long, env = "ROOMCAST_MAX_EVENT_BYTES", default_value_t = 64 * 1024, value_name = "BYTES")]
    pub max_event_bytes: usize,

    /// Bytes of one value in a hash. Larger values get 413.
    #[arg(long, env = "ROOMCAST_MAX_VALUE_BYTES", default_value_t = 256 * 1024, value_name = "BYTES")]
    pub max_value_bytes: usize,

    /// Copies of events that a batch stores, one for each room, and fields that a PATCH changes; at least 1. Larger
    /// ones get 400.
    #[arg(long, env = "ROOMCAST_MAX_BATCH_ITEMS", default_value_t = 1000, value_name = "COUNT", value_parser = count)]
    pub max_batch_items: usize,
}

fn keep_alive(text: &str) -> Result<Duration, String> {
    duration_between(Duration::from_millis(10), Duration::from_hours(24), text)
}
