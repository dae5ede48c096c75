//! The gateway: builds it from the settings, serves, and shuts it down in order. Only this file knows every part.

mod connections;
mod detach;
mod head_timer;
mod unread;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

use self::connections::Connections;
use crate::auth::Access;
use crate::broker::memory::{MemoryBroker, MemorySettings, StoreError};
use crate::broker::redis::RedisBroker;
use crate::broker::{Broker, SubscriberCounts};
use crate::config::{AccessArgs, RedisArgs, Settings, SettingsError};
use crate::delivery::Broadcasters;
use crate::http::{self, App};
use crate::shutdown::Tasks;

/// Open files that `--max-connections` leaves for the listener, for Redis, and for the refusal of connections above the
/// limit.
pub const RESERVED_FILES: usize = connections::OVERLOAD_CONNECTIONS + 64;
/// Time for requests in flight to finish, after the drain window.
const REQUEST_GRACE: Duration = Duration::from_secs(5);
/// Time for background tasks to end.
const TASK_GRACE: Duration = Duration::from_secs(2);

/// Why a gateway can't begin to serve, or stopped serving.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The settings can't be used together.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A key can't be used: its flag, and the reason.
    #[error("{0}")]
    Key(String),
    /// An extra listener can't be bound.
    #[error("{flag} {address}: {why}")]
    Listen {
        /// The listener's flag.
        flag: &'static str,
        /// The listener's address.
        address: SocketAddr,
        /// The reason.
        why: io::Error,
    },
    /// The Redis URL can't be used.
    #[error("--redis-url: {0}")]
    Redis(String),
    /// The data folder can't be used.
    #[error("--data-dir {}: {why}", folder.display())]
    Data {
        /// The folder.
        folder: PathBuf,
        /// The reason.
        why: StoreError,
    },
    /// The listener failed.
    #[error("the listener failed: {0}")]
    Listener(#[from] io::Error),
    /// A task without which the gateway can't work has ended.
    #[error("a background task ended unexpectedly; the log names it")]
    TaskEnded,
}

impl ServeError {
    /// Whether the gateway never began to serve because a setting can't be used.
    pub fn is_settings_error(&self) -> bool {
        matches!(self, Self::Settings(_) | Self::Key(_) | Self::Listen { .. } | Self::Redis(_) | Self::Data { .. })
    }
}

/// Serves on a listener until `shutdown` resolves. Then shuts down in order, and returns. Calls `ready` once it serves.
pub async fn run(
    settings: Settings,
    listener: TcpListener,
    ready: impl FnOnce(),
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    settings.check()?;
    let tasks = Tasks::default();
    let replica: Arc<str> = match &settings.server.replica_id {
        Some(name) => name.as_str().into(),
        None => uuid::Uuid::new_v4().simple().to_string()[..12].into(),
    };
    let access = access(&settings.access, &tasks)?;
    let is_local = listener.local_addr()?.ip().is_loopback();
    let broker = broker(&settings, &replica, &tasks).await?;
    let app = App::start(settings, broker, access, replica, is_local, &tasks);
    let drain = app.drain.clone();
    let broadcasters = Broadcasters::new(app.delivery.clone(), &tasks);
    let extra = ExtraListener { app: &app, broadcasters: &broadcasters, tasks: &tasks };
    extra.serve("--metrics-listen", app.settings.server.metrics_listen, http::metrics_router).await?;
    extra.serve("--admin-listen", app.settings.server.admin_listen, http::admin_router).await?;
    let connections = Connections::new(&app, app.connections.clone(), broadcasters, http::router(&app));
    tracing::info!(address = %listener.local_addr()?, broker = app.broker_kind, "serving");
    ready();
    {
        let draining = async {
            shutdown.await;
            drain.leave();
            // The delay is for a balancer, which first has to see that the replica is not ready.
            if is_local && !drain.is_watched() && !app.metrics.has_streams() {
                return;
            }
            tracing::info!(delay = ?app.settings.shutdown.drain_delay, "shutting down: not ready, still serving");
            sleep(app.settings.shutdown.drain_delay).await;
        };
        tokio::select! {
            never = connections.accept(&listener) => match never {},
            () = draining => {}
            () = tasks.failed() => drain.leave(),
        }
    }
    drop(listener);
    tracing::info!(window = ?app.settings.shutdown.drain_window, connections = connections.count(), "ending streams");
    drain.end_streams();
    connections.finish(app.settings.shutdown.drain_window + REQUEST_GRACE).await;
    // Without this report, the subscribers that have moved to other replicas would count here, too, until the lease
    // expires. A broker that fails now would only make the process wait.
    if app.log.health().commands.is_none()
        && let Err(error) = app.registry.report(&SubscriberCounts::new(), 0).await
    {
        tracing::debug!(%error, "the last report to the broker failed; this replica's counts stay until its lease expires");
    }
    let failed = tasks.has_failed();
    tasks.stop(TASK_GRACE).await;
    if failed { Err(ServeError::TaskEnded) } else { Ok(()) }
}

/// Serves some of the routes on another address.
struct ExtraListener<'a> {
    app: &'a App,
    broadcasters: &'a Arc<Broadcasters>,
    tasks: &'a Tasks,
}

impl ExtraListener<'_> {
    async fn serve(
        &self,
        flag: &'static str,
        address: Option<SocketAddr>,
        router: impl FnOnce(&App) -> axum::Router,
    ) -> Result<(), ServeError> {
        let Some(address) = address else { return Ok(()) };
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|why| ServeError::Listen { flag, address, why })?;
        // A tracker of its own: the shutdown does not wait for these connections.
        let connections =
            Connections::new(self.app, TaskTracker::new(), self.broadcasters.clone(), router(self.app));
        self.tasks.supervise(flag, async move {
            connections.accept(&listener).await;
        });
        Ok(())
    }
}

fn access(settings: &AccessArgs, tasks: &Tasks) -> Result<Access, ServeError> {
    if !settings.has_keys() {
        return Ok(Access::open());
    }
    let keys = settings.key_sources().map_err(ServeError::Key)?;
    Ok(Access::with_keys(keys, settings.anonymous(), settings.rules(), tasks))
}

/// The broker that the settings select, not started yet.
async fn broker(settings: &Settings, replica: &str, tasks: &Tasks) -> Result<Arc<dyn Broker>, ServeError> {
    let retention = settings.retention.policy();
    let lease = settings.presence.replica_lease;
    if let Some(url) = &settings.redis.url {
        let RedisArgs { prefix, hash_key, .. } = &settings.redis;
        let broker = RedisBroker::new(url.expose(), prefix, hash_key, replica, lease, retention);
        return Ok(Arc::new(broker.map_err(|why| ServeError::Redis(why.to_string()))?));
    }
    let memory =
        MemorySettings { replica: replica.into(), lease, retention, max_bytes: settings.embedded.max_bytes };
    Ok(Arc::new(match settings.embedded.data_folder() {
        None => MemoryBroker::new(memory),
        Some(data) => {
            let folder = data.path.clone();
            let opened = MemoryBroker::open(data, memory, tasks).await;
            opened.map_err(|why| ServeError::Data { folder, why })?
        }
    }))
}
