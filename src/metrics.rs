//! What a replica counts, for Prometheus. No label grows with rooms, hashes, users or addresses.

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
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Half a millisecond to eight seconds.
const SECONDS: (f64, f64, u16) = (0.0005, 2.0, 15);

/// A word of ours for what happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// The code of a problem.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: &'static str,
}

/// A limit, and what it rejected.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rejection {
    limit: &'static str,
    kind: &'static str,
}

/// Who was removed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RemovalKind {
    kind: &'static str,
}

/// A kind of answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResponseKind {
    method: &'static str,
    route: String,
    status: u16,
}

type SecondsGauge = Gauge<f64, AtomicU64>;

/// The counters of a replica.
pub struct Metrics {
    registry: Registry,
    responses: Family<ResponseKind, Counter>,
    problems: Family<CodeLabel, Counter>,
    published: Counter,
    publish_seconds: Histogram,
    delivered: Counter,
    delivery_lag: Histogram,
    opened: Counter,
    ended: Family<ReasonLabel, Counter>,
    gaps: Family<ReasonLabel, Counter>,
    rejected: Family<Rejection, Counter>,
    removals: Family<RemovalKind, Counter>,
    streams: Gauge,
    now: StateGauges,
}

/// What is looked at when somebody asks.
struct StateGauges {
    rooms: Gauge,
    members: Gauge,
    connections: Gauge,
    commands_up: Gauge,
    delivery_up: Gauge,
    round_trip: SecondsGauge,
    malformed: Gauge,
    draining: Gauge,
}

/// The replica's state as it is now.
pub struct CurrentState {
    /// Rooms that have subscribers here, or had some a moment ago.
    pub rooms: usize,
    /// Who is in rooms here and says who it is, once for each room.
    pub members: usize,
    /// Open connections, streams among them.
    pub connections: usize,
    /// Whether commands to the broker go through.
    pub commands_up: bool,
    /// Whether announcements from the broker come back.
    pub delivery_up: bool,
    /// How long the last probe took there and back.
    pub round_trip: Option<Duration>,
    /// Messages on the rooms' channels that were no announcements, since the start.
    pub malformed: u64,
    /// Whether the replica is leaving.
    pub draining: bool,
}

/// Adds a metric to the registry.
fn add<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

/// Adds a metric in seconds, which its name then ends with.
fn add_seconds<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register_with_unit(name, help, Unit::Seconds, metric.clone());
    metric
}

impl Metrics {
    /// All at zero.
    pub fn new(version: &'static str, broker: &'static str) -> Self {
        let all = &mut Registry::with_prefix("roomcast");
        let seconds = || Histogram::new(exponential_buckets(SECONDS.0, SECONDS.1, SECONDS.2));
        let build = Info::new(vec![("version", version), ("broker", broker)]);
        all.register("build", "The gateway's version, and where its rooms are kept", build);
        let metrics = Self {
            responses: add(all, "http_requests", "Requests by route and status"),
            problems: add(all, "problems", "Failures that callers were told, by code"),
            published: add(all, "events_published", "Events that this replica has stored"),
            publish_seconds: add_seconds(all, "publish", "Time that the broker took to store an event", seconds()),
            delivered: add(all, "events_delivered", "Events written to streams: once for each event and stream"),
            delivery_lag: add_seconds(
                all,
                "delivery_lag",
                "From an event's publication to its writing to a room's streams, once for each room and write",
                seconds(),
            ),
            opened: add(all, "streams_opened", "Streams that were opened"),
            ended: add(all, "streams_ended", "Streams that ended, by reason"),
            gaps: add(all, "gaps", "Gaps that streams were told, by reason"),
            rejected: add(all, "rejected", "Requests, streams and connections that a limit rejected"),
            removals: add(all, "removals", "Removals that this replica was asked for"),
            streams: add(all, "streams", "Open streams"),
            now: StateGauges {
                rooms: add(all, "rooms", "Rooms that this replica holds"),
                members: add(
                    all,
                    "members",
                    "Who is in rooms on this replica and says who it is, once for each room",
                ),
                connections: add(all, "connections", "Open connections, streams among them"),
                commands_up: add(all, "broker_commands_up", "Whether commands to the broker go through"),
                delivery_up: add(all, "broker_delivery_up", "Whether announcements from the broker come back"),
                round_trip: add_seconds(
                    all,
                    "broker_round_trip",
                    "How long the last probe of the broker took there and back; 0 if it did not come back",
                    SecondsGauge::default(),
                ),
                malformed: add(
                    all,
                    "malformed_announcements",
                    "Messages on the rooms' channels that were no announcements",
                ),
                draining: add(all, "draining", "Whether the replica is leaving"),
            },
            registry: std::mem::take(all),
        };
        // What is rare is there from the start, so that its first time is seen as an increase.
        for limit in ["subject", "address", "total"] {
            drop(metrics.rejected.get_or_create(&Rejection { limit, kind: "request" }));
        }
        for kind in ["subscriber", "user", "token"] {
            drop(metrics.removals.get_or_create(&RemovalKind { kind }));
        }
        metrics
    }

    /// A request was answered.
    pub fn answered(&self, method: &'static str, route: &str, status: u16) {
        self.responses.get_or_create(&ResponseKind { method, route: route.into(), status }).inc();
    }

    /// A caller was told of a failure.
    pub fn problem(&self, code: &'static str) {
        self.problems.get_or_create(&CodeLabel { code }).inc();
    }

    /// An event was stored.
    pub fn published(&self, took: Duration) {
        self.published.inc();
        self.publish_seconds.observe(took.as_secs_f64());
    }

    /// Events were written to streams.
    pub fn delivered(&self, events: u64) {
        self.delivered.inc_by(events);
    }

    /// A room's streams were written to so long after the event was published.
    pub fn lagged(&self, lag: Duration) {
        self.delivery_lag.observe(lag.as_secs_f64());
    }

    /// A stream was opened.
    pub fn stream_opened(&self) {
        self.opened.inc();
        self.streams.inc();
    }

    /// A stream that was open has ended.
    pub fn stream_ended(&self, reason: &'static str) {
        self.streams.dec();
        self.stream_refused(reason);
    }

    /// A stream was told to come back before it was open.
    pub fn stream_refused(&self, reason: &'static str) {
        self.ended.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// A stream was told of a gap.
    pub fn gap(&self, reason: &'static str) {
        self.gaps.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// A limit refused a request or a stream.
    pub fn rejected(&self, limit: &'static str, kind: &'static str) {
        self.rejected.get_or_create(&Rejection { limit, kind }).inc();
    }

    /// Somebody was removed: a subscriber, a user, or a token.
    pub fn removed(&self, kind: &'static str) {
        self.removals.get_or_create(&RemovalKind { kind }).inc();
    }

    /// Everything, as text that Prometheus reads.
    pub fn text(&self, now: &CurrentState) -> String {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.now.rooms.set(number(now.rooms));
        self.now.members.set(number(now.members));
        self.now.connections.set(number(now.connections));
        self.now.commands_up.set(now.commands_up.into());
        self.now.delivery_up.set(now.delivery_up.into());
        self.now.round_trip.set(now.round_trip.unwrap_or_default().as_secs_f64());
        self.now.malformed.set(i64::try_from(now.malformed).unwrap_or(i64::MAX));
        self.now.draining.set(now.draining.into());
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a string takes any text");
        text
    }
}
