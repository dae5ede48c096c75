//! Moderation: a removal ends streams before their time, and may ban their owners for a while. The broker stores
//! removals.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::broker::{
    BrokerError, CALL_LIMIT, Fault, FaultKind, ModerationListener, ModerationStore, Removal, write_with_deadline,
};
use crate::live::LogClient;
use crate::names::{RoomName, SubscriberId};
use crate::presence::Presence;
use crate::shutdown::Tasks;
use crate::timestamp;

/// How many terminations are kept. Streams apply them as soon as they can, so they need only the latest.
const RECENT_TERMINATIONS: usize = 16_384;
/// How often the stored removals are read, in case the announcement of a new one was missed.
const REREAD_EVERY: Duration = Duration::from_secs(5);
/// Milliseconds between two sweeps of expired bans.
const SWEEP_EVERY: u64 = 60_000;
/// Longest wait of a new stream for the first read of the stored removals.
const FIRST_READ_LIMIT: Duration = Duration::from_secs(2);

/// The properties of a stream that removals name.
#[derive(Clone, Copy, Debug)]
pub struct StreamIdentity<'a> {
    /// The subscriber id.
    pub subscriber: Option<&'a SubscriberId>,
    /// The subject of the token.
    pub user: Option<&'a str>,
    /// The address of the client; for IPv6 the first address of its /64.
    pub address: Option<IpAddr>,
    /// The id of the token.
    pub token: Option<&'a str>,
}

/// Why a stream ends before its time.
#[derive(Clone, Debug)]
pub enum Termination {
    /// It was removed, and its client may open it again.
    Removed,
    /// It was removed, and its client may not open it again until the removal ends.
    Banned(Arc<Removal>),
    /// Its token was revoked.
    Revoked,
}

impl Removal {
    fn names_owner(&self) -> bool {
        self.user.is_some() || self.address.is_some()
    }

    fn bans_at(&self, now: u64) -> bool {
        self.until > now
    }

    /// Whether it ends a stream with this identity. `is_in` tells whether the stream reads a room.
    fn applies_to(&self, is_in: impl Fn(&RoomName) -> bool, stream: &StreamIdentity<'_>) -> bool {
        let same = |one: Option<&str>, other: Option<&str>| one.is_some() && one == other;
        // A removal by address bans new streams only: open streams from that address may belong to other people.
        let is_named =
            same(self.subscriber.as_ref().map(SubscriberId::as_str), stream.subscriber.map(SubscriberId::as_str))
                || same(self.user.as_deref(), stream.user)
                || same(self.token.as_deref(), stream.token);
        is_named && self.room.as_ref().is_none_or(is_in)
    }
}

/// Applies removals to this replica's streams and enforces bans.
pub struct Moderation {
    store: Arc<dyn ModerationStore>,
    log: Arc<LogClient>,
    presence: Arc<Presence>,
    tasks: Tasks,
    terminations: Mutex<Terminations>,
    /// The total of `terminations`, to wait for more.
    count: watch::Sender<u64>,
    bans: RwLock<Bans>,
    /// Whether all stored removals have been read once.
    is_loaded: watch::Sender<bool>,
    /// Notified when there may be stored removals that were not read.
    changed: Notify,
}

/// The bans, and until when they last, in milliseconds since 1970.
#[derive(Default)]
struct Bans {
    /// When expired bans were dropped last.
    swept: u64,
    /// Bans from one room, or from all.
    names: HashMap<(Option<RoomName>, BanKey), u64>,
    /// Revoked tokens, by id.
    tokens: HashMap<String, u64>,
}

#[derive(PartialEq, Eq, Hash)]
enum BanKey {
    Subscriber(SubscriberId),
    User(String),
    Address(IpAddr),
}

impl BanKey {
    /// The keys that a removal bans: those of the owner, or the subscriber id if the removal does not name the owner.
    fn from_removal(removal: &Removal) -> impl Iterator<Item = Self> {
        let subscriber = removal.subscriber.clone().filter(|_| !removal.names_owner()).map(Self::Subscriber);
        let user = removal.user.clone().map(Self::User);
        subscriber.into_iter().chain(user).chain(removal.address.map(Self::Address))
    }

    /// The keys by which a stream may be banned.
    fn from_stream(stream: &StreamIdentity<'_>) -> impl Iterator<Item = Self> {
        let subscriber = stream.subscriber.cloned().map(Self::Subscriber);
        let owner = stream.user.map(|user| Self::User(user.into())).or(stream.address.map(Self::Address));
        subscriber.into_iter().chain(owner)
    }
}

