//! Accepts connections and drives hyper over each. hyper's http1 builder takes half the memory of `axum::serve`, and
//! its timeouts work.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::detach::{Detach, IoTracker};
use super::head_timer::HeadTimer;
use super::unread::discard_rest;
use crate::config::Settings;
use crate::delivery::{Broadcasters, ConnGuard, ConnPermit, DetachableStream, Framing};
use crate::http::{self, App, Peer};
use crate::rate_limit::{OpenCounts, RateKey};

/// Connections above the limit that still get a refusal. Further ones are closed without an answer.
pub(super) const OVERLOAD_CONNECTIONS: usize = 256;
/// Most bytes of a request's head, and of data that hyper has not written to a connection yet.
const BUFFER_BYTES: usize = 32 * 1024;
/// Pause after an error of `accept`. Most of them, such as too many open files, concern the whole process and would
/// recur at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Time for connections to end after they were cut.
const CUT_LIMIT: Duration = Duration::from_secs(1);

/// The connections of one listener.
pub(super) struct Connections {
    app: App,
    router: Router,
    overloaded: Router,
    permits: Arc<Semaphore>,
    /// The connections of each address, and the most of one. 0: no limit.
    addresses: Arc<OpenCounts>,
    most_per_address: u32,
    overload_permits: Arc<Semaphore>,
    tracker: TaskTracker,
    broadcasters: Arc<Broadcasters>,
    /// Ends connections after their request in flight.
    finish: CancellationToken,
    /// Ends connections at once.
    cut: CancellationToken,
}

impl Connections {
    pub(super) fn new(app: &App, tracker: TaskTracker, broadcasters: Arc<Broadcasters>, router: Router) -> Self {
        let max_connections = app.settings.requests.max_connections;
        // One address can't keep all others out, however few connections there may be.
        let half = u32::try_from(max_connections / 2).unwrap_or(u32::MAX).max(1);
        let limited = app.limits.as_ref().map(|_| app.settings.limits.max_connections_per_address);
        Self {
            permits: Arc::new(Semaphore::new(max_connections)),
            addresses: Arc::default(),
            most_per_address: limited.unwrap_or(0).min(half),
            app: app.clone(),
            router,
            overloaded: http::overload_router(app),
            overload_permits: Arc::new(Semaphore::new(OVERLOAD_CONNECTIONS)),
            tracker,
            broadcasters,
            finish: CancellationToken::new(),
            cut: CancellationToken::new(),
        }
    }

    /// The number of open connections.
    pub(super) fn count(&self) -> usize {
        self.tracker.len()
    }

