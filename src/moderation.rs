//! Moderation: removals end streams before their time, and keep their owners from coming back. The broker stores removals.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::broker::{BrokerError, CALL_LIMIT, Fault, FaultKind, ModerationListener, ModerationStore, Removal};
use crate::live::{LogClient, with_deadline};
use crate::names::{RoomName, SubscriberId};
use crate::presence::Presence;
use crate::shutdown::Tasks;

/// Terminations that are remembered: streams look at them as soon as they can, so few are needed.
const RECENT_TERMINATIONS: usize = 16_384;
/// Stored removals are read this often, in case an announcement of a new one was missed.
const REREAD_EVERY: Duration = Duration::from_secs(5);
/// Milliseconds between two sweeps of expired bans.
const SWEEP_EVERY: u64 = 60_000;
/// Longest wait of a new stream for the stored removals to have been read once.
const FIRST_READ_LIMIT: Duration = Duration::from_secs(2);

/// What identifies a stream to removals.
#[derive(Clone, Copy, Debug)]
pub struct StreamIdentity<'a> {
    /// The subscriber id that the client has chosen, or was given.
    pub subscriber: Option<&'a SubscriberId>,
    /// The subject of its token.
    pub user: Option<&'a str>,
    /// The address of the client; for IPv6 the first address of its /64.
    pub address: Option<IpAddr>,
    /// The id of its token.
    pub token: Option<&'a str>,
}

/// Why a stream ends before its time.
#[derive(Clone, Debug)]
pub enum Termination {
    /// It was removed, and may be opened again.
    Removed,
    /// It was removed, and may not be opened again for a time.
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

    /// Whether it ends a stream of such rooms with this identity.
    fn applies_to(&self, is_in: impl Fn(&RoomName) -> bool, stream: &StreamIdentity<'_>) -> bool {
        let same = |one: Option<&str>, other: Option<&str>| one.is_some() && one == other;
        // An address is only banned. Open streams from it stay: they may be other people's.
        let named =
            same(self.subscriber.as_ref().map(SubscriberId::as_str), stream.subscriber.map(SubscriberId::as_str))
                || same(self.user.as_deref(), stream.user)
                || same(self.token.as_deref(), stream.token);
        named && self.room.as_ref().is_none_or(is_in)
    }
}

/// Applies removals to this replica's streams, and remembers bans.
pub struct Moderation {
    store: Arc<dyn ModerationStore>,
    log: Arc<LogClient>,
    presence: Arc<Presence>,
    tasks: Tasks,
    terminations: Mutex<Terminations>,
    count: watch::Sender<u64>,
    bans: RwLock<Bans>,
    /// Whether all stored removals have been read once.
    is_loaded: watch::Sender<bool>,
    changed: Notify,
}

/// Who is banned, and until when, in milliseconds since 1970.
#[derive(Default)]
struct Bans {
    /// When expired bans were dropped last.
    swept: u64,
    names: HashMap<(Option<RoomName>, BanKey), u64>,
    tokens: HashMap<String, u64>,
}

#[derive(PartialEq, Eq, Hash)]
enum BanKey {
    Subscriber(SubscriberId),
    User(String),
    Address(IpAddr),
}

impl BanKey {
    /// What a removal bans: the owner, or the subscriber id if the owner is not known.
    fn from_removal(removal: &Removal) -> impl Iterator<Item = Self> {
        let subscriber = removal.subscriber.clone().filter(|_| !removal.names_owner()).map(Self::Subscriber);
        let user = removal.user.clone().map(Self::User);
        subscriber.into_iter().chain(user).chain(removal.address.map(Self::Address))
    }

    fn from_stream(stream: &StreamIdentity<'_>) -> impl Iterator<Item = Self> {
        let subscriber = stream.subscriber.cloned().map(Self::Subscriber);
        let owner = stream.user.map(|user| Self::User(user.into())).or(stream.address.map(Self::Address));
        subscriber.into_iter().chain(owner)
    }
}

impl Bans {
    fn add(&mut self, removal: &Removal) {
        let now = milliseconds();
        if now >= self.swept + SWEEP_EVERY {
            self.swept = now;
            self.names.retain(|_, until| *until > now);
            self.tokens.retain(|_, until| *until > now);
        }
        if let Some(token) = &removal.token {
            extend(self.tokens.entry(token.clone()).or_default(), removal.until);
        }
        if let Some(subscriber) = removal.subscriber.clone().filter(|_| removal.names_owner()) {
            self.names.remove(&(removal.room.clone(), BanKey::Subscriber(subscriber)));
        }
        for key in BanKey::from_removal(removal) {
            extend(self.names.entry((removal.room.clone(), key)).or_default(), removal.until);
        }
    }

    fn applies_to(&self, is_in: impl Fn(&RoomName) -> bool, stream: &StreamIdentity<'_>) -> bool {
        let now = milliseconds();
        let keys: Vec<_> = BanKey::from_stream(stream).collect();
        let is_revoked = stream.token.is_some_and(|token| self.tokens.get(token).is_some_and(|until| *until > now));
        is_revoked
            || self
                .names
                .iter()
                .any(|((room, key), until)| *until > now && keys.contains(key) && room.as_ref().is_none_or(&is_in))
    }

