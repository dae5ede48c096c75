//! Accepts connections and drives hyper over them: its http1 builder by hand, which costs half the memory of
//! `axum::serve` and has timeouts that work.

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
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::detach::{Detach, FlushTracker};
use crate::config::Settings;
use crate::delivery::{Broadcasters, ConnGuard, DetachableStream};
use crate::http::{App, Peer};

/// Connections above the limit that are still answered, politely, before more are just closed.
pub(super) const OVERLOAD_CONNECTIONS: usize = 256;
/// Most bytes of a request's head, and of what waits in hyper to be written to one connection.
const BUFFER_BYTES: usize = 32 * 1024;
/// Pause after an error of accept that concerns the process, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Time that connections get to notice that they were cut.
const CUT_LIMIT: Duration = Duration::from_secs(1);

/// The connections of a gateway.
pub(super) struct Connections {
    app: App,
    router: Router,
    overloaded: Router,
    permits: Arc<Semaphore>,
    overload_permits: Arc<Semaphore>,
    tracker: TaskTracker,
    broadcasters: Arc<Broadcasters>,
    /// Connections finish their request in flight, and end.
    finish: CancellationToken,
    /// Connections end at once.
    cut: CancellationToken,
}

impl Connections {
    pub(super) fn new(
        app: &App,
        tracker: TaskTracker,
        broadcasters: Arc<Broadcasters>,
        router: Router,
        overloaded: Router,
    ) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(app.settings.max_connections)),
            app: app.clone(),
            router,
            overloaded,
            overload_permits: Arc::new(Semaphore::new(OVERLOAD_CONNECTIONS)),
            tracker,
            broadcasters,
            finish: CancellationToken::new(),
            cut: CancellationToken::new(),
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.tracker.len()
    }

    /// Accepts for ever; dropping it stops that, and leaves open connections alone.
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

    /// Lets every connection finish what it is at; those that have not after `limit` are cut.
    pub(super) async fn finish(&self, limit: Duration) {
        self.finish.cancel();
        self.tracker.close();
        if timeout(limit, self.tracker.wait()).await.is_err() {
            tracing::warn!(connections = self.count(), "connections did not end in time, and are cut");
            self.cut.cancel();
            self.broadcasters.cut();
            let _ = timeout(CUT_LIMIT, self.tracker.wait()).await;
        }
    }

    fn serve(&self, socket: TcpStream, peer: Peer) {
        let permit = self.permits.clone().try_acquire_owned().map(|permit| (permit, self.router.clone()));
        let overload =
            || self.overload_permits.clone().try_acquire_owned().map(|permit| (permit, self.overloaded.clone()));
        // Without any permit left, not even a refusal is worth its cost.
        let Ok((permit, router)) = permit.or_else(|_| overload()) else {
            self.app.metrics.rejected("connections", "connection");
            return;
        };
        if let Err(error) = prepare(&socket, &self.app.settings) {
            tracing::debug!(%error, "a connection went before it was served");
            return;
        }
        let connection = Connection {
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
            if connection.speaks().await {
                // Apart in memory, and only now: hyper holds 8 KiB for each connection, and those who have come together have said
                // nothing yet when they are accepted.
                Box::pin(connection.drive()).await;
            }
        });
    }
}

/// A connection that has been accepted.
struct Connection {
    socket: TcpStream,
    peer: Peer,
    permit: OwnedSemaphorePermit,
    tracker: TaskTracker,
    router: Router,
    app: App,
    broadcasters: Arc<Broadcasters>,
    finish: CancellationToken,
    cut: CancellationToken,
}

impl Connection {
    /// Waits until the client says something. False if it does not in time, or is not to be heard any more.
    async fn speaks(&self) -> bool {
        tokio::select! {
            // What was said before the end is answered.
            biased;
            heard = timeout(self.app.settings.header_timeout, self.socket.readable()) => {
                if heard.is_err() {
                    self.app.metrics.rejected("header_time", "connection");
                }
                heard.is_ok()
            }
            () = self.finish.cancelled() => false,
        }
    }

    async fn drive(self) {
        let Self { socket, peer, permit, tracker, router, app, broadcasters, finish, cut } = self;
        let detach = Detach::default();
        let answers = detach.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer);
            let answer = answers.clone().answer(router.clone(), request);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(app.settings.header_timeout)
            .max_buf_size(BUFFER_BYTES)
            .serve_connection(FlushTracker { io: TokioIo::new(socket), detach: detach.clone() }, service);
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
            Ok(Some(stream)) => {
                let socket = connection.into_parts().io.io.into_inner();
                stream.serve(socket, ConnGuard { permit, token: tracker.token() }, &broadcasters);
            }
            Ok(None) => {}
            Err(error) => {
                if error.is_timeout() {
                    app.metrics.rejected("header_time", "connection");
                }
                tracing::debug!(%error, "a connection ended early");
            }
        }
    }
}

/// Drives a connection until it ends, or a stream is to leave it.
async fn drive<S>(
    connection: &mut http1::Connection<FlushTracker<TokioIo<TcpStream>>, S>,
    detach: &Detach,
) -> hyper::Result<Option<DetachableStream>>
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

/// A reader that takes nothing costs the kernel little, and is found out; so is one that has vanished.
fn prepare(socket: &TcpStream, settings: &Settings) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let socket = SockRef::from(socket);
    socket.set_send_buffer_size(settings.send_buffer_bytes)?;
    // The kernel counts these in whole seconds, and takes no zero.
    let interval = (settings.stall_timeout / 3).max(Duration::from_secs(1));
    let probes = TcpKeepalive::new().with_time(settings.stall_timeout).with_interval(interval);
    socket.set_tcp_keepalive(&probes)?;
    socket.set_tcp_user_timeout(Some(settings.stall_timeout))
}
