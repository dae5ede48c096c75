//! RateStore in memory, by the generic cell rate algorithm.

use std::time::Duration;

use async_trait::async_trait;

use super::{MemoryBroker, microseconds};
use crate::broker::{BrokerError, RateGrant, RateLimit, RateStore};

/// Beyond so many, those that are full are dropped.
const MANY: usize = 10_000;

#[async_trait]
impl RateStore for MemoryBroker {
    async fn take(&self, key: &str, bucket: RateLimit, least: u64, most: u64) -> Result<RateGrant, BrokerError> {
        let now = microseconds();
        let interval = 1_000_000 / u64::from(bucket.per_second.max(1));
        let mut buckets = self.buckets.lock().expect("no holder of the lock panics");
        if buckets.len() >= MANY {
            buckets.retain(|_, full| *full > now);
        }
        // When it will be full again.
        let full = buckets.entry(key.into()).or_insert(now);
        *full = now.max(*full).min(now + bucket.burst * interval);
        let there = (now + bucket.burst * interval - *full) / interval;
        if there < least {
            let after =
                Duration::from_micros((*full + least * interval).saturating_sub(now + bucket.burst * interval));
            return Ok(RateGrant { granted: 0, remaining: there, retry_after: after });
        }
        let granted = there.min(most);
        *full += granted * interval;
        Ok(RateGrant { granted, remaining: there - granted, retry_after: Duration::ZERO })
    }
}
