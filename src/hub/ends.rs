//! What ends streams before their time, and keeps their owners out: removals, which are stored.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::{Hub, answered};
use crate::broker::{BrokerError, CALL_LIMIT, Fault, FaultKind, Removal};
use crate::room::{RoomName, SubscriberId};

/// What was ordered of late: streams look at it as soon as they can, so few are needed.
const RECENT: usize = 16_384;
/// Stored removals are looked at this often, should it not have been heard that there are more.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Milliseconds between two sweeps of those who are kept out no more.
const SWEEP_EVERY: u64 = 60_000;
/// Longest wait of a new stream for them to have been read once.
const KNOWN_LIMIT: Duration = Duration::from_secs(2);

/// Whose stream it is.
#[derive(Clone, Copy, Debug)]
pub struct Whose<'a> {
    /// The name that it has chosen, or was given.
    pub subscriber: Option<&'a SubscriberId>,
    /// Its token's subject.
    pub user: Option<&'a str>,
    /// Where it comes from; for IPv6 the first address of its /64.
    pub address: Option<IpAddr>,
    /// Its token's id.
    pub token: Option<&'a str>,
}

/// Why a stream ends before its time.
#[derive(Clone, Debug)]
pub enum Ending {
    /// It was removed, and may come back.
    Removed,
    /// It was removed for a time.
    Denied(Arc<Removal>),
    /// Its token was revoked.
    Revoked,
}

impl Removal {
    fn knows_owner(&self) -> bool {
        self.user.is_some() || self.address.is_some()
    }

    fn denies(&self, now: u64) -> bool {
        self.until > now
    }

    /// Whether it ends a stream of such rooms and of such a caller.
    fn ends(&self, is_in: impl Fn(&RoomName) -> bool, whose: &Whose<'_>) -> bool {
        let same = |one: Option<&str>, other: Option<&str>| one.is_some() && one == other;
        // An address is kept out and no more: others who come from there have done nothing.
        let named =
            same(self.subscriber.as_ref().map(SubscriberId::as_str), whose.subscriber.map(SubscriberId::as_str))
                || same(self.user.as_deref(), whose.user)
                || same(self.token.as_deref(), whose.token);
        named && self.room.as_ref().is_none_or(is_in)
    }
}

/// Orders that end streams.
#[derive(Default)]
pub(super) struct Ends {
    orders: Mutex<Orders>,
    count: watch::Sender<u64>,
    held: RwLock<Held>,
    /// Whether all that were stored have been read once.
    known: watch::Sender<bool>,
    stale: Notify,
}

/// Who is kept out, and until when.
#[derive(Default)]
struct Held {
    /// When those whose time has passed were dropped last.
    swept: u64,
    names: HashMap<(Option<RoomName>, Name), u64>,
    tokens: HashMap<String, u64>,
}

#[derive(PartialEq, Eq, Hash)]
enum Name {
    Subscriber(SubscriberId),
    User(String),
    Address(IpAddr),
}

impl Name {
    /// Whom a removal keeps out: the owner, and a name alone only where it is not known whose it is.
    fn of_removal(removal: &Removal) -> impl Iterator<Item = Self> {
        let subscriber = removal.subscriber.clone().filter(|_| !removal.knows_owner()).map(Self::Subscriber);
        let user = removal.user.clone().map(Self::User);
        subscriber.into_iter().chain(user).chain(removal.address.map(Self::Address))
    }

    fn of(whose: &Whose<'_>) -> impl Iterator<Item = Self> {
        let subscriber = whose.subscriber.cloned().map(Self::Subscriber);
        let owner = whose.user.map(|user| Self::User(user.into())).or(whose.address.map(Self::Address));
        subscriber.into_iter().chain(owner)
    }
}

impl Held {
    fn take(&mut self, removal: &Removal) {
        let now = milliseconds();
        if now >= self.swept + SWEEP_EVERY {
            self.swept = now;
            self.names.retain(|_, until| *until > now);
            self.tokens.retain(|_, until| *until > now);
        }
        if let Some(token) = &removal.token {
            extend(self.tokens.entry(token.clone()).or_default(), removal.until);
        }
        if let Some(subscriber) = removal.subscriber.clone().filter(|_| removal.knows_owner()) {
            self.names.remove(&(removal.room.clone(), Name::Subscriber(subscriber)));
        }
        for name in Name::of_removal(removal) {
            extend(self.names.entry((removal.room.clone(), name)).or_default(), removal.until);
        }
    }

