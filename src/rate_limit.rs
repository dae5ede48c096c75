//! Limits of callers: requests a second, over all replicas together, and open streams and connections on this replica.
//!
//! The broker keeps one token bucket for each caller. A replica takes a tenth of a second's worth of tokens at a time
//! and spends them by itself, so that most requests need no call to the broker. Tokens that are not spent within a
//! second are lost.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use quick_cache::sync::Cache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::broker::{RateGrant, RateLimit, RateStore};

/// The callers whose quotas this replica remembers. For a caller that it has forgotten, it asks the broker again.
const MAX_CALLERS: usize = 50_000;
/// A replica takes the tokens of this fraction of a second at a time.
const GRANTS_PER_SECOND: u32 = 10;
/// How long a replica may spend the tokens that it took.
const GRANT_LIFETIME: Duration = Duration::from_secs(1);
/// After the broker has refused a caller, it is not asked again for at least this time.
const MIN_REFUSAL: Duration = Duration::from_millis(100);
/// The longest wait for the broker's answer.
const STORE_TIMEOUT: Duration = Duration::from_millis(500);
/// After the broker has failed to answer for a caller, it is not asked again for that caller for this time.
const STORE_RETRY_PAUSE: Duration = Duration::from_secs(1);
/// A bucket holds the tokens of this many seconds, so that many requests may arrive at once.
const BURST_SECONDS: u32 = 2;
/// Callers without a valid token may use this fraction of the total, so that they can't lock the others out.
const ANONYMOUS_DIVISOR: u32 = 2;

/// Most reads of lists and values at one time on this replica.
const READS: u32 = 64;
/// Most of these of one caller.
const READS_OF_A_CALLER: u32 = 16;
/// Most rooms that streams of one caller open at one time. More of them wait for each other, not for those of others.
const ROOMS_OPENING_OF_A_CALLER: u32 = 32;
/// A value that is written or read counts as one request, and as another one for each time that it has so many bytes.
pub const BYTES_OF_A_REQUEST: usize = 64 * 1024;
/// What counts as read if a read does not end. One command to the broker reads about as much.
const UNFINISHED_READ: usize = 256 * 1024;

/// The limits for each caller and for all callers together. 0 stands for no limit.
#[derive(Clone, Copy, Debug)]
pub struct RateLimitSettings {
    /// Requests a second with tokens of one subject.
    pub rate_per_subject: u32,
    /// Requests a second from one address.
    pub rate_per_address: u32,
    /// Requests a second in total.
    pub rate_total: u32,
    /// What happens to requests while the broker does not answer.
    pub on_failure: RateFailure,
    /// Streams on this replica with tokens of one subject.
    pub streams_per_subject: u32,
    /// Streams on this replica from one address.
    pub streams_per_address: u32,
}

/// What happens to requests while the broker can't count them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum RateFailure {
    /// They are accepted, as far as this replica alone counts them within their limits.
    Open,
    /// They are refused with 503.
    Closed,
}

/// What a limit applies to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RateKey {
    /// The subject of tokens.
    Subject(Arc<str>),
    /// An address; for IPv6 the first address of the /64.
    Address(IpAddr),
    /// All callers without a valid token together.
    Anonymous,
    /// All callers together.
    All,
}

impl RateKey {
    /// The limit's name, in responses and metrics.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Subject(_) => "subject",
            Self::Address(_) => "address",
            Self::Anonymous => "anonymous",
            Self::All => "total",
        }
    }

    /// The key of the bucket.
    fn bucket(&self) -> String {
        match self {
            Self::Subject(subject) => format!("subject:{subject}"),
            Self::Address(address) => format!("address:{address}"),
            Self::Anonymous | Self::All => self.name().into(),
        }
    }
}

/// The state of one limit, for a response's headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateStatus {
    /// The limit's name.
    pub policy: &'static str,
    /// How many requests may arrive at once, and in one `window`.
    pub quota: u64,
    /// The length of the window in seconds.
    pub window: u32,
    /// How many requests are left, as far as this replica knows.
    pub remaining: u64,
}

/// Why requests are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateError {
    /// There were too many requests.
    TooMany {
        /// The limit that was reached.
        status: RateStatus,
        /// The time until the requests may be repeated.
        retry_after: Duration,
        /// Whether the broker has decided this just now. If not, an earlier refusal still holds.
        is_new: bool,
    },
    /// There are more requests at once than the limit ever accepts.
    AboveQuota {
        /// The limit that is too low.
        status: RateStatus,
    },
    /// The broker does not answer, and [`RateFailure::Closed`] applies.
    Unavailable,
}

