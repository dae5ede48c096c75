//! The subscriber counts of all replicas, for lists of rooms. However many callers ask, they are read once at a time, and
//! seldom enough to take little of the broker's time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::time::Instant;

use crate::broker::{BrokerError, ReplicaRegistry, SubscriberCounts};

/// Shortest time between two reads. An error is kept for so long.
const MIN_LIFETIME: Duration = Duration::from_secs(1);
/// Counts are kept for this many times as long as it took to read them.
const LIFETIME_FACTOR: u32 = 10;

/// Reads the counts of all replicas, and keeps them for a moment.
pub struct RoomCounts {
    registry: Arc<dyn ReplicaRegistry>,
    /// The last read, or the one that goes on. Callers that leave do not end it: the next one waits for it.
    latest: Mutex<Option<Shared<BoxFuture<'static, CountsReading>>>>,
}

#[derive(Clone)]
struct CountsReading {
    counts: Result<Arc<SubscriberCounts>, BrokerError>,
    until: Instant,
}

impl RoomCounts {
    /// The counts of a registry, which are not read yet.
    pub fn new(registry: Arc<dyn ReplicaRegistry>) -> Self {
        Self { registry, latest: Mutex::default() }
    }

    /// Subscribers by room, at most [`MIN_LIFETIME`] old, or older if it takes long to read them.
    pub async fn get(&self) -> Result<Arc<SubscriberCounts>, BrokerError> {
        let reading = {
            let mut latest = self.latest.lock().expect("no holder of the lock panics");
            let is_past = |reading: &CountsReading| reading.until <= Instant::now();
            match latest.as_ref().filter(|reading| !reading.peek().is_some_and(is_past)) {
                Some(reading) => reading.clone(),
                None => latest.insert(self.read().shared()).clone(),
            }
        };
        reading.await.counts
    }

    fn read(&self) -> BoxFuture<'static, CountsReading> {
        let registry = self.registry.clone();
        async move {
            let began = Instant::now();
            let counts = registry.subscriber_counts().await.map(Arc::new);
            // However long an error has taken, the broker may be well again.
            let lifetime = if counts.is_ok() { began.elapsed() * LIFETIME_FACTOR } else { MIN_LIFETIME };
            CountsReading { counts, until: Instant::now() + lifetime.max(MIN_LIFETIME) }
        }
        .boxed()
    }
}
