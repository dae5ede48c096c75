//! The times that a connection has for the head of its next request.
//!
//! hyper has one timeout for it, which it starts when it begins to wait for a head: an idle connection would have no
//! more time than a slow one. This timer lets that timeout begin as the keep-alive time, and replaces it with the time
//! for a head once the first bytes of the head have arrived.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};

/// hyper's timer for the heads of one connection. Clones belong to the same connection.
#[derive(Clone)]
pub(super) struct HeadTimer {
    /// Whether bytes have arrived since hyper began to wait for a head. Bytes of a head that arrive together with the
    /// request before it do not count: that connection has the keep-alive time, as if it were idle.
    has_begun: Arc<AtomicBool>,
    limit: Duration,
}

impl HeadTimer {
    /// A timer that gives a head so much time from its first byte.
    pub(super) fn new(limit: Duration) -> Self {
        Self { has_begun: Arc::default(), limit }
    }

    /// Bytes have arrived.
    pub(super) fn receive(&self) {
        self.has_begun.store(true, Ordering::Relaxed);
    }

    /// Whether the timeout that hyper started last is that of a head, and not that of an idle connection.
    pub(super) fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::Relaxed)
    }
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        self.has_begun.store(false, Ordering::Relaxed);
        let sleep = Box::pin(tokio::time::sleep_until(deadline.into()));
        Box::pin(HeadSleep { timer: self.clone(), is_head: false, sleep })
    }
}

/// A timeout that hyper has started.
struct HeadSleep {
    timer: HeadTimer,
    /// Whether it has the time for a head, counted from the first byte.
    is_head: bool,
    sleep: Pin<Box<tokio::time::Sleep>>,
}

impl Future for HeadSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_head && self.timer.has_begun() {
            self.is_head = true;
            let deadline = tokio::time::Instant::now() + self.timer.limit;
            self.sleep.as_mut().reset(deadline);
        }
        self.sleep.as_mut().poll(cx)
    }
}

impl Sleep for HeadSleep {}