/// What this replica holds of one bucket.
#[derive(Default)]
struct LocalQuota {
    /// The tokens that it may spend.
    tokens: u64,
    /// When these tokens expire. None if there were never any.
    expires_at: Option<Instant>,
    /// The tokens that the broker had left.
    remaining: u64,
    /// The number of requests that the broker has refused, and until when so many or more are refused here.
    refused: Option<(u64, Instant)>,
    /// After the broker has failed to answer, when it is asked again.
    ask_at: Option<Instant>,
    /// When the bucket that counts while the broker does not answer will be full.
    full_at: Option<Instant>,
    /// When the caller owes nothing any more. Until then, requests spend tokens for its debt beside their own. The debt
    /// becomes less with time, as a bucket fills: a caller that stays below its limit owes nothing for long.
    free_at: Option<Instant>,
}

/// The quota of one caller.
struct LocalLimit {
    quota: Mutex<LocalQuota>,
    /// Held by the request that asks the broker, so that only one does at a time.
    refill: tokio::sync::Mutex<()>,
    /// The rooms that the caller's streams may open at one time.
    opening: Arc<Semaphore>,
}

impl Default for LocalLimit {
    fn default() -> Self {
        let opening = Arc::new(Semaphore::new(ROOMS_OPENING_OF_A_CALLER as usize));
        Self { quota: Mutex::default(), refill: tokio::sync::Mutex::default(), opening }
    }
}

/// The limits of all callers.
pub struct RateLimiter {
    settings: RateLimitSettings,
    buckets: Arc<dyn RateStore>,
    limits: Cache<RateKey, Arc<LocalLimit>>,
    streams: Arc<OpenCounts>,
    reads: Arc<OpenCounts>,
}

/// How many streams or connections of each caller are open.
#[derive(Default)]
pub struct OpenCounts(Mutex<HashMap<RateKey, u32>>);

/// Counts a stream or a connection for its caller until it is dropped.
pub struct OpenPermit {
    counts: Arc<OpenCounts>,
    keys: Vec<RateKey>,
}

/// Who pays for reads: later requests with these keys spend the tokens.
pub struct Payer {
    limiter: Arc<RateLimiter>,
    keys: Vec<RateKey>,
}

/// A read that is charged when this is dropped. Until it is known how much was read, it counts as an unfinished one.
pub struct ChargedRead<P: Deref<Target = Payer>> {
    payer: P,
    /// What is not paid yet.
    bytes: AtomicUsize,
}

impl<P: Deref<Target = Payer>> ChargedRead<P> {
    /// A read that begins.
    pub fn new(payer: P) -> Self {
        Self { payer, bytes: UNFINISHED_READ.into() }
    }

    /// Notes that the read is done, and how many bytes it has read.
    pub fn has_read(&self, bytes: usize) {
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    fn charge(&self) {
        self.payer.limiter.owe(&self.payer.keys, self.bytes.swap(0, Ordering::Relaxed));
    }
}

impl<P: Deref<Target = Payer>> Drop for ChargedRead<P> {
    fn drop(&mut self) {
        self.charge();
    }
}

/// A read of lists or values. It counts for its caller until the client has taken the answer, and for all callers together
/// until it is done. The caller's later requests spend the tokens for it, as soon as it was answered.
pub struct Reading {
    read: ChargedRead<Box<Payer>>,
    _of_caller: OpenPermit,
    of_all: Option<OpenPermit>,
}

impl Reading {
    /// Notes that the read is done, and how many bytes it has read.
    pub fn has_read(&mut self, bytes: usize) {
        self.read.has_read(bytes);
        self.of_all = None;
    }

    /// Notes that the answer has so many bytes, which count if they are more than those that were read.
    pub fn has_answered(&self, bytes: usize) {
        self.read.bytes.fetch_max(bytes, Ordering::Relaxed);
        self.read.charge();
    }
}

impl Drop for OpenPermit {
    fn drop(&mut self) {
        let mut counts = lock(&self.counts.0);
        for key in &self.keys {
            if let Some(count) = counts.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(key);
                }
            }
        }
    }
}

