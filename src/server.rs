//! The only file that knows every part: it builds a gateway, serves, and stops in order.

mod connections;
mod handover;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::task::TaskTracker;

use self::connections::Connections;
use crate::access::Access;
use crate::broker::memory::{MemoryBroker, MemorySettings, StoreError};
use crate::broker::redis::RedisBroker;
use crate::broker::{Broker, Buckets, HashStore, Occupancy};
use crate::config::{AccessSettings, Settings, SettingsError};
use crate::http::{self, App, Fans, Parts};
use crate::hub::Hub;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::shutdown::{Drain, Tasks};

/// Open files that connections leave for the listener, for Redis, and for answers to those above the limit.
pub const RESERVED_FILES: usize = connections::OVERLOAD_CONNECTIONS + 64;
/// After the drain window, the time for the last requests to finish.
const LAST_REQUESTS: Duration = Duration::from_secs(5);
/// The time for background tasks to end.
const LAST_TASKS: Duration = Duration::from_secs(2);
/// How often the embedded broker drops what has expired.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// Why a gateway can't serve, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The settings don't go together.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A key can't be used: the flag, and why.
    #[error("{0}")]
    Key(String),
    /// A listener beside the first can't be had.
    #[error("{flag} {address}: {why}")]
    Listen {
        /// Which.
        flag: &'static str,
        /// Its address.
        address: SocketAddr,
        /// Why not.
        why: io::Error,
    },
    /// The Redis URL can't be used.
    #[error("--redis-url: {0}")]
    Redis(::redis::RedisError),
    /// The data folder can't be used.
    #[error("--data-dir {}: {why}", folder.display())]
    Data {
        /// The folder.
        folder: PathBuf,
        /// Why not.
        why: StoreError,
    },
    /// The listener failed.
    #[error("the listener failed: {0}")]
    Listener(#[from] io::Error),
    /// A part that the gateway can't do without has ended.
    #[error("a task that must not end has ended; the log says which")]
    TaskEnded,
}

impl ServeError {
    /// Whether it never began to serve, since what it was told does not work.
    pub fn is_of_settings(&self) -> bool {
        matches!(self, Self::Settings(_) | Self::Key(_) | Self::Listen { .. } | Self::Redis(_) | Self::Data { .. })
    }
}

/// Serves on a listener until `shutdown` resolves; then leaves politely, and returns. `ready` is called once it serves.
pub async fn run(
    settings: Settings,
    listener: TcpListener,
    ready: impl FnOnce(),
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    settings.check()?;
    let tasks = Tasks::default();
    let replica: Arc<str> = match &settings.replica_id {
        Some(name) => name.as_str().into(),
        None => uuid::Uuid::new_v4().simple().to_string()[..12].into(),
    };
    let access = access(&settings.access, &tasks)?;
    let Brokers { hub, hashes, buckets } = build(&settings, &replica, &tasks).await?;
    let is_local = listener.local_addr()?.ip().is_loopback();
    let drain = Drain::new(settings.drain_window);
    let app = App::new(Parts {
        hub: hub.clone(),
        hashes,
        metrics: Metrics::new(env!("CARGO_PKG_VERSION"), hub.broker().kind()),
        connections: TaskTracker::new(),
        guarded: access.is_open() && is_local && !settings.insecure_allow_anonymous,
        // A first load test measures the gateway.
        limits: (!access.is_open() || !is_local).then(|| Limits::new(settings.limits.limits(), buckets)),
        access,
        settings: Arc::new(settings),
        replica,
        drain: drain.clone(),
    });
    let fans = Fans::new(&app, &tasks);
    let aside = Aside { app: &app, fans: &fans, tasks: &tasks };
    aside.serve("--metrics-listen", app.settings.metrics_listen, http::metrics_alone).await?;
    aside.serve("--admin-listen", app.settings.admin_listen, http::admin_alone).await?;
    let connections =
        Connections::new(&app, app.connections.clone(), fans, http::router(&app), http::overloaded(&app));
    tracing::info!(address = %listener.local_addr()?, broker = hub.broker().kind(), "serving");
    ready();
    {
        let leaving = async {
            shutdown.await;
            drain.leave();
            tracing::info!(delay = ?app.settings.drain_delay, "leaving: unready, still answering");
            sleep(app.settings.drain_delay).await;
        };
        tokio::select! {
            never = connections.accept(&listener) => match never {},
            () = leaving => {}
            () = tasks.failed() => drain.leave(),
        }
    }
    drop(listener);
    tracing::info!(window = ?app.settings.drain_window, connections = connections.count(), "ending streams");
    drain.end_streams();
    connections.finish(app.settings.drain_window + LAST_REQUESTS).await;
    // Subscribers that have gone elsewhere must not be counted here until the lease runs out.
    if let Err(error) = hub.broker().report(&Occupancy::new(), 0).await {
        tracing::debug!(%error, "the broker was not told that this replica's rooms are empty");
    }
    let failed = tasks.has_failed();
    tasks.stop(LAST_TASKS).await;
    if failed { Err(ServeError::TaskEnded) } else { Ok(()) }
}