    /// Accepts connections without end. Dropping the future stops that; open connections go on.
    pub(super) async fn accept(&self, listener: &TcpListener) -> Infallible {
        loop {
            match listener.accept().await {
                Ok((socket, peer)) => self.serve(socket, Peer(peer.ip())),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Lets every connection finish its request, and cuts those that have not ended after `limit`.
    pub(super) async fn finish(&self, limit: Duration) {
        self.finish.cancel();
        self.tracker.close();
        if timeout(limit, self.tracker.wait()).await.is_err() {
            tracing::warn!(connections = self.count(), "some connections did not end in time and are cut");
            self.cut.cancel();
            self.broadcasters.cut();
            let _ = timeout(CUT_LIMIT, self.tracker.wait()).await;
        }
    }

    /// A connection's share of the limits. `None` if one of them is reached.
    fn permit(&self, peer: Peer) -> Option<ConnPermit> {
        let address = peer.client(&self.app.settings.limits.trusted_proxy);
        let address =
            address.map(|address| self.addresses.open([(RateKey::Address(address), self.most_per_address)]));
        let address =
            address.transpose().inspect_err(|limit| self.app.metrics.rejected(limit, "connection")).ok()?;
        Some(ConnPermit { total: self.permits.clone().try_acquire_owned().ok()?, address })
    }

    fn serve(&self, socket: TcpStream, peer: Peer) {
        let admitted = self.permit(peer).map(|permit| (permit, self.router.clone()));
        let overload = || {
            let total = self.overload_permits.clone().try_acquire_owned().ok()?;
            Some((ConnPermit { total, address: None }, self.overloaded.clone()))
        };
        // Beyond both limits, not even a refusal is worth its cost.
        let Some((permit, router)) = admitted.or_else(overload) else {
            self.app.metrics.rejected("connections", "connection");
            return;
        };
        if let Err(error) = prepare(&socket, &self.app.settings) {
            tracing::debug!(%error, "a connection was lost before it was served");
            return;
        }
        let connection = AcceptedConnection {
            socket,
            peer,
            permit,
            tracker: self.tracker.clone(),
            router,
            app: self.app.clone(),
            broadcasters: self.broadcasters.clone(),
            finish: self.finish.clone(),
            cut: self.cut.clone(),
        };
        self.tracker.spawn(async {
            if connection.receives_bytes().await {
                // hyper holds 8 KiB for each connection. The box keeps them out of the task's own memory, and delays
                // them until the client has sent something: of many clients that connect at once, none has when it is
                // accepted.
                Box::pin(connection.drive()).await;
            }
        });
    }
}

/// A connection that has been accepted.
struct AcceptedConnection {
    socket: TcpStream,
    peer: Peer,
    permit: ConnPermit,
    tracker: TaskTracker,
    router: Router,
    app: App,
    broadcasters: Arc<Broadcasters>,
    finish: CancellationToken,
    cut: CancellationToken,
}

impl AcceptedConnection {
    /// Waits for the client's first bytes. False if they do not come in time, or if the gateway shuts down first.
    async fn receives_bytes(&self) -> bool {
        // Unlike `peek`, `readable` may return without bytes.
        let mut first = [0];
        tokio::select! {
            // A request that has arrived before the shutdown is answered.
            biased;
            received = timeout(self.app.settings.requests.header_timeout, self.socket.peek(&mut first)) => {
                if received.is_err() {
                    self.app.metrics.rejected("header_time", "connection");
                }
                received.is_ok()
            }
            () = self.finish.cancelled() => false,
        }
    }

    async fn drive(self) {
        let Self { socket, peer, permit, tracker, router, app, broadcasters, finish, cut } = self;
        let detach = Detach::default();
        let answering = detach.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer);
            let response = answering.clone().answer(router.clone(), request);
            async move { Ok::<_, Infallible>(response.await) }
        });
        let heads = HeadTimer::new(app.settings.requests.header_timeout);
        let io = IoTracker { io: TokioIo::new(socket), detach: detach.clone(), heads: heads.clone() };
        let mut connection = http1::Builder::new()
            .timer(heads.clone())
            .header_read_timeout(app.settings.requests.keep_alive)
            // Without it, hyper takes a larger head that arrives in few packets.
            .max_header_size(BUFFER_BYTES)
            .max_buf_size(BUFFER_BYTES)
            .serve_connection(io, service);
        let driven = tokio::select! {
            driven = drive(&mut connection, &detach) => driven,
            () = finish.cancelled() => {
                Pin::new(&mut connection).graceful_shutdown();
                tokio::select! {
                    driven = drive(&mut connection, &detach) => driven,
                    () = cut.cancelled() => Ok(None),
                }
            }
        };
        match driven {
            Ok(Some((stream, framing))) => {
                let socket = connection.into_parts().io.io.into_inner();
                stream.serve(socket, framing, ConnGuard { permit, token: tracker.token() }, &broadcasters);
                return;
            }
            Ok(None) if !detach.has_unread_body() => return,
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(%error, "a connection ended early");
                if error.is_timeout() {
                    if heads.has_begun() {
                        app.metrics.rejected("header_time", "connection");
                    }
                    return;
                }
            }
        }
        tokio::select! {
            () = discard_rest(connection.into_parts().io.io.into_inner()) => {}
            () = cut.cancelled() => {}
        }
    }
}

/// Drives a connection until it ends (`None`), or until a stream is ready to leave hyper.
async fn drive<S>(
    connection: &mut http1::Connection<IoTracker<TokioIo<TcpStream>>, S>,
    detach: &Detach,
) -> hyper::Result<Option<(DetachableStream, Framing)>>
where
    S: HttpService<Incoming, ResBody = Body>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    poll_fn(|cx| match Pin::new(&mut *connection).poll(cx) {
        Poll::Ready(ended) => Poll::Ready(ended.map(|()| None)),
        Poll::Pending => detach.take().map_or(Poll::Pending, |stream| Poll::Ready(Ok(Some(stream)))),
    })
    .await
}

/// Bounds the kernel's memory for a client that takes no data, and lets the kernel find out that a client has stalled
/// or vanished.
fn prepare(socket: &TcpStream, settings: &Settings) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let socket = SockRef::from(socket);
    socket.set_send_buffer_size(settings.streams.send_buffer_bytes)?;
    // The kernel counts keep-alive in whole seconds, and refuses 0.
    let interval = (settings.streams.stall_timeout / 3).max(Duration::from_secs(1));
    let probes = TcpKeepalive::new().with_time(settings.streams.stall_timeout).with_interval(interval);
    socket.set_tcp_keepalive(&probes)?;
    socket.set_tcp_user_timeout(Some(settings.streams.stall_timeout))
}
