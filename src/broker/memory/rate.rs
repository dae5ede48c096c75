//! The contract for shared rate limits, in memory: the generic cell rate algorithm.

use std::time::Duration;

use async_trait::async_trait;

use super::{MemoryBroker, now_micros};
use crate::broker::{BrokerError, RateGrant, RateLimit, RateStore};

/// If there are more buckets than this, those that are full are dropped.
const MANY_BUCKETS: usize = 10_000;

#[async_trait]
impl RateStore for MemoryBroker {
    async fn take(&self, key: &str, limit: RateLimit, least: u64, most: u64) -> Result<RateGrant, BrokerError> {
        let now = now_micros();
        let interval = 1_000_000 / u64::from(limit.per_second.max(1));
        // An empty bucket is full again at this time.
        let latest = now + limit.burst * interval;
        let mut buckets = self.buckets.lock().expect("no holder of the lock panics");
        if buckets.len() >= MANY_BUCKETS {
            buckets.retain(|_, full_at| *full_at > now);
        }
        let full_at = buckets.entry(key.into()).or_insert(now);
        *full_at = now.max(*full_at).min(latest);
        let available = (latest - *full_at) / interval;
        if available < least {
            let retry_after = Duration::from_micros((*full_at + least * interval).saturating_sub(latest));
            return Ok(RateGrant { granted: 0, remaining: available, retry_after });
        }
        let granted = available.min(most);
        *full_at += granted * interval;
        Ok(RateGrant { granted, remaining: available - granted, retry_after: Duration::ZERO })
    }
}
