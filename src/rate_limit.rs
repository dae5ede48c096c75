//! How much a caller may take: requests a second, counted by all replicas together, and streams on this one.
//!
//! The broker keeps a bucket for each caller. A replica takes a tenth of a second's worth at a time and spends it by itself, so
//! that most requests ask nobody; what it has not spent after a second is lost.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use quick_cache::sync::Cache;
use tokio::time::timeout;

use crate::broker::{RateGrant, RateLimit, RateStore};

/// Callers that are remembered here; those that are forgotten ask the broker again.
const CALLERS: usize = 50_000;
/// A replica takes a bucket's worth of this part of a second at a time.
const SHARES_A_SECOND: u32 = 10;
/// How long it may spend that, and for how long who was refused is not asked about again at least.
const SHARE_LIFETIME: Duration = Duration::from_secs(1);
const REFUSAL_LIFETIME: Duration = Duration::from_millis(100);
/// Longest wait for the broker.
const ASK_LIMIT: Duration = Duration::from_millis(500);
/// After it could not say, it is not asked for this long.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// So many seconds' worth may come at once.
const BURST_SECONDS: u32 = 2;

/// How much a caller may take; 0 stands for no limit.
#[derive(Clone, Copy, Debug)]
pub struct RateLimitSettings {
    /// Requests a second.
    pub rate_per_subject: u32,
    /// Requests a second.
    pub rate_per_address: u32,
    /// Requests a second.
    pub rate_total: u32,
    /// While the broker can't say.
    pub on_failure: RateFailure,
    /// Streams on this replica.
    pub streams_per_subject: u32,
    /// Streams on this replica.
    pub streams_per_address: u32,
}

/// What becomes of requests that can't be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum RateFailure {
    /// They pass.
    Open,
    /// They are refused with 503.
    Closed,
}

/// Whose quota it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RateKey {
    /// A token's subject.
    Subject(Arc<str>),
    /// An address, or an IPv6 network's first.
    Address(IpAddr),
    /// Everybody.
    All,
}

impl RateKey {
    /// The limit's name, in answers and metrics.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Subject(_) => "subject",
            Self::Address(_) => "address",
            Self::All => "total",
        }
    }

    fn key(&self) -> String {
        match self {
            Self::Subject(subject) => format!("subject:{subject}"),
            Self::Address(address) => format!("address:{address}"),
            Self::All => "total".into(),
        }
    }
}

/// How a caller stands with its narrowest limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateStatus {
    /// The limit's name.
    pub policy: &'static str,
    /// Requests that may come at once.
    pub quota: u64,
    /// Seconds in which so many may come.
    pub window: u32,
    /// What is left, as far as this replica knows.
    pub remaining: u64,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateError {
    /// Too many of late.
    TooMany {
        /// By which limit.
        status: RateStatus,
        /// When it may be tried again.
        after: Duration,
        /// Whether that is news, and not only what was said a moment ago.
        is_new: bool,
    },
    /// More at once than the limit ever lets through.
    Never {
        /// By which limit.
        status: RateStatus,
    },
    /// It can't be told.
    Unknown,
}

/// What a replica holds of one bucket.
#[derive(Default)]
struct LocalQuota {
    tokens: u64,
    until: Option<Instant>,
    remaining: u64,
    /// So many at once, or more, are refused until then.
    refused: Option<(u64, Instant)>,
}

/// A quota, and who fills it: one at a time.
#[derive(Default)]
struct LocalLimit {
    quota: Mutex<LocalQuota>,
    filling: tokio::sync::Mutex<()>,
}

/// The limits of all callers.
pub struct RateLimiter {
    settings: RateLimitSettings,
    buckets: Arc<dyn RateStore>,
    quotas: Cache<RateKey, Arc<LocalLimit>>,
    streams: Mutex<HashMap<RateKey, u32>>,
    /// When the broker, which could not say, is asked again.
    ask_at: Mutex<Option<Instant>>,
}

/// The streams that a caller has open count for as long as it has this.
pub struct StreamPermit {
    limits: Arc<RateLimiter>,
    keys: Vec<RateKey>,
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        let mut streams = self.limits.streams();
        for key in &self.keys {
            if let Some(count) = streams.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    streams.remove(key);
                }
            }
        }
    }
}

impl RateLimiter {
    /// Limits whose buckets a broker keeps.
    pub fn new(settings: RateLimitSettings, buckets: Arc<dyn RateStore>) -> Arc<Self> {
        Arc::new(Self {
            settings,
            buckets,
            quotas: Cache::new(CALLERS),
            streams: Mutex::default(),
            ask_at: Mutex::default(),
        })
    }

