//! The metrics of a replica, for Prometheus. No label has rooms, hashes, users or addresses in it, so the number of
//! time series stays small.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry, Unit};

/// The media type of [`Metrics::text`].
pub const OPENMETRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The buckets of histograms: 15 of them, from half a millisecond to eight seconds, each twice the one before.
const SECONDS: (f64, f64, u16) = (0.0005, 2.0, 15);

/// The reason of a gap, or of a stream's end.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// The code of a problem document.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: &'static str,
}

/// A limit, and the kind of thing that it has rejected: a request, an event, a stream or a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RejectionLabels {
    limit: &'static str,
    kind: &'static str,
}

/// The target of a removal: a subscriber, a user or a token.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RemovalLabel {
    kind: &'static str,
}

/// A request's method and route, and the status of its response.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResponseLabels {
    method: &'static str,
    route: String,
    status: u16,
}

type SecondsGauge = Gauge<f64, AtomicU64>;

/// The metrics of a replica.
pub struct Metrics {
    registry: Registry,
    responses: Family<ResponseLabels, Counter>,
    problems: Family<CodeLabel, Counter>,
    published: Counter,
    publish_seconds: Histogram,
    delivered: Counter,
    delivery_lag: Histogram,
    opened: Counter,
    ended: Family<ReasonLabel, Counter>,
    gaps: Family<ReasonLabel, Counter>,
    rejected: Family<RejectionLabels, Counter>,
    removals: Family<RemovalLabel, Counter>,
    streams: Gauge,
    now: StateGauges,
}

/// Gauges that are set when the metrics are read.
struct StateGauges {
    rooms: Gauge,
    members: Gauge,
    connections: Gauge,
    commands_up: Gauge,
    delivery_up: Gauge,
    round_trip: SecondsGauge,
    memory_used: Gauge,
    memory_limit: Gauge,
    written_rooms: Gauge,
    malformed: Gauge,
    draining: Gauge,
}

/// The state of the replica when its metrics are read.
pub struct CurrentState {
    /// Rooms that are live here: with subscribers, or without for a short time.
    pub rooms: usize,
    /// Members of rooms through this replica's streams, one for each room.
    pub members: usize,
    /// Open connections, streams included.
    pub connections: usize,
    /// Whether commands reach the broker.
    pub commands_up: bool,
    /// Whether the broker's announcements arrive.
    pub delivery_up: bool,
    /// Round trip of the last probe; none if the probe has not returned.
    pub round_trip: Option<Duration>,
    /// Bytes that the broker holds; 0 if it does not tell.
    pub memory_used: u64,
    /// Bytes that the broker may hold; 0 without a limit.
    pub memory_limit: u64,
    /// Bytes that the rooms take to which this replica has published recently.
    pub written_rooms: usize,
    /// Messages on the channels of rooms that were not announcements, since the start.
    pub malformed: u64,
    /// Whether the replica shuts down.
    pub draining: bool,
}

/// Adds a metric to the registry.
fn add<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

/// Adds a metric in seconds. The registry appends the unit to its name.
fn add_seconds<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register_with_unit(name, help, Unit::Seconds, metric.clone());
    metric
}

