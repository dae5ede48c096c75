//! Streams on plain HTTP/1.1 sockets, written to without hyper.
//!
//! Who is level with its room is led by the room's [fan](super::fan). Everyone else has a task of its own: it catches up
//! from its position, and gives the socket to the fan once it is there.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use futures_util::stream;
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::event_stream::EventStream;
use super::fan::Fans;
use crate::sse::{LAST_CHUNK, chunk};

/// What a client may send on while it reads a stream, to be thrown away: requests that it hoped to get in behind it.
const MOST_DISCARDED: u32 = 64 * 1024;

/// A stream that is about to begin, in the extensions of its answer. It is the answer's body, unless someone takes it and
/// writes to the socket instead. Clones are the same stream.
#[derive(Clone)]
pub struct Offer(Arc<Mutex<Option<EventStream>>>);

/// What a connection holds for as long as it is there.
pub struct Held {
    /// Its place among the connections that there may be.
    pub place: OwnedSemaphorePermit,
    /// Whoever waits for connections to end waits for this one.
    pub counted: TaskTrackerToken,
}

/// A stream and its socket. Writing what is for everybody looks at the socket alone, so the rest is apart in memory.
pub(super) struct Line {
    /// Dropped first: its place is free before the client can see that the socket is closed.
    pub(super) cold: Box<Cold>,
    pub(super) socket: Socket,
}

/// What is seldom looked at.
pub(super) struct Cold {
    pub(super) stream: EventStream,
    _held: Held,
}

/// A socket that is only written to.
pub(super) struct Socket {
    tcp: TcpStream,
    discarded: u32,
}

impl Offer {
    pub(super) fn new(stream: EventStream) -> Self {
        Self(Arc::new(Mutex::new(Some(stream))))
    }

    /// None at all, for tests of what is done with one.
    #[cfg(test)]
    pub fn nothing() -> Self {
        Self(Arc::new(Mutex::new(None)))
    }

    /// The stream as a body: for HTTP/1.0, and whatever else is no plain socket.
    pub(super) fn body(&self) -> Body {
        Body::from_stream(stream::unfold((self.clone(), None), |(offer, stream)| async move {
            let mut stream = stream.or_else(|| offer.take())?;
            let bytes = stream.next().await?;
            Some((Ok::<_, Infallible>(bytes), (offer, Some(stream))))
        }))
    }

    /// Goes on with the stream on a socket on which the head of its answer has been sent, chunked.
    pub fn go_on(&self, tcp: TcpStream, held: Held, fans: &Arc<Fans>) {
        let Some(mut stream) = self.take() else { return };
        let opening = Bytes::from(chunk(&stream.open()));
        let socket = Socket { tcp, discarded: 0 };
        let Ok(written) = socket.offer(&opening) else { return };
        let line = Line { socket, cold: Box::new(Cold { stream, _held: held }) };
        // A task for each, just to begin, would be four kilobytes for each of those who come together.
        match line.cold.stream.level().filter(|_| written == opening.len()) {
            Some(level) => fans.join(line, level),
            None => fans.drive(line, opening.slice(written..)),
        }
    }

    fn take(&self) -> Option<EventStream> {
        self.0.lock().expect("no holder of the lock panics").take()
    }
}

impl Socket {
    /// Writes what the kernel takes at once. How much that was; nothing if it takes no more now.
    ///
    /// The kernel is asked itself: what tokio knows of the socket is in memory of its own, and cold. So tokio may take a full
    /// socket for ready, which costs whoever writes next one question more.
    pub(super) fn offer(&self, bytes: &[u8]) -> io::Result<usize> {
        match SockRef::from(&self.tcp).send(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            written => written,
        }
    }

    /// Has the waker woken when the client sends something or goes. False if it has gone.
    pub(super) fn watch(&mut self, waker: &std::task::Waker) -> bool {
        let mut context = std::task::Context::from_waker(waker);
        while self.tcp.poll_read_ready(&mut context).is_ready() {
            if !self.hear() {
                return false;
            }
        }
        true
    }

    /// Resolves when the client has gone.
    async fn gone(&mut self) {
        while self.tcp.readable().await.is_ok() && self.hear() {}
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

    /// Throws away what the client has sent. False if it has gone.
    fn hear(&mut self) -> bool {
        let mut scratch = [0; 1024];
        match self.tcp.try_read(&mut scratch) {
            // Half-closed counts as gone.
            Ok(0) => false,
            Ok(count) => {
                self.discarded = self.discarded.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
                self.discarded <= MOST_DISCARDED
            }
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

/// Writes what is left of an earlier write, and then what follows, until the stream ends, is level with its room, or is cut off. (To
/// cancel it from outside would hold its state several times over: each future that is moved into another is stored in both.)
pub(super) async fn drive(mut line: Line, mut rest: Bytes, fans: Arc<Fans>, cut: CancellationToken) {
    loop {
        if line.socket.write(&rest, &cut).await.is_err() {
            return;
        }
        if let Some(level) = line.cold.stream.level() {
            return fans.join(line, level);
        }
        let next = tokio::select! {
            next = line.cold.stream.step() => next,
            () = line.socket.gone() => return,
            () = cut.cancelled() => return,
        };
        let Some(bytes) = next else { break };
        // An empty chunk would be the last one.
        rest = if bytes.is_empty() { bytes } else { chunk(&bytes).into() };
    }
    let Line { cold, mut socket } = line;
    let Cold { stream, _held } = *cold;
    // Its place is free before the client can see that it has ended.
    drop(stream);
    let _ = socket.end(&cut).await;
}