impl Bans {
    fn add(&mut self, removal: &Removal) {
        let now = now();
        if now >= self.swept + SWEEP_EVERY {
            self.swept = now;
            self.names.retain(|_, until| *until > now);
            self.tokens.retain(|_, until| *until > now);
        }
        if let Some(token) = &removal.token {
            extend(self.tokens.entry(token.clone()).or_default(), removal.until);
        }
        // The ban of the owner replaces the ban of the subscriber id, so that another owner may use the id.
        if let Some(subscriber) = removal.subscriber.clone().filter(|_| removal.names_owner()) {
            self.names.remove(&(removal.room.clone(), BanKey::Subscriber(subscriber)));
        }
        for key in BanKey::from_removal(removal) {
            extend(self.names.entry((removal.room.clone(), key)).or_default(), removal.until);
        }
    }

    /// Whether a stream with this identity is banned or its token revoked. `is_in` tells whether the stream reads a
    /// room.
    fn applies_to(&self, is_in: impl Fn(&RoomName) -> bool, stream: &StreamIdentity<'_>) -> bool {
        let now = now();
        let keys: Vec<_> = BanKey::from_stream(stream).collect();
        let is_revoked = stream.token.is_some_and(|token| self.tokens.get(token).is_some_and(|until| *until > now));
        is_revoked
            || self
                .names
                .iter()
                .any(|((room, key), until)| *until > now && keys.contains(key) && room.as_ref().is_none_or(&is_in))
    }

    /// Whether a stream with this identity is banned from this room, or from all rooms if there is none.
    fn has(&self, room: Option<&RoomName>, stream: &StreamIdentity<'_>) -> bool {
        let now = now();
        let mut keys = BanKey::from_stream(stream).map(|key| (room.cloned(), key));
        keys.any(|key| self.names.get(&key).is_some_and(|until| *until > now))
    }
}

fn extend(until: &mut u64, to: u64) {
    *until = to.max(*until);
}

/// The removals to apply to open streams.
#[derive(Default)]
struct Terminations {
    /// The latest.
    recent: VecDeque<Arc<Removal>>,
    /// How many there have been in all.
    total: u64,
}

impl Moderation {
    /// Moderation by the removals in `store`. The broker has to be started with it as its moderation listener.
    pub fn new(
        store: Arc<dyn ModerationStore>,
        log: Arc<LogClient>,
        presence: Arc<Presence>,
        tasks: &Tasks,
    ) -> Arc<Self> {
        Arc::new(Self {
            store,
            log,
            presence,
            tasks: tasks.clone(),
            terminations: Mutex::default(),
            count: watch::channel(0).0,
            bans: RwLock::default(),
            is_loaded: watch::channel(false).0,
            changed: Notify::new(),
        })
    }

    /// Starts the background task that reads and applies removals.
    pub fn start(self: &Arc<Self>) {
        let moderation = self.clone();
        self.tasks.supervise("removals", async move { moderation.follow_removals().await });
    }

    /// How many terminations there have been.
    pub fn terminations(&self) -> u64 {
        *self.count.borrow()
    }

    /// Resolves when there have been more than `seen` terminations.
    pub async fn terminations_beyond(&self, seen: u64) {
        let mut count = self.count.subscribe();
        // This struct owns the sender, so the channel can't close.
        let _ = count.wait_for(|count| *count > seen).await;
    }

    /// Why a stream has to end, by the terminations after the first `seen` ones; `None` if none applies to it. Sets
    /// `seen` to the number of all. `is_in` tells whether the stream reads a room.
    pub fn termination(
        &self,
        seen: &mut u64,
        is_in: impl Fn(&RoomName) -> bool,
        stream: &StreamIdentity<'_>,
    ) -> Option<Termination> {
        let terminations = self.lock_terminations();
        let fresh = usize::try_from(terminations.total.saturating_sub(*seen)).unwrap_or(usize::MAX);
        *seen = terminations.total;
        let now = now();
        if fresh > terminations.recent.len() && self.bans().applies_to(&is_in, stream) {
            // Some terminations were dropped before this stream could apply them; the bans show that it has to end.
            return Some(Termination::Banned(Arc::default()));
        }
        let fresh = fresh.min(terminations.recent.len());
        let fresh = terminations.recent.range(terminations.recent.len() - fresh..);
        let removal = fresh.into_iter().find(|removal| removal.applies_to(&is_in, stream))?;
        let is_revoked = removal.token.is_some() && removal.token.as_deref() == stream.token;
        Some(match removal.bans_at(now) {
            true if is_revoked => Termination::Revoked,
            true => Termination::Banned(removal.clone()),
            false => Termination::Removed,
        })
    }