    /// Counts requests of these, all of which must have enough. How the one stands that has the least left, if any has a limit.
    pub async fn take(
        &self,
        keys: impl IntoIterator<Item = RateKey>,
        count: u64,
    ) -> Result<Option<RateStatus>, RateError> {
        let limits: Vec<_> =
            keys.into_iter().map(|key| (self.rate(&key), key)).filter(|(rate, _)| *rate > 0).collect();
        for (rate, key) in &limits {
            self.fill(key, *rate, count).await?;
        }
        // All of them, or none.
        let mut narrowest = None;
        for (rate, key) in &limits {
            let quota = self.quota(key);
            let mut quota = lock(&quota.quota);
            quota.tokens = quota.tokens.saturating_sub(count);
            let status = quota.status(key, *rate);
            if narrowest.is_none_or(|other: RateStatus| status.remaining < other.remaining) {
                narrowest = Some(status);
            }
        }
        Ok(narrowest)
    }

    fn rate(&self, key: &RateKey) -> u32 {
        match key {
            RateKey::Subject(_) => self.settings.rate_per_subject,
            RateKey::Address(_) => self.settings.rate_per_address,
            RateKey::All => self.settings.rate_total,
        }
    }

    /// Has a quota hold so many at least.
    async fn fill(&self, key: &RateKey, rate: u32, count: u64) -> Result<(), RateError> {
        let local = self.quota(key);
        if lock(&local.quota).has(count, Instant::now()) {
            return Ok(());
        }
        let _filling = local.filling.lock().await;
        let now = Instant::now();
        let missing = {
            let mut quota = lock(&local.quota);
            if quota.until.is_some_and(|until| until <= now) {
                quota.tokens = 0;
            }
            if quota.has(count, now) {
                return Ok(());
            }
            let status = quota.status(key, rate);
            if count > status.quota {
                return Err(RateError::Never { status });
            }
            if let Some((_, until)) = quota.refused.filter(|(least, until)| count >= *least && *until > now) {
                return Err(RateError::TooMany { status, after: until - now, is_new: false });
            }
            count - quota.tokens
        };
        if lock(&self.ask_at).is_some_and(|at| at > now) {
            return self.unknown();
        }
        let bucket = RateLimit { per_second: rate, burst: u64::from(rate * BURST_SECONDS) };
        let wanted = missing.max(u64::from(rate / SHARES_A_SECOND)).min(bucket.burst);
        let asked = timeout(ASK_LIMIT, self.buckets.take(&key.key(), bucket, missing, wanted)).await;
        let Ok(Ok(RateGrant { granted, remaining, retry_after: after })) = asked else {
            *lock(&self.ask_at) = Some(now + ASK_AGAIN);
            return self.unknown();
        };
        let mut quota = lock(&local.quota);
        quota.remaining = remaining;
        if granted > 0 {
            quota.tokens += granted;
            quota.until = Some(now + SHARE_LIFETIME);
        }
        if quota.tokens >= count {
            return Ok(());
        }
        quota.refused = Some((count, now + after.max(REFUSAL_LIFETIME)));
        Err(RateError::TooMany { status: quota.status(key, rate), after, is_new: true })
    }

    fn unknown(&self) -> Result<(), RateError> {
        match self.settings.on_failure {
            RateFailure::Open => Ok(()),
            RateFailure::Closed => Err(RateError::Unknown),
        }
    }

    /// Counts a stream for as long as its place is kept. The limit that has no place left otherwise.
    pub fn open_stream(
        self: &Arc<Self>,
        subject: Option<&Arc<str>>,
        address: Option<IpAddr>,
    ) -> Result<StreamPermit, &'static str> {
        let subject = subject.map(|subject| (RateKey::Subject(subject.clone()), self.settings.streams_per_subject));
        let address = address.map(|address| (RateKey::Address(address), self.settings.streams_per_address));
        let limits: Vec<_> = [subject, address].into_iter().flatten().filter(|(_, most)| *most > 0).collect();
        let mut streams = self.streams();
        for (key, most) in &limits {
            if streams.get(key).is_some_and(|count| count >= most) {
                return Err(key.name());
            }
        }
        let keys: Vec<_> = limits.into_iter().map(|(key, _)| key).collect();
        for key in &keys {
            *streams.entry(key.clone()).or_default() += 1;
        }
        Ok(StreamPermit { limits: self.clone(), keys })
    }

    fn quota(&self, key: &RateKey) -> Arc<LocalLimit> {
        let found = self.quotas.get_or_insert_with(key, || Ok::<_, std::convert::Infallible>(Arc::default()));
        match found {
            Ok(quota) => quota,
            Err(never) => match never {},
        }
    }

    fn streams(&self) -> MutexGuard<'_, HashMap<RateKey, u32>> {
        lock(&self.streams)
    }
}

impl LocalQuota {
    fn has(&self, count: u64, now: Instant) -> bool {
        self.tokens >= count && self.until.is_none_or(|until| until > now)
    }

    fn status(&self, key: &RateKey, rate: u32) -> RateStatus {
        RateStatus {
            policy: key.name(),
            quota: u64::from(rate * BURST_SECONDS),
            window: BURST_SECONDS,
            remaining: self.tokens + self.remaining,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of the lock panics")
}