/// Serves some routes on listeners of their own.
struct Aside<'a> {
    app: &'a App,
    fans: &'a Arc<Fans>,
    tasks: &'a Tasks,
}

impl Aside<'_> {
    async fn serve(
        &self,
        flag: &'static str,
        address: Option<SocketAddr>,
        router: impl FnOnce(&App) -> axum::Router,
    ) -> Result<(), ServeError> {
        let Some(address) = address else { return Ok(()) };
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|why| ServeError::Listen { flag, address, why })?;
        let (router, overloaded) = (router(self.app), http::overloaded(self.app));
        // Not among those that leaving waits for.
        let connections = Connections::new(self.app, TaskTracker::new(), self.fans.clone(), router, overloaded);
        self.tasks.supervise(flag, async move {
            connections.accept(&listener).await;
        });
        Ok(())
    }
}

fn access(settings: &AccessSettings, tasks: &Tasks) -> Result<Access, ServeError> {
    if !settings.has_keys() {
        return Ok(Access::open());
    }
    let keys = settings.key_sources().map_err(ServeError::Key)?;
    Ok(Access::with_keys(keys, settings.anonymous(), settings.rules(), tasks))
}

/// What a broker does.
struct Brokers {
    hub: Arc<Hub>,
    hashes: Arc<dyn HashStore>,
    buckets: Arc<dyn Buckets>,
}

async fn build(settings: &Settings, replica: &str, tasks: &Tasks) -> Result<Brokers, ServeError> {
    let retention = settings.retention();
    if let Some(url) = &settings.redis_url {
        let broker = RedisBroker::new(
            url.expose(),
            &settings.redis_prefix,
            replica,
            settings.roster.replica_lease,
            retention,
        );
        let broker = Arc::new(broker.map_err(ServeError::Redis)?);
        let hub = start(broker.clone(), settings, tasks);
        broker.start(tasks);
        return Ok(Brokers { hub, hashes: broker.clone(), buckets: broker });
    }
    let memory = MemorySettings {
        replica: replica.into(),
        lease: settings.roster.replica_lease,
        retention,
        max_bytes: settings.embedded_max_bytes,
    };
    let broker = Arc::new(match settings.data_folder() {
        None => MemoryBroker::new(memory),
        Some(data) => {
            let folder = data.path.clone();
            let opened = MemoryBroker::open(data, memory, tasks).await;
            opened.map_err(|why| ServeError::Data { folder, why })?
        }
    });
    let hub = start(broker.clone(), settings, tasks);
    let swept = broker.clone();
    tasks.supervise("sweep", async move {
        let mut ticks = interval(SWEEP_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            swept.sweep();
        }
    });
    Ok(Brokers { hub, hashes: broker.clone(), buckets: broker })
}

fn start(broker: Arc<dyn Broker>, settings: &Settings, tasks: &Tasks) -> Arc<Hub> {
    let hub = Hub::new(broker, settings.hub(), tasks);
    hub.start();
    hub
}
