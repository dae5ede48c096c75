//! What handlers use, and how a replica's parts are built on a broker.

use std::ops::Deref;
use std::sync::Arc;

use tokio_util::task::TaskTracker;

use super::body::BodyBudget;
use super::middleware::request_context::LineLimits;
use crate::auth::Access;
use crate::broker::{Broker, HashStore, Listeners, ReplicaRegistry};
use crate::config::Settings;
use crate::delivery::Delivery;
use crate::live::{Live, LogClient, RoomCounts};
use crate::metrics::Metrics;
use crate::moderation::Moderation;
use crate::presence::Presence;
use crate::rate_limit::RateLimiter;
use crate::shutdown::{Drain, Tasks};

/// What handlers use. Clones share it.
#[derive(Clone)]
pub struct App(Arc<AppParts>);

impl Deref for App {
    type Target = AppParts;

    fn deref(&self) -> &AppParts {
        &self.0
    }
}

/// The parts of an [`App`].
pub struct AppParts {
    /// `embedded` or `redis`.
    pub broker_kind: &'static str,
    /// Reads and appends to logs.
    pub log: Arc<LogClient>,
    /// The live topics.
    pub live: Arc<Live>,
    /// The members of rooms.
    pub presence: Arc<Presence>,
    /// The removals.
    pub moderation: Arc<Moderation>,
    /// The shared hashes.
    pub hashes: Arc<dyn HashStore>,
    /// The registry of replicas.
    pub registry: Arc<dyn ReplicaRegistry>,
    /// The subscriber counts of all replicas.
    pub room_counts: RoomCounts,
    /// What streams use.
    pub delivery: Arc<Delivery>,
    /// Identifies callers.
    pub access: Access,
    /// The limits of requests and streams for each caller. `None`: no limits.
    pub limits: Option<Arc<RateLimiter>>,
    /// The bytes of request bodies.
    pub bodies: Arc<BodyBudget>,
    /// The limits of log lines.
    pub(super) log_lines: Arc<LineLimits>,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// The open connections.
    pub connections: TaskTracker,
    /// The settings.
    pub settings: Settings,
    /// The name of this replica.
    pub replica: Arc<str>,
    /// Whether the replica is shutting down.
    pub drain: Drain,
    /// Whether to refuse requests that a web page of another site could make. True for a gateway without keys that
    /// only this machine can reach.
    pub guarded: bool,
}

impl App {
    /// Builds a replica's parts on a broker, and starts their tasks and those of the broker. `is_local`: only this
    /// machine can reach the gateway.
    pub fn start(
        settings: Settings,
        broker: Arc<dyn Broker>,
        access: Access,
        replica: Arc<str>,
        is_local: bool,
        tasks: &Tasks,
    ) -> Self {
        let log = LogClient::new(broker.clone());
        let live = Live::new(log.clone(), broker.clone(), settings.live(), tasks);
        let presence = Presence::new(log.clone(), broker.clone(), settings.presence.presence(), tasks);
        let moderation = Moderation::new(broker.clone(), log.clone(), presence.clone(), tasks);
        let listeners = Listeners { log: live.clone(), presence: presence.clone(), moderation: moderation.clone() };
        live.start();
        presence.start();
        moderation.start();
        broker.clone().start(listeners, tasks);
        let metrics = Arc::new(Metrics::new(env!("CARGO_PKG_VERSION"), broker.kind()));
        let drain = Drain::new(settings.shutdown.drain_window);
        let delivery = Delivery {
            moderation: moderation.clone(),
            metrics: metrics.clone(),
            drain: drain.clone(),
            settings: settings.streams.delivery(),
            replica: replica.clone(),
        };
        // Without keys on loopback there are no limits, so that a first load test measures the gateway.
        let has_limits = !access.is_open() || !is_local;
        Self(Arc::new(AppParts {
            broker_kind: broker.kind(),
            log,
            live,
            presence,
            moderation,
            hashes: broker.clone(),
            registry: broker.clone(),
            room_counts: RoomCounts::new(broker.clone()),
            delivery: Arc::new(delivery),
            guarded: access.is_open() && is_local && !settings.access.insecure_allow_anonymous,
            limits: has_limits.then(|| RateLimiter::new(settings.limits.limits(), broker)),
            access,
            bodies: BodyBudget::new(settings.requests.max_total_body_bytes),
            log_lines: Arc::default(),
            metrics,
            connections: TaskTracker::new(),
            settings,
            replica,
            drain,
        }))
    }
}
