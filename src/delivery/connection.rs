//! Streams on plain HTTP/1.1 sockets, written to without hyper.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};

use bytes::Bytes;
use futures_util::{Stream, stream};
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::broadcaster::Broadcasters;
use super::http1::{LAST_CHUNK, chunk};
use super::session::{Heartbeat, Session};

/// Bytes that a client may send while it reads a stream: requests that it hoped to get answered after it. They are discarded.
const MAX_DISCARDED: u32 = 64 * 1024;

/// A stream that is about to begin, in the extensions of its response. It is the response's body, unless the server detaches
/// it and writes to the socket directly. Clones are the same stream.
#[derive(Clone)]
pub struct DetachableStream(Arc<Mutex<Option<Session>>>);

/// What a connection holds for as long as it exists.
pub struct ConnGuard {
    /// Its place among the connections that there may be.
    pub permit: OwnedSemaphorePermit,
    /// Counts the connection for those who wait for all connections to end.
    pub token: TaskTrackerToken,
}

/// A stream and its socket. A write of what all subscribers get touches the socket and the heartbeat only, so the rest is apart
/// in memory.
pub(super) struct StreamConn {
    /// Dropped first: its permits are free before the client can see that the socket is closed.
    pub(super) state: Box<StreamState>,
    pub(super) socket: Socket,
    pub(super) heartbeat: Heartbeat,
}

/// What is seldom touched.
pub(super) struct StreamState {
    pub(super) session: Session,
    _guard: ConnGuard,
}

/// A socket that is only written to.
pub(super) struct Socket {
    tcp: TcpStream,
    discarded: u32,
}

impl DetachableStream {
    /// A stream that has not begun.
    pub fn new(session: Session) -> Self {
        Self(Arc::new(Mutex::new(Some(session))))
    }

    /// No stream, for tests of how one is passed on.
    #[cfg(test)]
    pub fn empty() -> Self {
        Self(Arc::new(Mutex::new(None)))
    }

    /// The stream as a body's data: for HTTP/1.0, and whatever else is not a plain socket.
    pub fn body(&self) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + use<> {
        stream::unfold((self.clone(), None), |(stream, running)| async move {
            let running: Option<(Session, Heartbeat)> = running;
            let begin = || {
                let session = stream.take()?;
                let heartbeat = session.heartbeat();
                Some((session, heartbeat))
            };
            let (mut session, mut heartbeat) = running.or_else(begin)?;
            let bytes = session.next(&mut heartbeat).await?;
            Some((Ok(bytes), (stream, Some((session, heartbeat)))))
        })
    }

    /// Serves the stream on a socket on which the head of its response has been sent, chunked.
    pub fn serve(&self, tcp: TcpStream, guard: ConnGuard, broadcasters: &Arc<Broadcasters>) {
        let Some(mut session) = self.take() else { return };
        let opening = Bytes::from(chunk(&session.open()));
        let socket = Socket { tcp, discarded: 0 };
        let Ok(written) = socket.try_write(&opening) else { return };
        let heartbeat = session.heartbeat();
        let conn = StreamConn { socket, heartbeat, state: Box::new(StreamState { session, _guard: guard }) };
        // A task for each stream, only to begin, would cost four kilobytes for each of many that open together.
        match conn.caught_up().filter(|_| written == opening.len()) {
            Some(caught_up) => broadcasters.join(conn, caught_up),
            None => broadcasters.serve_alone(conn, opening.slice(written..)),
        }
    }

    fn take(&self) -> Option<Session> {
        self.0.lock().expect("no holder of the lock panics").take()
    }
}

impl StreamConn {
    /// Where the stream is, if a broadcaster can serve it.
    pub(super) fn caught_up(&self) -> Option<crate::live::CaughtUp> {
        self.state.session.caught_up(&self.heartbeat)
    }
}

impl Socket {
    /// Writes what the kernel takes at once. Returns how many bytes that was: 0 if it takes no more now.
    ///
    /// The kernel is asked itself: what tokio knows of the socket is in memory of its own, and cold. So tokio may take a full
    /// socket for ready, which costs the next writer one system call more.
    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match SockRef::from(&self.tcp).send(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            written => written,
        }
    }

    /// Has the waker woken when the client sends something or disconnects. False if it has disconnected.
    pub(super) fn watch(&mut self, waker: &Waker) -> bool {
        let mut context = Context::from_waker(waker);
        while self.tcp.poll_read_ready(&mut context).is_ready() {
            if !self.discard() {
                return false;
            }
        }
        true
    }

    /// Resolves when the client has disconnected.
    async fn disconnected(&mut self) {
        while self.tcp.readable().await.is_ok() && self.discard() {}
    }

    async fn write(&mut self, bytes: &[u8], cut: &CancellationToken) -> io::Result<()> {
        tokio::select! {
            written = self.tcp.write_all(bytes) => written,
            () = cut.cancelled() => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }

    async fn end(&mut self, cut: &CancellationToken) -> io::Result<()> {
        self.write(LAST_CHUNK, cut).await?;
        self.tcp.shutdown().await
    }

    /// Discards what the client has sent. False if it has disconnected.
    fn discard(&mut self) -> bool {
        let mut scratch = [0; 1024];
        match self.tcp.try_read(&mut scratch) {
            // Half-closed counts as disconnected.
            Ok(0) => false,
            Ok(count) => {
                self.discarded = self.discarded.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
                self.discarded <= MAX_DISCARDED
            }
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

/// Serves one stream: writes what is left of an earlier write, and then what follows, until the stream ends, is caught up with
/// its room, or is cut off. (To cancel this from outside would cost its state several times over: a future that is moved into
/// another one is stored in both.)
pub(super) async fn serve_alone(
    mut conn: StreamConn,
    mut rest: Bytes,
    broadcasters: Arc<Broadcasters>,
    cut: CancellationToken,
) {
    loop {
        if conn.socket.write(&rest, &cut).await.is_err() {
            return;
        }
        if let Some(caught_up) = conn.caught_up() {
            return broadcasters.join(conn, caught_up);
        }
        let next = tokio::select! {
            next = conn.state.session.step(&mut conn.heartbeat) => next,
            () = conn.socket.disconnected() => return,
            () = cut.cancelled() => return,
        };
        let Some(bytes) = next else { break };
        // An empty chunk would be the last one.
        rest = if bytes.is_empty() { bytes } else { chunk(&bytes).into() };
    }
    let StreamConn { state, mut socket, .. } = conn;
    let StreamState { session, _guard } = *state;
    // Its permits are free before the client can see that it has ended.
    drop(session);
    let _ = socket.end(&cut).await;
}
