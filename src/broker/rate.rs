//! The contract for rate limits that all replicas share: token buckets.

use std::time::Duration;

use async_trait::async_trait;

use super::BrokerError;

/// How a bucket fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// How many tokens return each second.
    pub per_second: u32,
    /// The most tokens that the bucket holds.
    pub burst: u64,
}

/// What was taken from a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateGrant {
    /// How many tokens were taken.
    pub granted: u64,
    /// How many tokens are left.
    pub remaining: u64,
    /// If none were taken, the time until enough have returned; else zero.
    pub retry_after: Duration,
}

/// Keeps buckets that all replicas take tokens from.
#[async_trait]
pub trait RateStore: Send + Sync {
    /// Takes up to `most` tokens from the bucket with this key. Takes none if it holds fewer than `least`.
    async fn take(&self, key: &str, limit: RateLimit, least: u64, most: u64) -> Result<RateGrant, BrokerError>;
}