    fn denies(&self, is_in: impl Fn(&RoomName) -> bool, whose: &Whose<'_>) -> bool {
        let now = milliseconds();
        let names: Vec<_> = Name::of(whose).collect();
        let is_revoked = whose.token.is_some_and(|token| self.tokens.get(token).is_some_and(|until| *until > now));
        is_revoked
            || self.names.iter().any(|((room, name), until)| {
                *until > now && names.contains(name) && room.as_ref().is_none_or(&is_in)
            })
    }

    fn has(&self, room: Option<&RoomName>, whose: &Whose<'_>) -> bool {
        let now = milliseconds();
        let mut names = Name::of(whose).map(|name| (room.cloned(), name));
        names.any(|name| self.names.get(&name).is_some_and(|until| *until > now))
    }
}

fn extend(until: &mut u64, to: u64) {
    *until = to.max(*until);
}

#[derive(Default)]
struct Orders {
    recent: VecDeque<Arc<Removal>>,
    given: u64,
}

impl Ends {
    /// How many orders there have been.
    pub(super) fn count(&self) -> u64 {
        *self.count.borrow()
    }

    /// Resolves when there have been more.
    pub(super) async fn beyond(&self, seen: u64) {
        let mut count = self.count.subscribe();
        // The sender is ours, so the channel can't close.
        let _ = count.wait_for(|count| *count > seen).await;
    }

    fn ending(&self, seen: &mut u64, is_in: impl Fn(&RoomName) -> bool, whose: &Whose<'_>) -> Option<Ending> {
        let orders = self.orders();
        let fresh = usize::try_from(orders.given.saturating_sub(*seen)).unwrap_or(usize::MAX);
        *seen = orders.given;
        let now = milliseconds();
        if fresh > orders.recent.len() && self.held().denies(&is_in, whose) {
            // Some were forgotten before they were looked at.
            return Some(Ending::Denied(Arc::default()));
        }
        let fresh = fresh.min(orders.recent.len());
        let fresh = orders.recent.range(orders.recent.len() - fresh..);
        let removal = fresh.into_iter().find(|removal| removal.ends(&is_in, whose))?;
        let revoked = removal.token.is_some() && removal.token.as_deref() == whose.token;
        Some(match removal.denies(now) {
            true if revoked => Ending::Revoked,
            true => Ending::Denied(removal.clone()),
            false => Ending::Removed,
        })
    }

    /// Whether such a stream may not be opened now. Fails while it is not known who may not.
    async fn denies(
        &self,
        mut rooms: impl Iterator<Item = RoomName>,
        whose: &Whose<'_>,
    ) -> Result<bool, BrokerError> {
        self.known().await?;
        let held = self.held();
        Ok(!held.names.is_empty() && (held.has(None, whose) || rooms.any(|room| held.has(Some(&room), whose))))
    }

    /// Waits until it is known who is kept out; fails if that takes too long.
    async fn known(&self) -> Result<(), BrokerError> {
        let mut known = self.known.subscribe();
        if timeout(KNOWN_LIMIT, known.wait_for(|known| *known)).await.is_err() {
            let fault = Fault::new(FaultKind::Unreachable, "the removals that hold have not been read yet");
            return Err(BrokerError::Unavailable(fault));
        }
        Ok(())
    }

    async fn has_revoked(&self, token: &str) -> Result<bool, BrokerError> {
        self.known().await?;
        Ok(self.held().tokens.get(token).is_some_and(|until| *until > milliseconds()))
    }

