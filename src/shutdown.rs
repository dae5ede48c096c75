//! Tasks with an owner, and the order to stop.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Tracks every task of a gateway. Clones share one tracker.
#[derive(Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    failed: CancellationToken,
}

impl Tasks {
    /// Runs a task that may end when it is done, and is dropped when the gateway stops.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                () = task => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// Runs a task that the gateway can't do without: should it end, even by a panic, the gateway stops.
    pub fn supervise(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        /// Speaks up when it is dropped, however that comes about.
        struct Watch(&'static str, Tasks);
        impl Drop for Watch {
            fn drop(&mut self) {
                if !self.1.stop.is_cancelled() {
                    tracing::error!(task = self.0, "a task that must not end has ended; stopping");
                    self.1.failed.cancel();
                }
            }
        }
        let watch = Watch(name, self.clone());
        self.spawn(async move {
            let _watch = watch;
            task.await;
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
