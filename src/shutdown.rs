//! Tasks with an owner, and the order to stop.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Tracks every task of a gateway. Clones share one tracker.
#[derive(Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    failed: CancellationToken,
}

/// Speaks up when its task is gone and should not be.
struct Watch {
    /// Of a task that must not end at all.
    name: Option<&'static str>,
    tasks: Tasks,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let ended = self.name.is_some() && !self.tasks.stop.is_cancelled();
        if ended || std::thread::panicking() {
            let task = self.name.unwrap_or("of a room or a moment");
            tracing::error!(task, "a task has panicked, or ended that must not; stopping");
            self.tasks.failed.cancel();
        }
    }
}

impl Tasks {
    /// Runs a task that may end when it is done, and is dropped when the gateway stops. Should it panic, the gateway
    /// stops.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.run(None, task);
    }

    /// Runs a task that the gateway can't do without: should it end, even by a panic, the gateway stops.
    pub fn supervise(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.run(Some(name), task);
    }

    /// Like [`Self::supervise`], for a task that has something to finish: it is told when the gateway stops, and ends by
    /// itself.
    pub fn supervise_to_end<F>(&self, name: &'static str, task: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let watch = Watch { name: Some(name), tasks: self.clone() };
        let task = task(self.stop.clone());
        self.tracker.spawn(async move {
            let _watch = watch;
            task.await;
        });
    }

    fn run(&self, name: Option<&'static str>, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        let watch = Watch { name, tasks: self.clone() };
        self.tracker.spawn(async move {
            let _watch = watch;
            tokio::select! {
                () = task => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// Resolves if a supervised task has ended.
    pub async fn failed(&self) {
        self.failed.cancelled().await;
    }

    /// Whether a supervised task has ended.
    pub fn has_failed(&self) -> bool {
        self.failed.is_cancelled()
    }

    /// Drops what still runs, and waits until it is gone.
    pub async fn stop(&self, limit: Duration) {
        self.stop.cancel();
        self.tracker.close();
        if tokio::time::timeout(limit, self.tracker.wait()).await.is_err() {
            tracing::warn!(tasks = self.tracker.len(), "some tasks did not end in time");
        }
    }
}

/// How far the replica's leaving has come. Clones share it.
#[derive(Clone)]
pub struct Drain {
    leaving: CancellationToken,
    ending: watch::Sender<Option<Instant>>,
    window: Duration,
}

impl Drain {
    /// Not leaving yet; later, streams will end over `window`.
    pub fn new(window: Duration) -> Self {
        Self { leaving: CancellationToken::new(), ending: watch::channel(None).0, window }
    }

    /// From now on the replica is unready, still answers, and opens no streams.
    pub fn leave(&self) {
        self.leaving.cancel();
    }

    /// From now on streams end, spread over the window.
    pub fn end_streams(&self) {
        self.ending.send_replace(Some(Instant::now()));
    }

    /// Whether the replica is leaving.
    pub fn is_leaving(&self) -> bool {
        self.leaving.is_cancelled()
    }

    /// Whether streams are ending.
    pub fn ends_streams_now(&self) -> bool {
        self.ending.borrow().is_some()
    }

    /// Resolves when streams begin to end.
    pub async fn ends_streams(&self) {
        self.ending_since().await;
    }

    /// Resolves when a stream is to end whose `place` in the window is 0.0 to 1.0.
    pub async fn reaches(&self, place: f32) {
        sleep_until(self.ending_since().await + self.window.mul_f32(place)).await;
    }

    async fn ending_since(&self) -> Instant {
        let mut ending = self.ending.subscribe();
        // The sender is ours, so the channel can't close.
        let since = ending.wait_for(Option::is_some).await.ok().and_then(|since| *since);
        since.unwrap_or_else(Instant::now)
    }
}
