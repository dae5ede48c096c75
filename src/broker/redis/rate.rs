//! Shared rate limits on Redis: one string for each bucket, changed by a script.

use std::time::Duration;

use async_trait::async_trait;
use redis::RedisResult;

use super::RedisBroker;
use super::error::write_error;
use crate::broker::{BrokerError, RateGrant, RateLimit, RateStore};

#[async_trait]
impl RateStore for RedisBroker {
    async fn take(&self, key: &str, limit: RateLimit, least: u64, most: u64) -> Result<RateGrant, BrokerError> {
        let mut conn = self.connections.for_write().await?;
        let mut call = self.scripts.rate_limit.key(self.keys.bucket(key));
        call.arg(1_000_000 / limit.per_second.max(1)).arg(limit.burst).arg(least).arg(most);
        let result: RedisResult<(u64, u64, u64)> = call.invoke_async(conn.connection()).await;
        let (granted, remaining, after) = conn.check(result, write_error)?;
        Ok(RateGrant { granted, remaining, retry_after: Duration::from_micros(after) })
    }
}
