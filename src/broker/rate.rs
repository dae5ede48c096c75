//! The contract for rate limits that all replicas share.

use std::time::Duration;

use async_trait::async_trait;

use super::BrokerError;

/// What may be taken from a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// How many come back in a second.
    pub per_second: u32,
    /// Most that it holds.
    pub burst: u64,
}

/// What was taken from a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateGrant {
    /// How many.
    pub granted: u64,
    /// What is left.
    pub remaining: u64,
    /// When there will be enough.
    pub after: Duration,
}

/// Keeps buckets that all replicas take from.
#[async_trait]
pub trait RateStore: Send + Sync {
    /// Takes up to `most`, and nothing where there are less than `least`.
    async fn take(&self, key: &str, bucket: RateLimit, least: u64, most: u64) -> Result<RateGrant, BrokerError>;
}
