//! Takes the socket of a stream out of hyper, once the kernel has the head of the response.
//!
//! The response's body is replaced with one that never yields data. hyper asks it for data, and then flushes the socket
//! when it has nothing left to write: at that moment the head has been written, and nothing after it. hyper documents
//! `into_parts` for connections that are done, because it may hold bytes that are not flushed. Here the flush is
//! observed; `detach/tests.rs` checks that hyper keeps to this.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use hyper::body::{Frame, Incoming};
use hyper::rt::{Read, ReadBufCursor, Write};
use tower::ServiceExt;

use super::head_timer::HeadTimer;
use super::unread::UnreadBody;
use crate::delivery::{DetachableStream, Framing};

/// Stage: hyper has not asked for the body's data yet.
const HEAD: u8 = 0;
/// Stage: hyper has asked, and got no data.
const ASKED: u8 = 1;
/// Stage: hyper has flushed after that.
const FLUSHED: u8 = 2;

/// Detaches the stream of one connection from hyper. Clones belong to the same connection.
#[derive(Clone, Default)]
pub(super) struct Detach(Arc<Inner>);

#[derive(Default)]
struct Inner {
    stage: AtomicU8,
    stream: Mutex<Option<(DetachableStream, Framing)>>,
    unread: UnreadBody,
}

impl Detach {
    /// Answers a request. If the response is a stream that can leave hyper, keeps the stream here.
    pub(super) async fn answer(self, router: axum::Router, request: Request<Incoming>) -> Response<Body> {
        // A stream that an earlier response left here is not this response's.
        self.keep(None);
        // A response to another method has no body.
        let framing = Some(framing(request.version())).filter(|_| request.method() == Method::GET);
        let (head, body) = request.into_parts();
        let body = self.0.unread.track(&head.headers, body);
        let request = Request::from_parts(head, Body::new(body));
        let mut response = router.oneshot(request).await.unwrap_or_else(|never: Infallible| match never {});
        // Where a body in an unknown transfer coding ends is not sure.
        let is_read = self.0.unread.read_rest().await && response.status() != StatusCode::NOT_IMPLEMENTED;
        let stream = response.extensions_mut().remove::<DetachableStream>().zip(framing);
        let stream = stream.filter(|(stream, framing)| stream.fits(*framing));
        if stream.is_some() {
            self.keep(stream);
            *response.body_mut() = Body::new(PendingBody(self));
            // This is the connection's last response, but its head does not say `Connection: close`: with it, undici,
            // and so `fetch` in Node, would take a stream that is cut off for one that has ended in order.
        } else if !is_read {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Whether the last request was answered before all of its body was read.
    pub(super) fn has_unread_body(&self) -> bool {
        self.0.unread.is_some()
    }

    /// Takes the stream, if hyper has written the head and has nothing more to do.
    pub(super) fn take(&self) -> Option<(DetachableStream, Framing)> {
        (self.0.stage.load(Ordering::SeqCst) == FLUSHED).then(|| self.stream().take()).flatten()
    }

    fn keep(&self, stream: Option<(DetachableStream, Framing)>) {
        self.0.stage.store(HEAD, Ordering::SeqCst);
        *self.stream() = stream;
    }

    fn stream(&self) -> MutexGuard<'_, Option<(DetachableStream, Framing)>> {
        self.0.stream.lock().expect("no holder of the lock panics")
    }

    fn advance(&self, from: u8, to: u8) {
        let _ = self.0.stage.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst);
    }
}

/// How hyper ends a body whose length it does not know.
fn framing(version: Version) -> Framing {
    if version == Version::HTTP_11 { Framing::Chunks } else { Framing::Close }
}

/// A body that never yields data and never ends.
struct PendingBody(Detach);

impl HttpBody for PendingBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.advance(HEAD, ASKED);
        Poll::Pending
    }
}

/// A connection's socket that reports flushes to a [`Detach`], and bytes that arrive to a [`HeadTimer`].
pub(super) struct IoTracker<T> {
    pub(super) io: T,
    pub(super) detach: Detach,
    pub(super) heads: HeadTimer,
}

impl<T: Read + Unpin> Read for IoTracker<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if read.is_ready() {
            self.heads.receive();
        }
        read
    }
}

impl<T: Write + Unpin> Write for IoTracker<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        // hyper flushes its socket only when it has nothing left to write to it.
        self.detach.advance(ASKED, FLUSHED);
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }
}

#[cfg(test)]
mod tests;
