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

use crate::broker::{Bucket, Buckets, Taken};

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
pub struct LimitSettings {
    /// Requests a second.
    pub rate_per_subject: u32,
    /// Requests a second.
    pub rate_per_address: u32,
    /// Requests a second.
    pub rate_total: u32,
    /// While the broker can't say.
    pub on_failure: OnFailure,
    /// Streams on this replica.
    pub streams_per_subject: u32,
    /// Streams on this replica.
    pub streams_per_address: u32,
}

/// What becomes of requests that can't be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// They pass.
    Pass,
    /// They are refused.
    Refuse,
}

/// Whose share it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Of {
    /// A token's subject.
    Subject(Arc<str>),
    /// An address, or an IPv6 network's first.
    Address(IpAddr),
    /// Everybody.
    All,
}

impl Of {
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
pub struct Standing {
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
pub enum Refused {
    /// Too many of late.
    TooMany {
        /// By which limit.
        standing: Standing,
        /// When it may be tried again.
        after: Duration,
        /// Whether that is news, and not only what was said a moment ago.
        is_news: bool,
    },
    /// More at once than the limit ever lets through.
    Never {
        /// By which limit.
        standing: Standing,
    },
    /// It can't be told.
    Unknown,
}

/// What a replica holds of one bucket.
#[derive(Default)]
struct Share {
    tokens: u64,
    until: Option<Instant>,
    remaining: u64,
    /// So many at once, or more, are refused until then.
    refused: Option<(u64, Instant)>,
}

/// A share, and who fills it: one at a time.
#[derive(Default)]
struct Shared {
    share: Mutex<Share>,
    filling: tokio::sync::Mutex<()>,
}

/// The limits of all callers.
pub struct Limits {
    settings: LimitSettings,
    buckets: Arc<dyn Buckets>,
    shares: Cache<Of, Arc<Shared>>,
    streams: Mutex<HashMap<Of, u32>>,
    /// When the broker, which could not say, is asked again.
    ask_at: Mutex<Option<Instant>>,
}

/// The streams that a caller has open count for as long as it has this.
pub struct Place {
    limits: Arc<Limits>,
    of: Vec<Of>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut streams = self.limits.streams();
        for of in &self.of {
            if let Some(count) = streams.get_mut(of) {
                *count -= 1;
                if *count == 0 {
                    streams.remove(of);
                }
            }
        }
    }
}

impl Limits {
    /// Limits whose buckets a broker keeps.
    pub fn new(settings: LimitSettings, buckets: Arc<dyn Buckets>) -> Arc<Self> {
        Arc::new(Self {
            settings,
            buckets,
            shares: Cache::new(CALLERS),
            streams: Mutex::default(),
            ask_at: Mutex::default(),
        })
    }

    /// Counts requests of these, all of which must have enough. How the one stands that has the least left, if any has a limit.
    pub async fn take(&self, of: impl IntoIterator<Item = Of>, count: u64) -> Result<Option<Standing>, Refused> {
        let limits: Vec<_> = of.into_iter().map(|of| (self.rate(&of), of)).filter(|(rate, _)| *rate > 0).collect();
        for (rate, of) in &limits {
            self.fill(of, *rate, count).await?;
        }
        // All of them, or none.
        let mut narrowest = None;
        for (rate, of) in &limits {
            let share = self.share(of);
            let mut share = lock(&share.share);
            share.tokens = share.tokens.saturating_sub(count);
            let standing = share.standing(of, *rate);
            if narrowest.is_none_or(|other: Standing| standing.remaining < other.remaining) {
                narrowest = Some(standing);
            }
        }
        Ok(narrowest)
    }

    fn rate(&self, of: &Of) -> u32 {
        match of {
            Of::Subject(_) => self.settings.rate_per_subject,
            Of::Address(_) => self.settings.rate_per_address,
            Of::All => self.settings.rate_total,
        }
    }

