//! Bodies that a client sends although the request is refused.
//!
//! hyper closes a connection whose request it has not read to its end, without a word in the response: the client's next
//! request on it would be lost. So what is left of a small body is read before the response is sent. Otherwise the
//! response says that the connection closes.
//!
//! A connection that is closed while bytes arrive is reset, and the reset takes the response with it that the client has
//! not read yet. So the gateway stops writing, and reads on for a while.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::http::{HeaderMap, header};
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, sink};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Most bytes that are read of a refused request before its connection closes.
const MAX_BYTES: u64 = 64 * 1024 * 1024;
/// Longest time for that.
const MAX_TIME: Duration = Duration::from_secs(5);
/// Most bytes that are read of a refused request so that its connection can stay open.
const SMALL_BYTES: usize = 16 * 1024;
/// Longest time for that. The response waits.
const SMALL_TIME: Duration = Duration::from_secs(1);

/// What the last request's handler has left of its body. Clones belong to the same connection.
#[derive(Clone, Default)]
pub(super) struct UnreadBody(Arc<Mutex<UnreadState>>);

#[derive(Default)]
struct UnreadState {
    body: Option<Incoming>,
    /// Whether the client may still be sending the body.
    is_left: bool,
    /// Whether the client waits for 100 (Continue) before it sends the body. Reading would send it.
    expects_continue: bool,
}

impl UnreadBody {
    /// Begins a request. Its body has to be read through the result.
    pub(super) fn track(&self, headers: &HeaderMap, body: Incoming) -> TrackedBody {
        *self.state() =
            UnreadState { expects_continue: headers.contains_key(header::EXPECT), ..Default::default() };
        TrackedBody { body: Some(body), unread: self.clone() }
    }

    /// Reads what is left of the body if it is small. Returns whether the connection can have another request.
    pub(super) async fn read_rest(&self) -> bool {
        let (body, expects_continue) = {
            let mut state = self.state();
            (state.body.take(), state.expects_continue)
        };
        let Some(body) = body else { return true };
        let is_small = !expects_continue && body.size_hint().lower() <= SMALL_BYTES as u64;
        let read = async { timeout(SMALL_TIME, to_bytes(Body::new(body), SMALL_BYTES)).await };
        let is_read = is_small && matches!(read.await, Ok(Ok(_)));
        self.state().is_left = !is_read;
        is_read
    }

    /// Whether the client may still be sending the body.
    pub(super) fn is_some(&self) -> bool {
        self.state().is_left
    }

    fn state(&self) -> MutexGuard<'_, UnreadState> {
        self.0.lock().expect("no holder of the lock panics")
    }
}

/// A request's body.
pub(super) struct TrackedBody {
    /// There until this is dropped.
    body: Option<Incoming>,
    unread: UnreadBody,
}

impl HttpBody for TrackedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.body.as_mut().map_or(Poll::Ready(None), |body| Pin::new(body).poll_frame(cx))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Incoming::size_hint).unwrap_or_default()
    }
}

impl Drop for TrackedBody {
    fn drop(&mut self) {
        self.unread.state().body = self.body.take().filter(|body| !body.is_end_stream());
    }
}

/// Ends a connection whose client may still be sending.
pub(super) async fn discard_rest(mut socket: TcpStream) {
    let _ = socket.shutdown().await;
    let _ = timeout(MAX_TIME, copy(&mut socket.take(MAX_BYTES), &mut sink())).await;
}