    fn has(&self, room: Option<&RoomName>, stream: &StreamIdentity<'_>) -> bool {
        let now = milliseconds();
        let mut keys = BanKey::from_stream(stream).map(|key| (room.cloned(), key));
        keys.any(|key| self.names.get(&key).is_some_and(|until| *until > now))
    }
}

fn extend(until: &mut u64, to: u64) {
    *until = to.max(*until);
}

/// The removals that ended streams of late.
#[derive(Default)]
struct Terminations {
    recent: VecDeque<Arc<Removal>>,
    /// How many there were in all.
    total: u64,
}

impl Moderation {
    /// Moderation by the removals in `store`. It is to be the listener of that broker.
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

    /// Starts to follow the stored removals.
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
        // The sender is ours, so the channel can't close.
        let _ = count.wait_for(|count| *count > seen).await;
    }

    /// Why a stream has to end, by the terminations after the `seen` first ones; `seen` is advanced to the newest. `is_in` tells
    /// which rooms the stream reads.
    pub fn termination(
        &self,
        seen: &mut u64,
        is_in: impl Fn(&RoomName) -> bool,
        stream: &StreamIdentity<'_>,
    ) -> Option<Termination> {
        let terminations = self.lock_terminations();
        let fresh = usize::try_from(terminations.total.saturating_sub(*seen)).unwrap_or(usize::MAX);
        *seen = terminations.total;
        let now = milliseconds();
        if fresh > terminations.recent.len() && self.bans().applies_to(&is_in, stream) {
            // Some were forgotten before this stream has looked at them.
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

    /// Extends a ban of a subscriber id to the owner of the stream that has the id, so that the owner can't come back under
    /// another id.
    pub fn ban_owner(self: &Arc<Self>, removal: &Removal, stream: &StreamIdentity<'_>) {
        let (user, address) = match (stream.user, stream.address) {
            (Some(user), _) => (Some(user.to_owned()), None),
            (None, address) => (None, address),
        };
        let owner = StreamIdentity { subscriber: None, ..*stream };
        let is_by_id = removal.subscriber.is_some() && !removal.names_owner();
        if !is_by_id || self.bans().has(removal.room.as_ref(), &owner) {
            return;
        }
        let removal = Removal { user, address, ..removal.clone() };
        let moderation = self.clone();
        self.tasks.spawn(async move {
            if let Err(error) = moderation.remove(&removal).await {
                tracing::warn!(%error, "a removed subscriber is banned by its id only, not by its owner");
            }
        });
    }

    /// Whether a stream of these rooms may not be opened now. Fails while the stored removals have not been read.
    pub async fn is_banned(
        &self,
        mut rooms: impl Iterator<Item = RoomName>,
        stream: &StreamIdentity<'_>,
    ) -> Result<bool, BrokerError> {
        self.loaded().await?;
        let bans = self.bans();
        Ok(!bans.names.is_empty() && (bans.has(None, stream) || rooms.any(|room| bans.has(Some(&room), stream))))
    }

    /// Whether the token with this id was revoked. Fails while the stored removals have not been read.
    pub async fn is_revoked(&self, token: &str) -> Result<bool, BrokerError> {
        self.loaded().await?;
        Ok(self.bans().tokens.get(token).is_some_and(|until| *until > milliseconds()))
    }

    /// Ends streams on all replicas, and bans their owners until the removal ends. Once it returns, the removal is stored.
    pub async fn remove(&self, removal: &Removal) -> Result<(), BrokerError> {
        with_deadline("a removal", self.store.remove(removal)).await
    }

    /// Waits until the stored removals have been read once; fails if that takes too long.
    async fn loaded(&self) -> Result<(), BrokerError> {
        let mut is_loaded = self.is_loaded.subscribe();
        if timeout(FIRST_READ_LIMIT, is_loaded.wait_for(|is_loaded| *is_loaded)).await.is_err() {
            let fault = Fault::new(FaultKind::Unreachable, "the stored removals have not been read yet");
            return Err(BrokerError::Unavailable(fault));
        }
        Ok(())
    }

    /// Reads the stored removals, and those that are added.
    async fn follow_removals(&self) {
        let mut after: Option<String> = None;
        let mut has_failed = false;
        loop {
            loop {
                let page = match timeout(CALL_LIMIT, self.store.removals(after.as_deref())).await {
                    Ok(Ok(page)) => page,
                    Ok(Err(error)) => {
                        // The probe logs what is wrong with all of Redis; this may be wrong alone.
                        if !std::mem::replace(&mut has_failed, true) && self.log.health().is_well() {
                            tracing::warn!(%error, "the removals can't be read; until they are, new streams may have to wait");
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
                    if removal.bans_at(milliseconds()) {
                        self.bans.write().expect("no holder of the lock panics").add(&removal);
                    }
                    // Removals from before this replica had any streams apply to none of them.
                    if is_loaded {
                        let removal = Arc::new(removal);
                        // First, so that a stream ends before its own leave can reach it.
                        self.terminate(removal.clone());
                        self.presence.remove(&removal);
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
fn milliseconds() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
