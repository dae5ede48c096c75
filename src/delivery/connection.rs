//! Streams on plain HTTP/1 sockets, which are written to without hyper.

use std::io;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::yield_now;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::broadcaster::Broadcasters;
use super::heartbeat::Heartbeat;
use super::http1::{LAST_CHUNK, chunk};
use super::session::StreamSession;
use crate::live::CaughtUp;
use crate::rate_limit::OpenPermit;

/// Bytes that a client may send while it reads a stream, such as pipelined requests. The gateway discards them, and
/// treats a client that sends more as disconnected.
const MAX_DISCARDED: u32 = 64 * 1024;

/// A stream that has not begun, in the extensions of its response. It serves as the body of the response, unless the
/// server detaches it and writes to the socket directly. Clones are the same stream.
#[derive(Clone)]
pub struct DetachableStream {
    session: Arc<Mutex<Option<StreamSession>>>,
    /// Whether a broadcaster may write to it, which writes chunks.
    needs_chunks: bool,
}

/// How the end of a response's body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// By the last of its chunks, in HTTP/1.1.
    Chunks,
    /// By the end of the connection, in HTTP/1.0.
    Close,
}

/// A connection's share of the limits of connections.
pub struct ConnPermit {
    /// Of the limit of all, or of the limit of those that are refused.
    pub total: OwnedSemaphorePermit,
    /// Of the limit of its address.
    pub address: Option<OpenPermit>,
}

/// What a connection holds as long as it exists.
pub struct ConnGuard {
    /// Its share of the limits of connections.
    pub permit: ConnPermit,
    /// Counts it for a shutdown, which waits for all connections to end.
    pub token: TaskTrackerToken,
}

/// A stream and its socket. A write of a block that all subscribers get touches only the socket and the heartbeat.
/// The rest is in memory of its own.
pub(super) struct StreamConn {
    /// Dropped first: its permits are free before the client can see that the socket is closed.
    pub(super) state: Box<StreamState>,
    pub(super) socket: StreamSocket,
    pub(super) heartbeat: Heartbeat,
}

/// The part of a stream that few writes touch.
pub(super) struct StreamState {
    pub(super) session: StreamSession,
    framing: Framing,
    _guard: ConnGuard,
}

/// A socket that the gateway only writes to.
pub(super) struct StreamSocket {
    tcp: TcpStream,
    discarded: u32,
}

impl Framing {
    /// Bytes as a part of the body. An empty chunk would end it.
    fn frame(self, bytes: Bytes) -> Bytes {
        if self == Self::Close || bytes.is_empty() { bytes } else { chunk(&bytes).into() }
    }
}

impl DetachableStream {
    /// A stream that has not begun.
    pub fn new(session: StreamSession) -> Self {
        let needs_chunks = !session.is_page();
        Self { session: Arc::new(Mutex::new(Some(session))), needs_chunks }
    }

    /// A placeholder without a stream, for tests of detaching.
    #[cfg(test)]
    pub fn empty(needs_chunks: bool) -> Self {
        Self { session: Arc::default(), needs_chunks }
    }

    /// The stream as the body of its response, for one that can't leave hyper.
    pub fn body(&self) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        stream::unfold((self.clone(), None), |(stream, begun)| async move {
            let (mut session, mut heartbeat) = begun.or_else(|| stream.begin())?;
            match session.next(&mut heartbeat).await {
                Some(bytes) => Some((Ok(bytes), (stream, Some((session, heartbeat))))),
                None if session.ends_with_a_cut() => Some((Err(cut().await), (stream, None))),
                None => None,
            }
        })
    }

    /// Whether it can be written without hyper to a body with this framing.
    pub fn fits(&self, framing: Framing) -> bool {
        framing == Framing::Chunks || !self.needs_chunks
    }

    /// Serves the stream on a socket. The head of its response has been sent.
    pub fn serve(&self, tcp: TcpStream, framing: Framing, guard: ConnGuard, broadcasters: &Arc<Broadcasters>) {
        let Some(mut session) = self.take() else { return };
        let opening = framing.frame(session.open());
        let socket = StreamSocket { tcp, discarded: 0 };
        let Ok(written) = socket.try_write(&opening) else { return };
        let heartbeat = session.heartbeat();
        let conn =
            StreamConn { socket, heartbeat, state: Box::new(StreamState { session, framing, _guard: guard }) };
        // A task only to send the first block would cost four kilobytes for each of the streams that open together.
        match conn.caught_up().filter(|_| written == opening.len()) {
            Some(caught_up) => broadcasters.join(conn, caught_up),
            None => broadcasters.serve_alone(conn, opening.slice(written..)),
        }
    }

    fn begin(&self) -> Option<(StreamSession, Heartbeat)> {
        let session = self.take()?;
        let heartbeat = session.heartbeat();
        Some((session, heartbeat))
    }

    fn take(&self) -> Option<StreamSession> {
        self.session.lock().expect("no holder of the lock panics").take()
    }
}

impl StreamConn {
    /// The stream's place, if a broadcaster can serve it.
    pub(super) fn caught_up(&self) -> Option<CaughtUp> {
        self.state.session.caught_up(&self.heartbeat)
    }
}

impl StreamSocket {
    /// Writes as much as the kernel accepts at once. Returns the number of bytes: 0 if the send buffer is full.
    ///
    /// The call bypasses tokio, whose record of the socket is in memory of its own that is not in the cache. tokio may
    /// therefore believe that a full socket is ready, which costs the next write one more system call.
    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match SockRef::from(&self.tcp).send(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            written => written,
        }
    }

    /// Registers a waker for the moment at which the client sends data or disconnects. Returns false if the client has
    /// disconnected.
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

    /// Ends the body if it is `complete`, and closes the connection. Without its last chunk, the body counts as cut.
    async fn end(&mut self, complete: bool, framing: Framing, cut: &CancellationToken) -> io::Result<()> {
        if complete && framing == Framing::Chunks {
            self.write(LAST_CHUNK, cut).await?;
        }
        self.tcp.shutdown().await
    }

    /// Discards the data that the client has sent. Returns false if the client has disconnected.
    fn discard(&mut self) -> bool {
        let mut scratch = [0; 1024];
        match self.tcp.try_read(&mut scratch) {
            // A half-closed connection counts as disconnected.
            Ok(0) => false,
            Ok(count) => {
                self.discarded = self.discarded.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
                self.discarded <= MAX_DISCARDED
            }
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

/// A body of these bytes, after which the connection is cut.
pub fn cut_after(bytes: Bytes) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::iter([Ok(bytes)]).chain(stream::once(async { Err(cut().await) }))
}

/// The error of a body at which hyper closes the connection. hyper writes what it has whenever a body has to be waited
/// for, so this lets it wait once.
async fn cut() -> io::Error {
    yield_now().await;
    io::ErrorKind::ConnectionAborted.into()
}

/// Serves one stream: writes the rest of an earlier write, and then what follows, until the stream ends, is caught up
/// with its room, or is cut off.
///
/// The task checks `cut` itself. If the task were cancelled from outside, its state would be stored several times: a
/// future that is moved into another future occupies memory in both.
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
        rest = conn.state.framing.frame(bytes);
    }
    let StreamConn { state, mut socket, .. } = conn;
    let StreamState { session, framing, _guard } = *state;
    let complete = !session.ends_with_a_cut();
    // The session's permits are free before the client can see that the stream has ended.
    drop(session);
    let _ = socket.end(complete, framing, &cut).await;
}