impl OpenCounts {
    /// Counts one more for each of these keys, if none of them has as many as its limit. 0 stands for no limit. Fails
    /// with the name of the limit that is reached.
    pub fn open(
        self: &Arc<Self>,
        limits: impl IntoIterator<Item = (RateKey, u32)>,
    ) -> Result<OpenPermit, &'static str> {
        let limits: Vec<_> = limits.into_iter().filter(|(_, most)| *most > 0).collect();
        let mut counts = lock(&self.0);
        for (key, most) in &limits {
            if counts.get(key).is_some_and(|count| count >= most) {
                return Err(key.name());
            }
        }
        let keys: Vec<_> = limits.into_iter().map(|(key, _)| key).collect();
        for key in &keys {
            *counts.entry(key.clone()).or_default() += 1;
        }
        drop(counts);
        Ok(OpenPermit { counts: self.clone(), keys })
    }
}

impl RateLimiter {
    /// Limits whose buckets the broker keeps.
    pub fn new(settings: RateLimitSettings, buckets: Arc<dyn RateStore>) -> Arc<Self> {
        Arc::new(Self {
            settings,
            buckets,
            limits: Cache::new(MAX_CALLERS),
            streams: Arc::default(),
            reads: Arc::default(),
        })
    }

    /// Takes `count` tokens from the limits with these keys: from all of them, or from none. Returns the status of the
    /// limit with the fewest tokens left, or none if no key has a limit.
    pub async fn take(
        &self,
        keys: impl IntoIterator<Item = RateKey>,
        count: u64,
    ) -> Result<Option<RateStatus>, RateError> {
        let keys = keys.into_iter().map(|key| (self.rate(&key), key)).filter(|(rate, _)| *rate > 0);
        let limits: Vec<_> = keys.map(|(rate, key)| (rate, self.limit(&key), key)).collect();
        let mut lowest: Option<RateStatus> = None;
        for (index, (rate, limit, key)) in limits.iter().enumerate() {
            match self.take_one(key, limit, *rate, count).await {
                Ok(status) if lowest.is_some_and(|lowest| lowest.remaining <= status.remaining) => {}
                Ok(status) => lowest = Some(status),
                Err(error) => {
                    for (_, limit, _) in &limits[..index] {
                        lock(&limit.quota).give_back(count, Instant::now());
                    }
                    return Err(error);
                }
            }
        }
        Ok(lowest)
    }

    /// Counts bytes that were read or written. Later requests with these keys spend the tokens for them.
    pub fn owe(&self, keys: &[RateKey], bytes: usize) {
        for key in keys.iter().filter(|key| bytes > 0 && self.rate(key) > 0) {
            lock(&self.limit(key).quota).owe(self.rate(key), bytes, Instant::now());
        }
    }

    /// The requests a second that a key allows.
    fn rate(&self, key: &RateKey) -> u32 {
        match key {
            RateKey::Subject(_) => self.settings.rate_per_subject,
            RateKey::Address(_) => self.settings.rate_per_address,
            RateKey::Anonymous => self.settings.rate_total.div_ceil(ANONYMOUS_DIVISOR),
            RateKey::All => self.settings.rate_total,
        }
    }

