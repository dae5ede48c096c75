//! The only file that knows every part: it builds a gateway, serves, and stops in order.

mod connections;
mod detach;

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
use crate::config::{AccessSettings, Settings, SettingsError};
use crate::delivery::Broadcasters;
use crate::http::{self, App};
use crate::shutdown::Tasks;

/// Open files that connections leave for the listener, for Redis, and for answers to those above the limit.
pub const RESERVED_FILES: usize = connections::OVERLOAD_CONNECTIONS + 64;
/// After the drain window, the time for the last requests to finish.
const LAST_REQUESTS: Duration = Duration::from_secs(5);
/// The time for background tasks to end.
const LAST_TASKS: Duration = Duration::from_secs(2);

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
    pub fn is_settings_error(&self) -> bool {
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
    let is_local = listener.local_addr()?.ip().is_loopback();
    let broker = broker(&settings, &replica, &tasks).await?;
    let app = App::start(settings, broker, access, replica, is_local, &tasks);
    let drain = app.drain.clone();
    let broadcasters = Broadcasters::new(app.delivery.clone(), &tasks);
    let extra = ExtraListener { app: &app, broadcasters: &broadcasters, tasks: &tasks };
    extra.serve("--metrics-listen", app.settings.metrics_listen, http::metrics_router).await?;
    extra.serve("--admin-listen", app.settings.admin_listen, http::admin_router).await?;
    let (router, overload_router) = (http::router(&app), http::overload_router(&app));
    let connections = Connections::new(&app, app.connections.clone(), broadcasters, router, overload_router);
    tracing::info!(address = %listener.local_addr()?, broker = app.broker_kind, "serving");
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
    if let Err(error) = app.registry.report(&SubscriberCounts::new(), 0).await {
        tracing::debug!(%error, "the broker was not told that this replica's rooms are empty");
    }
    let failed = tasks.has_failed();
    tasks.stop(LAST_TASKS).await;
    if failed { Err(ServeError::TaskEnded) } else { Ok(()) }
}

/// Serves some routes on listeners of their own.
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
        let (router, overload_router) = (router(self.app), http::overload_router(self.app));
        // Not among those that leaving waits for.
        let connections =
            Connections::new(self.app, TaskTracker::new(), self.broadcasters.clone(), router, overload_router);
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

/// The broker that the settings ask for. It is not started yet.
async fn broker(settings: &Settings, replica: &str, tasks: &Tasks) -> Result<Arc<dyn Broker>, ServeError> {
    let retention = settings.retention();
    let lease = settings.presence.replica_lease;
    if let Some(url) = &settings.redis_url {
        let broker = RedisBroker::new(url.expose(), &settings.redis_prefix, replica, lease, retention);
        return Ok(Arc::new(broker.map_err(ServeError::Redis)?));
    }
    let memory =
        MemorySettings { replica: replica.into(), lease, retention, max_bytes: settings.embedded_max_bytes };
    Ok(Arc::new(match settings.data_folder() {
        None => MemoryBroker::new(memory),
        Some(data) => {
            let folder = data.path.clone();
            let opened = MemoryBroker::open(data, memory, tasks).await;
            opened.map_err(|why| ServeError::Data { folder, why })?
        }
    }))
}