    fn held(&self) -> RwLockReadGuard<'_, Held> {
        self.held.read().expect("no holder of the lock panics")
    }

    /// There may be more removals than are known here.
    pub(super) fn look(&self) {
        self.stale.notify_one();
    }

    fn order(&self, removal: Arc<Removal>) {
        let mut orders = self.orders();
        orders.recent.push_back(removal);
        if orders.recent.len() > RECENT {
            orders.recent.pop_front();
        }
        orders.given += 1;
        let given = orders.given;
        drop(orders);
        self.count.send_if_modified(|count| {
            let more = given > *count;
            *count = given.max(*count);
            more
        });
    }

    fn take(&self, removal: &Removal) {
        if removal.denies(milliseconds()) {
            self.held.write().expect("no holder of the lock panics").take(removal);
        }
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().expect("no holder of the lock panics")
    }
}

impl Hub {
    /// How many orders to end streams there have been.
    pub fn orders(&self) -> u64 {
        self.ends.count()
    }

    /// Resolves when there have been more orders.
    pub async fn ordered_beyond(&self, seen: u64) {
        self.ends.beyond(seen).await;
    }

    /// Why a stream has to end, by the orders since it looked last, which moves on. `is_in` tells its rooms.
    pub fn ending(&self, seen: &mut u64, is_in: impl Fn(&RoomName) -> bool, whose: &Whose<'_>) -> Option<Ending> {
        self.ends.ending(seen, is_in, whose)
    }

    /// Has a removal by the subscriber's name be one by the owner of the stream that had it, so that another name does not slip past.
    pub fn keep_out(self: &Arc<Self>, removal: &Removal, whose: &Whose<'_>) {
        let (user, address) = match (whose.user, whose.address) {
            (Some(user), _) => (Some(user.to_owned()), None),
            (None, address) => (None, address),
        };
        let owner = Whose { subscriber: None, ..*whose };
        let by_name_alone = removal.subscriber.is_some() && !removal.knows_owner();
        if !by_name_alone || self.ends.held().has(removal.room.as_ref(), &owner) {
            return;
        }
        let of_owner = Removal { user, address, ..removal.clone() };
        let hub = self.clone();
        self.tasks.spawn(async move {
            if let Err(error) = hub.remove(&of_owner).await {
                tracing::warn!(%error, "a subscriber that was removed is kept out by its name alone");
            }
        });
    }

    /// Whether a stream of these rooms may not be opened now.
    pub async fn denies(
        &self,
        rooms: impl Iterator<Item = RoomName>,
        whose: &Whose<'_>,
    ) -> Result<bool, BrokerError> {
        self.ends.denies(rooms, whose).await
    }

    /// Whether the token of this id is not taken any more.
    pub async fn has_revoked(&self, token: &str) -> Result<bool, BrokerError> {
        self.ends.has_revoked(token).await
    }

    /// Ends streams on all replicas, and keeps their owners out until the removal ends. Once it returns, that is stored.
    pub async fn remove(&self, removal: &Removal) -> Result<(), BrokerError> {
        answered("a removal", self.broker.remove(removal)).await
    }

    /// Keeps up with the removals that are stored.
    pub(super) async fn keep_up_with_removals(&self) {
        let mut after: Option<String> = None;
        let mut has_failed = false;
        loop {
            loop {
                let more = match timeout(CALL_LIMIT, self.broker.removals(after.as_deref())).await {
                    Ok(Ok(more)) => more,
                    Ok(Err(error)) => {
                        // What is wrong with all of Redis is said by the probe; this may be wrong alone.
                        if !std::mem::replace(&mut has_failed, true) && self.broker.health().is_well() {
                            tracing::warn!(%error, "the removals can't be read; until they are, new streams may have to wait");
                        }
                        break;
                    }
                    Err(_) => break,
                };
                has_failed = false;
                let Some((last, _)) = more.last() else {
                    self.ends.known.send_replace(true);
                    break;
                };
                after = Some(last.clone());
                let is_known = *self.ends.known.borrow();
                for (_, removal) in more {
                    self.ends.take(&removal);
                    // What was ordered before this replica had any streams is about none of them.
                    if is_known {
                        let removal = Arc::new(removal);
                        // First, so that a stream ends before its own leave can reach it.
                        self.ends.order(removal.clone());
                        self.presence.removed(&removal);
                    }
                }
            }
            let _ = timeout(LOOK_EVERY, self.ends.stale.notified()).await;
        }
    }
}

/// Now, in milliseconds since 1970.
fn milliseconds() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