impl Metrics {
    /// Creates all metrics, at zero.
    pub fn new(version: &'static str, broker: &'static str) -> Self {
        let all = &mut Registry::with_prefix("roomcast");
        let seconds = || Histogram::new(exponential_buckets(SECONDS.0, SECONDS.1, SECONDS.2));
        let build = Info::new(vec![("version", version), ("broker", broker)]);
        all.register("build", "Version of the gateway, and its broker", build);
        let metrics = Self {
            responses: add(all, "http_requests", "HTTP requests, by method, route and status of the response"),
            problems: add(all, "problems", "Failed requests, by the code of the failure"),
            published: add(all, "events_published", "Events that this replica has stored"),
            publish_seconds: add_seconds(all, "publish", "Time that the broker took to store an event", seconds()),
            delivered: add(all, "events_delivered", "Events written to streams, one for each event and stream"),
            delivery_lag: add_seconds(
                all,
                "delivery_lag",
                "Time from the publication of an event to its writing to a room's streams, once for each room and write",
                seconds(),
            ),
            opened: add(all, "streams_opened", "Streams that have opened"),
            ended: add(all, "streams_ended", "Streams that have ended or were refused for now, by reason"),
            gaps: add(all, "gaps", "Gaps that were sent to streams, by reason"),
            rejected: add(
                all,
                "rejected",
                "Requests, events, streams and connections that a limit has rejected, by limit and kind",
            ),
            removals: add(all, "removals", "Removals that this replica was asked for, by kind"),
            streams: add(all, "streams", "Open streams"),
            now: StateGauges {
                rooms: add(all, "rooms", "Rooms that are live on this replica"),
                members: add(all, "members", "Named subscribers on this replica, one for each room"),
                connections: add(all, "connections", "Open connections, streams included"),
                commands_up: add(all, "broker_commands_up", "1 if commands reach the broker, else 0"),
                delivery_up: add(all, "broker_delivery_up", "1 if the announcements of the broker arrive, else 0"),
                round_trip: add_seconds(
                    all,
                    "broker_round_trip",
                    "Round trip of the last probe of the broker; 0 if the probe has not returned",
                    SecondsGauge::default(),
                ),
                memory_used: add(
                    all,
                    "broker_memory_used_bytes",
                    "Bytes that the broker holds; 0 if it does not tell",
                ),
                memory_limit: add(
                    all,
                    "broker_memory_limit_bytes",
                    "Bytes that the broker may hold; 0 without a limit",
                ),
                written_rooms: add(
                    all,
                    "written_rooms_bytes",
                    "Bytes of memory for the rooms to which this replica has published in the last minutes",
                ),
                malformed: add(
                    all,
                    "malformed_announcements",
                    "Messages on the channels of rooms that were not announcements",
                ),
                draining: add(all, "draining", "1 while the replica shuts down, else 0"),
            },
            registry: std::mem::take(all),
        };
        // Rare series exist from the start: Prometheus sees no increase in a series that begins at 1.
        for limit in ["subject", "address", "total", "body_bytes"] {
            drop(metrics.rejected.get_or_create(&RejectionLabels { limit, kind: "request" }));
        }
        drop(metrics.rejected.get_or_create(&RejectionLabels { limit: "written_rooms", kind: "event" }));
        for kind in ["subscriber", "user", "token"] {
            drop(metrics.removals.get_or_create(&RemovalLabel { kind }));
        }
        metrics
    }

    /// Counts the response to a request.
    pub fn answered(&self, method: &'static str, route: &str, status: u16) {
        self.responses.get_or_create(&ResponseLabels { method, route: route.into(), status }).inc();
    }

    /// Counts a failed request.
    pub fn problem(&self, code: &'static str) {
        self.problems.get_or_create(&CodeLabel { code }).inc();
    }

    /// Counts an event that this replica has stored, and the broker's time for it.
    pub fn published(&self, took: Duration) {
        self.published.inc();
        self.publish_seconds.observe(took.as_secs_f64());
    }

    /// Counts events that were written to streams.
    pub fn delivered(&self, events: u64) {
        self.delivered.inc_by(events);
    }

    /// Records the time from the publication of an event to its writing to a room's streams.
    pub fn lagged(&self, lag: Duration) {
        self.delivery_lag.observe(lag.as_secs_f64());
    }

    /// Counts a stream that has opened.
    pub fn stream_opened(&self) {
        self.opened.inc();
        self.streams.inc();
    }

    /// Counts the end of an open stream.
    pub fn stream_ended(&self, reason: &'static str) {
        self.streams.dec();
        self.stream_refused(reason);
    }

    /// Whether a stream is open.
    pub fn has_streams(&self) -> bool {
        self.streams.get() > 0
    }

    /// Counts a stream that was refused for now, before it opened.
    pub fn stream_refused(&self, reason: &'static str) {
        self.ended.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Counts a gap that was sent to a stream.
    pub fn gap(&self, reason: &'static str) {
        self.gaps.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Counts a request, an event, a stream or a connection that a limit has rejected.
    pub fn rejected(&self, limit: &'static str, kind: &'static str) {
        self.rejected.get_or_create(&RejectionLabels { limit, kind }).inc();
    }

    /// Counts a removal of a subscriber, a user or a token.
    pub fn removed(&self, kind: &'static str) {
        self.removals.get_or_create(&RemovalLabel { kind }).inc();
    }

    /// All metrics in the OpenMetrics text format.
    pub fn text(&self, now: &CurrentState) -> String {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.now.rooms.set(number(now.rooms));
        self.now.members.set(number(now.members));
        self.now.connections.set(number(now.connections));
        self.now.commands_up.set(now.commands_up.into());
        self.now.delivery_up.set(now.delivery_up.into());
        self.now.round_trip.set(now.round_trip.unwrap_or_default().as_secs_f64());
        self.now.memory_used.set(i64::try_from(now.memory_used).unwrap_or(i64::MAX));
        self.now.memory_limit.set(i64::try_from(now.memory_limit).unwrap_or(i64::MAX));
        self.now.written_rooms.set(number(now.written_rooms));
        self.now.malformed.set(i64::try_from(now.malformed).unwrap_or(i64::MAX));
        self.now.draining.set(now.draining.into());
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a string takes any text");
        text
    }
}