    /// Has a share hold so many at least.
    async fn fill(&self, of: &Of, rate: u32, count: u64) -> Result<(), Refused> {
        let shared = self.share(of);
        if lock(&shared.share).has(count, Instant::now()) {
            return Ok(());
        }
        let _filling = shared.filling.lock().await;
        let now = Instant::now();
        let missing = {
            let mut share = lock(&shared.share);
            if share.until.is_some_and(|until| until <= now) {
                share.tokens = 0;
            }
            if share.has(count, now) {
                return Ok(());
            }
            let standing = share.standing(of, rate);
            if count > standing.quota {
                return Err(Refused::Never { standing });
            }
            if let Some((_, until)) = share.refused.filter(|(least, until)| count >= *least && *until > now) {
                return Err(Refused::TooMany { standing, after: until - now, is_news: false });
            }
            count - share.tokens
        };
        if lock(&self.ask_at).is_some_and(|at| at > now) {
            return self.unknown();
        }
        let bucket = Bucket { per_second: rate, burst: u64::from(rate * BURST_SECONDS) };
        let wanted = missing.max(u64::from(rate / SHARES_A_SECOND)).min(bucket.burst);
        let asked = timeout(ASK_LIMIT, self.buckets.take(&of.key(), bucket, missing, wanted)).await;
        let Ok(Ok(Taken { granted, remaining, after })) = asked else {
            *lock(&self.ask_at) = Some(now + ASK_AGAIN);
            return self.unknown();
        };
        let mut share = lock(&shared.share);
        share.remaining = remaining;
        if granted > 0 {
            share.tokens += granted;
            share.until = Some(now + SHARE_LIFETIME);
        }
        if share.tokens >= count {
            return Ok(());
        }
        share.refused = Some((count, now + after.max(REFUSAL_LIFETIME)));
        Err(Refused::TooMany { standing: share.standing(of, rate), after, is_news: true })
    }

    fn unknown(&self) -> Result<(), Refused> {
        match self.settings.on_failure {
            OnFailure::Pass => Ok(()),
            OnFailure::Refuse => Err(Refused::Unknown),
        }
    }

    /// Counts a stream for as long as its place is kept. The limit that has no place left otherwise.
    pub fn open_stream(
        self: &Arc<Self>,
        subject: Option<&Arc<str>>,
        address: Option<IpAddr>,
    ) -> Result<Place, &'static str> {
        let subject = subject.map(|subject| (Of::Subject(subject.clone()), self.settings.streams_per_subject));
        let address = address.map(|address| (Of::Address(address), self.settings.streams_per_address));
        let limits: Vec<_> = [subject, address].into_iter().flatten().filter(|(_, most)| *most > 0).collect();
        let mut streams = self.streams();
        for (of, most) in &limits {
            if streams.get(of).is_some_and(|count| count >= most) {
                return Err(of.name());
            }
        }
        let of: Vec<_> = limits.into_iter().map(|(of, _)| of).collect();
        for of in &of {
            *streams.entry(of.clone()).or_default() += 1;
        }
        Ok(Place { limits: self.clone(), of })
    }

    fn share(&self, of: &Of) -> Arc<Shared> {
        let found = self.shares.get_or_insert_with(of, || Ok::<_, std::convert::Infallible>(Arc::default()));
        match found {
            Ok(share) => share,
            Err(never) => match never {},
        }
    }

    fn streams(&self) -> MutexGuard<'_, HashMap<Of, u32>> {
        lock(&self.streams)
    }
}

impl Share {
    fn has(&self, count: u64, now: Instant) -> bool {
        self.tokens >= count && self.until.is_none_or(|until| until > now)
    }

    fn standing(&self, of: &Of, rate: u32) -> Standing {
        Standing {
            policy: of.name(),
            quota: u64::from(rate * BURST_SECONDS),
            window: BURST_SECONDS,
            remaining: self.tokens + self.remaining,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of the lock panics")
}