    /// Takes tokens from one quota. If it does not hold enough, more come from the bucket first.
    async fn take_one(
        &self,
        key: &RateKey,
        limit: &LocalLimit,
        rate: u32,
        count: u64,
    ) -> Result<RateStatus, RateError> {
        if let Some(status) = lock(&limit.quota).spend(key, rate, count, Instant::now()) {
            return Ok(status);
        }
        let _refill = limit.refill.lock().await;
        let now = Instant::now();
        let (held, wanted) = {
            let mut quota = lock(&limit.quota);
            // Another request may have refilled it meanwhile.
            if let Some(status) = quota.spend(key, rate, count, now) {
                return Ok(status);
            }
            let status = quota.status(key, rate);
            if count > status.quota {
                return Err(RateError::AboveQuota { status });
            }
            if let Some((_, until)) = quota.refused.filter(|(refused, until)| count >= *refused && *until > now) {
                return Err(RateError::TooMany { status, retry_after: until - now, is_new: false });
            }
            if quota.ask_at.is_some_and(|at| at > now) {
                return self.take_unanswered(&mut quota, key, rate, count);
            }
            // Set aside, so that no other request spends them while the bucket is asked for the rest.
            let tokens = std::mem::take(&mut quota.tokens);
            let held = if quota.has_expired(now) { 0 } else { tokens };
            (held, quota.with_debt(rate, count, now))
        };
        let missing = wanted.saturating_sub(held);
        let bucket = RateLimit { per_second: rate, burst: u64::from(rate * BURST_SECONDS) };
        let wanted = missing.max(u64::from(rate / GRANTS_PER_SECOND)).min(bucket.burst);
        let answer = timeout(STORE_TIMEOUT, self.buckets.take(&key.bucket(), bucket, missing, wanted)).await;
        let mut quota = lock(&limit.quota);
        let Ok(Ok(RateGrant { granted, remaining, retry_after })) = answer else {
            quota.tokens += held;
            quota.ask_at = Some(now + STORE_RETRY_PAUSE);
            return self.take_unanswered(&mut quota, key, rate, count);
        };
        quota.remaining = remaining;
        quota.tokens += held + granted;
        if granted > 0 {
            quota.expires_at = Some(now + GRANT_LIFETIME);
        }
        if let Some(status) = quota.spend(key, rate, count, now) {
            return Ok(status);
        }
        quota.refused = Some((count, now + retry_after.max(MIN_REFUSAL)));
        Err(RateError::TooMany { status: quota.status(key, rate), retry_after, is_new: true })
    }

    /// Takes tokens while the broker does not answer. If requests are accepted then, they are counted on this replica
    /// alone, against the whole limit.
    fn take_unanswered(
        &self,
        quota: &mut LocalQuota,
        key: &RateKey,
        rate: u32,
        count: u64,
    ) -> Result<RateStatus, RateError> {
        if self.settings.on_failure == RateFailure::Closed {
            return Err(RateError::Unavailable);
        }
        let now = Instant::now();
        let wanted = quota.with_debt(rate, count, now);
        let taken = quota.take_locally(rate, wanted, now);
        if taken.is_ok() {
            quota.pay_debt(rate, wanted - count);
        }
        let status = RateStatus { remaining: 0, ..quota.status(key, rate) };
        taken.map(|()| status).map_err(|retry_after| RateError::TooMany { status, retry_after, is_new: false })
    }

    /// Counts a stream for as long as the permit is held. If a limit is reached, fails with that limit's name.
    pub fn open_stream(
        &self,
        subject: Option<&Arc<str>>,
        address: Option<IpAddr>,
    ) -> Result<OpenPermit, &'static str> {
        let subject = subject.map(|subject| (RateKey::Subject(subject.clone()), self.settings.streams_per_subject));
        let address = address.map(|address| (RateKey::Address(address), self.settings.streams_per_address));
        self.streams.open([subject, address].into_iter().flatten())
    }

    /// Begins a read of a caller, which counts against the limits with these keys. If too many reads go on, fails with
    /// the name of the limit.
    pub fn begin_read(self: &Arc<Self>, caller: RateKey, keys: Vec<RateKey>) -> Result<Reading, &'static str> {
        let of_caller = Some((caller, READS_OF_A_CALLER)).filter(|(caller, _)| *caller != RateKey::All);
        let of_caller = self.reads.open(of_caller)?;
        let of_all = self.reads.open([(RateKey::All, READS)])?;
        let read = ChargedRead::new(Box::new(Payer { limiter: self.clone(), keys }));
        Ok(Reading { read, _of_caller: of_caller, of_all: Some(of_all) })
    }

    /// Who pays for what the streams of a caller read. Not all callers together: they would be refused when many streams come
    /// back at once.
    pub fn payer_for_streams(self: &Arc<Self>, caller: RateKey) -> Option<Arc<Payer>> {
        (caller != RateKey::All).then(|| Arc::new(Payer { limiter: self.clone(), keys: vec![caller] }))
    }

    /// Waits until a stream of a caller may open so many rooms. The others of the same caller wait until the permit is
    /// dropped.
    pub async fn turn_to_open(&self, caller: &RateKey, rooms: usize) -> Option<OwnedSemaphorePermit> {
        if *caller == RateKey::All {
            return None;
        }
        let opening = self.limit(caller).opening.clone();
        let rooms = u32::try_from(rooms).unwrap_or(u32::MAX).min(ROOMS_OPENING_OF_A_CALLER);
        opening.acquire_many_owned(rooms).await.ok()
    }

    fn limit(&self, key: &RateKey) -> Arc<LocalLimit> {
        let Ok(limit) = self.limits.get_or_insert_with(key, || Ok::<_, Infallible>(Arc::default()));
        limit
    }
}