    /// Extends a ban of a subscriber id to the owner of the stream that had the id, so that the owner can't open
    /// streams with another id. Returns at once; the removal is stored in the background.
    pub fn ban_owner(self: &Arc<Self>, removal: &Removal, stream: &StreamIdentity<'_>) {
        let (user, address) = match (stream.user, stream.address) {
            (Some(user), _) => (Some(user.to_owned()), None),
            (None, address) => (None, address),
        };
        let owner = StreamIdentity { subscriber: None, ..*stream };
        let names_id_only = removal.subscriber.is_some() && !removal.names_owner();
        if !names_id_only || self.bans().has(removal.room.as_ref(), &owner) {
            return;
        }
        let removal = Removal { user, address, ..removal.clone() };
        let moderation = self.clone();
        self.tasks.spawn(async move {
            if let Err(error) = moderation.remove(&removal).await {
                tracing::warn!(%error, "the owner of a removed subscriber could not be banned; only its id is banned");
            }
        });
    }

    /// Whether a stream of these rooms may not be opened now. Fails while the stored removals have never been read.
    pub async fn is_banned(
        &self,
        mut rooms: impl Iterator<Item = RoomName>,
        stream: &StreamIdentity<'_>,
    ) -> Result<bool, BrokerError> {
        self.loaded().await?;
        let bans = self.bans();
        Ok(!bans.names.is_empty() && (bans.has(None, stream) || rooms.any(|room| bans.has(Some(&room), stream))))
    }

    /// Whether the token with this id was revoked. Fails while the stored removals have never been read.
    pub async fn is_revoked(&self, token: &str) -> Result<bool, BrokerError> {
        self.loaded().await?;
        Ok(self.bans().tokens.get(token).is_some_and(|until| *until > now()))
    }

    /// Ends streams on all replicas, and bans their owners until the removal ends. When it returns, the removal is
    /// stored, but the streams may not have ended yet.
    pub async fn remove(&self, removal: &Removal) -> Result<(), BrokerError> {
        write_with_deadline("a removal", self.store.store_removal(removal)).await
    }

    /// Waits until the stored removals have been read once. Fails after [`FIRST_READ_LIMIT`].
    async fn loaded(&self) -> Result<(), BrokerError> {
        let mut is_loaded = self.is_loaded.subscribe();
        if timeout(FIRST_READ_LIMIT, is_loaded.wait_for(|is_loaded| *is_loaded)).await.is_err() {
            let fault = Fault::new(FaultKind::Unreachable, "the stored removals have not been read yet");
            return Err(BrokerError::Unavailable(fault));
        }
        Ok(())
    }

    /// Reads all stored removals, and then new ones whenever there may be some.
    async fn follow_removals(&self) {
        let mut after: Option<String> = None;
        let mut has_failed = false;
        loop {
            loop {
                let page = match timeout(CALL_LIMIT, self.store.removals(after.as_deref())).await {
                    Ok(Ok(page)) => page,
                    Ok(Err(error)) => {
                        // The broker logs faults that concern all calls. This logs one that concerns removals alone.
                        if !std::mem::replace(&mut has_failed, true) && self.log.health().is_well() {
                            tracing::warn!(%error, "the stored removals can't be read: new removals have no effect here, \
                                and if none were ever read, new streams are refused");
                        }
                        break;
                    }
                    Err(_) => break,
                };
                has_failed = false;
                let Some((last, _)) = page.last() else {
                    self.is_loaded.send_replace(true);
                    break;
                };
                after = Some(last.clone());
                let is_loaded = *self.is_loaded.borrow();
                for (_, removal) in page {
                    if removal.bans_at(now()) {
                        self.bans.write().expect("no holder of the lock panics").add(&removal);
                    }
                    // The removals of the first read are older than any stream of this replica.
                    if is_loaded {
                        let (removal, at) = (Arc::new(removal), Instant::now());
                        // The termination comes first, so that the stream ends before its own `presence.leave` reaches
                        // it.
                        self.terminate(removal.clone());
                        self.presence.remove(&removal, at);
                    }
                }
            }
            let _ = timeout(REREAD_EVERY, self.changed.notified()).await;
        }
    }

    fn terminate(&self, removal: Arc<Removal>) {
        let mut terminations = self.lock_terminations();
        terminations.recent.push_back(removal);
        if terminations.recent.len() > RECENT_TERMINATIONS {
            terminations.recent.pop_front();
        }
        terminations.total += 1;
        let total = terminations.total;
        drop(terminations);
        self.count.send_if_modified(|count| {
            let is_more = total > *count;
            *count = total.max(*count);
            is_more
        });
    }

    fn bans(&self) -> RwLockReadGuard<'_, Bans> {
        self.bans.read().expect("no holder of the lock panics")
    }

    fn lock_terminations(&self) -> MutexGuard<'_, Terminations> {
        self.terminations.lock().expect("no holder of the lock panics")
    }
}

impl ModerationListener for Moderation {
    fn removals_changed(&self) {
        self.changed.notify_one();
    }
}

/// Now, in milliseconds since 1970.
fn now() -> u64 {
    timestamp::milliseconds(timestamp::since_1970())
}
