//! Background tasks, each with an owner, and the state of an orderly shutdown.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Tracks every background task of a gateway. Clones share one tracker.
#[derive(Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    failed: CancellationToken,
}

/// Lives as long as its task. Reports a failure when the task panics, or ends although it is supervised.
struct TaskGuard {
    /// The name of a supervised task, which must not end before the gateway stops.
    name: Option<&'static str>,
    tasks: Tasks,
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        let ended_early = self.name.is_some() && !self.tasks.stop.is_cancelled();
        if ended_early || std::thread::panicking() {
            let task = self.name.unwrap_or("unsupervised");
            tracing::error!(task, "a background task panicked or ended unexpectedly; shutting down");
            self.tasks.failed.cancel();
        }
    }
}

impl Tasks {
    /// Runs a task that may end by itself. It is dropped when the gateway stops. If it panics, the gateway stops.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.run(None, task);
    }

    /// Runs a task without which the gateway can't work. It is dropped when the gateway stops. If it ends before, even
    /// by a panic, the gateway stops.
    pub fn supervise(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.run(Some(name), task);
    }

    /// Like [`Self::supervise`], for a task that has work to finish. It is not dropped: the token tells it that the
    /// gateway stops, and it ends by itself.
    pub fn supervise_to_end<F>(&self, name: &'static str, task: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let guard = TaskGuard { name: Some(name), tasks: self.clone() };
        let task = task(self.stop.clone());
        self.tracker.spawn(async move {
            let _guard = guard;
            task.await;
        });
    }

    fn run(&self, name: Option<&'static str>, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        let guard = TaskGuard { name, tasks: self.clone() };
        self.tracker.spawn(async move {
            let _guard = guard;
            tokio::select! {
                () = task => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// Resolves when a task has failed: a supervised one has ended, or any has panicked.
    pub async fn failed(&self) {
        self.failed.cancelled().await;
    }

    /// Whether a task has failed.
    pub fn has_failed(&self) -> bool {
        self.failed.is_cancelled()
    }

    /// Stops all tasks, and waits for them for at most `limit`.
    pub async fn stop(&self, limit: Duration) {
        self.stop.cancel();
        self.tracker.close();
        if tokio::time::timeout(limit, self.tracker.wait()).await.is_err() {
            tracing::warn!(tasks = self.tracker.len(), "some background tasks did not end in time");
        }
    }
}

/// The state of a replica's shutdown. Clones share it.
#[derive(Clone)]
pub struct Drain {
    leaving: CancellationToken,
    /// Whether a balancer, or another program, asks for the readiness.
    watched: Arc<AtomicBool>,
    /// When streams began to end.
    ending: watch::Sender<Option<Instant>>,
    window: Duration,
}

impl Drain {
    /// Not shutting down yet. Streams will end over `window`.
    pub fn new(window: Duration) -> Self {
        Self { leaving: CancellationToken::new(), watched: Arc::default(), ending: watch::channel(None).0, window }
    }

    /// Begins the shutdown: from now on the replica is not ready and opens no streams, but still answers requests.
    pub fn leave(&self) {
        self.leaving.cancel();
    }

    /// Begins to end streams, spread over the window.
    pub fn end_streams(&self) {
        self.ending.send_replace(Some(Instant::now()));
    }

    /// Notes that the readiness was asked for.
    pub fn watch(&self) {
        self.watched.store(true, Ordering::Relaxed);
    }

    /// Whether the readiness has ever been asked for.
    pub fn is_watched(&self) -> bool {
        self.watched.load(Ordering::Relaxed)
    }

    /// Whether the shutdown has begun.
    pub fn is_leaving(&self) -> bool {
        self.leaving.is_cancelled()
    }

    /// Whether streams have begun to end.
    pub fn is_ending_streams(&self) -> bool {
        self.ending.borrow().is_some()
    }

    /// Resolves when streams begin to end.
    pub async fn streams_end(&self) {
        self.ending_since().await;
    }

    /// Resolves when a part of the window has passed, 0.0 to 1.0.
    pub async fn reaches(&self, part: f32) {
        sleep_until(self.ending_since().await + self.window.mul_f32(part)).await;
    }

    async fn ending_since(&self) -> Instant {
        let mut ending = self.ending.subscribe();
        // `self` holds the sender, so the channel can't close.
        let since = ending.wait_for(Option::is_some).await.ok().and_then(|since| *since);
        since.unwrap_or_else(Instant::now)
    }
}