/// The time in which a bucket gets one token.
fn interval(rate: u32) -> Duration {
    Duration::from_secs(1) / rate
}

impl LocalQuota {
    fn has_expired(&self, now: Instant) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// Spends `count` tokens. `None` if there are not so many.
    fn spend(&mut self, key: &RateKey, rate: u32, count: u64, now: Instant) -> Option<RateStatus> {
        if self.has_expired(now) {
            return None;
        }
        self.tokens = self.tokens.checked_sub(count)?;
        let paid = self.debt(rate, now).min(self.tokens);
        self.tokens -= paid;
        self.pay_debt(rate, paid);
        Some(self.status(key, rate))
    }

    /// `count` and the debt, as far as both fit into the bucket.
    fn with_debt(&self, rate: u32, count: u64, now: Instant) -> u64 {
        (count + self.debt(rate, now)).min(u64::from(rate * BURST_SECONDS))
    }

    /// Adds the tokens for bytes to the debt, as far as it fits into a bucket.
    fn owe(&mut self, rate: u32, bytes: usize, now: Instant) {
        let number = |bytes| u32::try_from(bytes).unwrap_or(u32::MAX);
        let owed = interval(rate).saturating_mul(number(bytes)) / number(BYTES_OF_A_REQUEST);
        let free_at = self.free_at.map_or(now, |at| at.max(now)) + owed;
        self.free_at = Some(free_at.min(now + interval(rate) * rate * BURST_SECONDS));
    }

    /// The tokens that the caller owes.
    fn debt(&self, rate: u32, now: Instant) -> u64 {
        let left = self.free_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        u64::try_from(left.as_nanos() / interval(rate).as_nanos().max(1)).unwrap_or(u64::MAX)
    }

    fn pay_debt(&mut self, rate: u32, tokens: u64) {
        let paid = interval(rate).saturating_mul(u32::try_from(tokens).unwrap_or(u32::MAX));
        self.free_at = self.free_at.and_then(|at| at.checked_sub(paid));
    }

    /// Takes back tokens of a request that another limit has refused. While the broker does not answer, the request took
    /// none.
    fn give_back(&mut self, count: u64, now: Instant) {
        if self.expires_at.is_some_and(|at| at > now) && self.ask_at.is_none_or(|at| at <= now) {
            self.tokens += count;
        }
    }

    /// Takes tokens from a bucket of this replica's own. The error is the time until there are enough.
    fn take_locally(&mut self, rate: u32, count: u64, now: Instant) -> Result<(), Duration> {
        let interval = interval(rate);
        let cost = interval.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX));
        let full_at = self.full_at.map_or(now, |at| at.max(now)) + cost;
        let wait = (full_at - now).saturating_sub(interval * rate * BURST_SECONDS);
        if !wait.is_zero() {
            return Err(wait);
        }
        self.full_at = Some(full_at);
        Ok(())
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The bytes for which a payer owes, once it has owed for no longer than a moment.
    pub(crate) fn owed_bytes(payer: &Payer) -> usize {
        let key = &payer.keys[0];
        let debt = lock(&payer.limiter.limit(key).quota).debt(payer.limiter.rate(key), Instant::now());
        usize::try_from(debt).unwrap() * BYTES_OF_A_REQUEST
    }

    #[test]
    fn a_debt_has_at_most_a_buckets_tokens_and_becomes_less_as_a_bucket_fills() {
        let (mut quota, now) = (LocalQuota::default(), Instant::now());
        let after = |milliseconds| now + Duration::from_millis(milliseconds);
        // Parts of a token add up.
        for _ in 0..6 {
            quota.owe(10, BYTES_OF_A_REQUEST / 2, now);
        }
        assert_eq!((quota.debt(10, now), quota.with_debt(10, 1, now)), (3, 4));
        quota.pay_debt(10, 1);
        assert_eq!(quota.debt(10, now), 2);
        assert_eq!(quota.debt(10, after(100)), 1);
        for _ in 0..10 {
            quota.owe(10, 100 * BYTES_OF_A_REQUEST, now);
        }
        assert_eq!(quota.debt(10, now), 20);
        assert_eq!((quota.debt(10, after(1000)), quota.debt(10, after(2000))), (10, 0));
    }
}
