//! The inbox of a broadcaster: how streams reach it, and how its streams wake it.

use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Wake;

use tokio::sync::Notify;

use crate::delivery::connection::StreamConn;
use crate::live::CaughtUp;

/// How a broadcaster is reached.
#[derive(Default)]
pub(super) struct Inbox {
    contents: Mutex<InboxContents>,
    notify: Notify,
}

#[derive(Default)]
pub(super) struct InboxContents {
    /// Streams that the broadcaster has not accepted yet.
    pub(super) joining: Vec<(StreamConn, CaughtUp)>,
    /// Slots of streams that their sockets or their presence sessions have woken.
    pub(super) woken: Vec<usize>,
    /// How many streams the broadcaster has, those that it has not accepted yet included.
    pub(super) streams: usize,
}

/// Wakes a broadcaster on behalf of one stream.
pub(super) struct StreamWaker {
    pub(super) inbox: Arc<Inbox>,
    pub(super) slot: usize,
}

impl Wake for StreamWaker {
    fn wake(self: Arc<Self>) {
        self.inbox.contents().woken.push(self.slot);
        self.inbox.notify.notify_one();
    }
}

impl Inbox {
    pub(super) fn contents(&self) -> MutexGuard<'_, InboxContents> {
        self.contents.lock().expect("no holder of the lock panics")
    }

    /// Adds a stream, and wakes the broadcaster.
    pub(super) fn add(&self, conn: StreamConn, caught_up: CaughtUp) {
        let mut contents = self.contents();
        contents.streams += 1;
        contents.joining.push((conn, caught_up));
        self.notify.notify_one();
    }

    /// Resolves when a stream has been added or woken.
    pub(super) async fn changed(&self) {
        self.notify.notified().await;
    }
}
