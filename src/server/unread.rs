//! Bodies that a client sends although the request is refused.
//!
//! A connection that is closed while bytes arrive is reset, and the reset takes the response with it that the client has
//! not read yet. So the gateway stops writing, and reads on for a while.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Bytes, HttpBody};
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy, sink};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Most bytes that are read of a refused request.
const MAX_BYTES: u64 = 64 * 1024 * 1024;
/// Longest time for that.
const MAX_TIME: Duration = Duration::from_secs(5);
/// hyper reads so much of a body that is left, so that the connection can have another request.
const SMALL_BYTES: u64 = 16 * 1024;

/// How many bytes of the last request's body were left when it was dropped. Clones belong to the same connection.
#[derive(Clone, Default)]
pub(super) struct UnreadBytes(Arc<AtomicU64>);

impl UnreadBytes {
    /// Begins a request. Its body has to be read through the result.
    pub(super) fn track(&self, body: Incoming) -> TrackedBody {
        self.0.store(0, Ordering::Relaxed);
        TrackedBody { body, unread: self.clone() }
    }

    /// Whether a part of the body was left.
    pub(super) fn is_some(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    /// Whether so much was left that the connection has to be closed.
    pub(super) fn is_large(&self) -> bool {
        self.0.load(Ordering::Relaxed) > SMALL_BYTES
    }
}

/// A request's body.
pub(super) struct TrackedBody {
    body: Incoming,
    unread: UnreadBytes,
}

impl HttpBody for TrackedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for TrackedBody {
    fn drop(&mut self) {
        if !self.body.is_end_stream() {
            self.unread.0.store(self.body.size_hint().upper().unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }
}

/// Ends a connection whose client may still be sending.
pub(super) async fn discard_rest(mut socket: TcpStream) {
    let _ = socket.shutdown().await;
    let _ = timeout(MAX_TIME, copy(&mut socket.take(MAX_BYTES), &mut sink())).await;
}
