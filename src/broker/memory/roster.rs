//! Who is in which room, and the removals, in memory.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::journal::News;
use super::log::Log;
use super::record::Change as Record;
use super::{Awaited, MemoryBroker, OVERHEAD_BYTES, Purpose, Rest, State, microseconds};
use crate::broker::{
    Attendance, Attended, BrokerError, Change, Fault, FaultKind, Member, MemberPage, REMOVAL_LIFETIME, Removal,
    Replica, Roster, Shown, Stamp, Step, StoredRemoval,
};
use crate::room::{Data, Event, EventId, EventName, RoomName, SubscriberId};

/// Members that one entry of a log names.
const MOST_NAMED: usize = 100;
/// Removals that are remembered at one time.
const MAX_REMOVALS: usize = 100_000;

/// The members of a room.
#[derive(Default)]
pub(super) struct Roll {
    pub(super) members: BTreeMap<SubscriberId, Present>,
    /// Somebody has asked to see who comes and goes.
    pub(super) watched: bool,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Present {
    pub(super) stamp: Stamp,
    pub(super) since: String,
    pub(super) owner: Box<str>,
    #[serde(default)]
    pub(super) address: Option<IpAddr>,
    pub(super) card: Arc<str>,
    /// It was there before this process began, and has not come back yet.
    #[serde(skip)]
    pub(super) is_ghost: bool,
}

impl Present {
    fn cost(&self) -> usize {
        self.card.len() + OVERHEAD_BYTES
    }

    fn shown(&self, subscriber: &SubscriberId, replica: &str) -> Shown {
        Shown {
            subscriber: subscriber.clone(),
            card: self.card.clone(),
            since: self.since.clone(),
            replica: replica.into(),
            is_here: !self.is_ghost,
            stamp: self.stamp,
            address: self.address,
        }
    }
}

impl State {
    pub(super) fn put_member(&mut self, room: RoomName, subscriber: SubscriberId, present: Present) {
        self.bytes += present.cost();
        self.rolls.entry(room).or_default().members.insert(subscriber, present);
    }

    pub(super) fn put_removal(&mut self, id: u64, removal: Removal) {
        self.bytes += cost(&removal);
        self.removals.insert(id, removal);
    }

    /// Drops removals that hold no longer, and what is left of rooms that nobody is in and that are forgotten.
    pub(super) fn sweep_rosters(&mut self) {
        let Self { rolls, logs, removals, notes, bytes, .. } = self;
        rolls.retain(|room, roll| {
            let kept = !roll.members.is_empty() || (roll.watched && logs.contains_key(room));
            if !kept && roll.watched {
                notes.add(|| Record::watched(room, false));
            }
            kept
        });
        let recent = microseconds() / 1000 - u64::try_from(REMOVAL_LIFETIME.as_millis()).unwrap_or(0);
        removals.retain(|id, removal| {
            let kept = removal.until.max(id / 1000) >= recent;
            if !kept {
                *bytes -= cost(removal);
                notes.add(|| Record::removal(*id, None));
            }
            kept
        });
    }
}

/// What a removal takes: an estimate.
fn cost(removal: &Removal) -> usize {
    let texts = [removal.user.as_deref(), removal.token.as_deref()];
    2 * OVERHEAD_BYTES + texts.into_iter().flatten().map(str::len).sum::<usize>()
}

/// What a step has changed of one member.
type Before = BTreeMap<SubscriberId, Option<Present>>;

impl Roll {
    fn change(&mut self, change: &Change, stamp: &mut Stamp, since: &str, before: &mut Before) -> Attended {
        let name = match change {
            Change::Enter { member, .. } | Change::Leave { member, .. } => &member.subscriber,
        };
        let present = self.members.get(name);
        before.entry(name.clone()).or_insert_with(|| present.cloned());
        match change {
            Change::Leave { member, stamp } => {
                let is_it = |present: &Present| {
                    stamp.map_or(!present.is_ghost && present.owner == member.owner, |stamp| present.stamp == stamp)
                };
                if present.is_some_and(is_it) {
                    self.members.remove(name);
                }
                Attended::Gone
            }
            Change::Enter { member, .. } if present.is_some_and(|present| present.owner != member.owner) => {
                Attended::Taken
            }
            Change::Enter { stamp: Some(given), .. } if present.is_some_and(|present| present.stamp > *given) => {
                Attended::Superseded
            }
            Change::Enter { member, stamp: given } => {
                let given = given.unwrap_or_else(|| {
                    *stamp = (*stamp + 1).max(present.map_or(0, |present| present.stamp + 1));
                    *stamp
                });
                let since = present.map_or(since, |present| &present.since).to_owned();
                let Member { owner, address, card, .. } = &**member;
                let (owner, address, card) = (owner.clone(), *address, card.clone());
                let present = Present { stamp: given, since, owner, address, card, is_ghost: false };
                self.members.insert(name.clone(), present);
                Attended::Stays(given)
            }
        }
    }
}

impl MemoryBroker {
    /// Whoever was there before this process began has had time to come back.
    fn has_waited(&self) -> bool {
        self.began.elapsed() >= self.lease
    }

    fn attend_in(
        &self,
        room: &RoomName,
        log: &mut Log,
        rest: &mut Rest<'_>,
        changes: &[Change],
        watched: bool,
    ) -> Result<Vec<Attended>, BrokerError> {
        let more: usize = changes
            .iter()
            .map(|change| match change {
                Change::Enter { member, .. } => member.card.len() + OVERHEAD_BYTES,
                Change::Leave { .. } => 0,
            })
            .sum();
        self.check_room_for(*rest.bytes, more)?;
        let published_at = format!("{:.3}", jiff::Timestamp::now());
        let roll = rest.rolls.entry(room.clone()).or_default();
        if watched && !roll.watched {
            roll.watched = true;
            rest.notes.add(|| Record::watched(room, true));
        }
        let mut before = Before::new();
        if self.has_waited() {
            for (name, present) in roll.members.extract_if(.., |_, present| present.is_ghost) {
                before.insert(name, Some(present));
            }
        }
        let mut stamp = microseconds();
        let outcomes =
            changes.iter().map(|change| roll.change(change, &mut stamp, &published_at, &mut before)).collect();
        let (mut left, mut joined) = (Vec::new(), Vec::new());
        for (name, was) in &before {
            let is = roll.members.get(name);
            *rest.bytes += is.map_or(0, Present::cost);
            *rest.bytes -= was.as_ref().map_or(0, Present::cost);
            if was.as_ref() != is {
                rest.notes.add(|| Record::member(room, name, is));
            }
            match (was, is) {
                (Some(was), None) => left.push(was.clone()),
                (None, Some(is)) => joined.push(is.clone()),
                (Some(was), Some(is)) if was.card != is.card => joined.push(is.clone()),
                _ => {}
            }
        }
        if roll.watched {
            let present = roll.members.len();
            for (name, members) in [(EventName::LEAVE, left), (EventName::JOIN, joined)] {
                for named in members.chunks(MOST_NAMED) {
                    let event = presence(name, named, present, &published_at);
                    self.push(room, log, rest, event.encode());
                }
            }
        }
        Ok(outcomes)
    }
}

/// An entry that says who came or has gone.
fn presence(name: &str, named: &[Present], present: usize, published_at: &str) -> Event {
    let members: Vec<_> =
        named.iter().map(|member| format!("{{{},\"since\":\"{}\"}}", member.card, member.since)).collect();
    let data = format!("{{\"members\":[{}],\"present\":{present}}}", members.join(","));
    Event {
        name: EventName::of_log(name).ok(),
        data: Data::Json(RawValue::from_string(data).expect("cards are members of JSON objects")),
        published_at: published_at.into(),
        except: Vec::new(),
        publish_id: None,
        traceparent: None,
    }
}

#[async_trait]
impl Roster for MemoryBroker {
    async fn attend(
        &self,
        room: &RoomName,
        known: &[EventId],
        changes: &[Change],
        watched: bool,
    ) -> Result<Step, BrokerError> {
        let watched = watched || self.state().rolls.get(room).is_some_and(|roll| roll.watched);
        let purpose = if watched { Purpose::Append } else { Purpose::Read(None) };
        let (outcomes, awaited) =
            self.with_log(room, known, purpose, |log, rest| self.attend_in(room, log, rest, changes, watched))?;
        self.written(awaited).await?;
        Ok(Step { outcomes, has_ghosts: false })
    }

    async fn attendance(&self, rooms: &[RoomName]) -> Result<Vec<Attendance>, BrokerError> {
        let state = self.state();
        let attendance = |room: &RoomName| {
            let Some(roll) = state.rolls.get(room) else { return Attendance::default() };
            let ghosts = roll.members.values().filter(|present| present.is_ghost).count();
            Attendance {
                own: (roll.members.len() - ghosts) as u64,
                has_ghosts: ghosts > 0 && self.has_waited(),
                watched: roll.watched,
            }
        };
        Ok(rooms.iter().map(attendance).collect())
    }

    async fn members(&self, room: &RoomName, from: Option<&str>, limit: usize) -> Result<MemberPage, BrokerError> {
        let state = self.state();
        let Some(roll) = state.rolls.get(room) else { return Ok(MemberPage::default()) };
        let from = from.map_or(Bound::Unbounded, Bound::Excluded);
        let has_waited = self.has_waited();
        let there = roll.members.range::<str, _>((from, Bound::Unbounded));
        let mut there = there.filter(|(_, present)| !(present.is_ghost && has_waited));
        let members: Vec<_> =
            there.by_ref().take(limit).map(|(name, present)| present.shown(name, &self.replica)).collect();
        let next = there.next().and(members.last()).map(|last| last.subscriber.to_string());
        Ok(MemberPage { members, next })
    }

    async fn member(&self, room: &RoomName, subscriber: &SubscriberId) -> Result<Option<Shown>, BrokerError> {
        let state = self.state();
        let present = state.rolls.get(room).and_then(|roll| roll.members.get(subscriber));
        Ok(present.map(|present| present.shown(subscriber, &self.replica)))
    }

    async fn remove(&self, removal: &Removal) -> Result<(), BrokerError> {
        let own = {
            let mut state = self.state();
            self.check_journal()?;
            self.check_room_for(state.bytes, cost(removal))?;
            if state.removals.len() >= MAX_REMOVALS {
                let detail = format!("{MAX_REMOVALS} removals hold, and no more are remembered");
                return Err(BrokerError::Unavailable(Fault::new(FaultKind::OutOfMemory, detail)));
            }
            let id = microseconds().max(state.removals.last_key_value().map_or(0, |(last, _)| last + 1));
            state.put_removal(id, removal.clone());
            state.notes.add(|| Record::removal(id, Some(removal)));
            state.notes.news.push(News::Removed);
            self.finish(&mut state)
        };
        match own {
            Some(ticket) => self.written(Awaited::Own(ticket)).await,
            None => Ok(()),
        }
    }

    async fn removals(&self, after: Option<&str>) -> Result<Vec<StoredRemoval>, BrokerError> {
        let after = after.and_then(|after| after.parse::<u64>().ok()).map_or(Bound::Unbounded, Bound::Excluded);
        let state = self.state();
        let found = state.removals.range((after, Bound::Unbounded));
        Ok(found.map(|(id, removal)| (id.to_string(), removal.clone())).collect())
    }

    async fn replicas(&self) -> Result<Vec<Replica>, BrokerError> {
        let state = self.state();
        Ok(vec![Replica {
            replica: self.replica.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            streams: state.streams,
            rooms: state.subscribers.len() as u64,
            reported_at: format!("{:.3}", jiff::Timestamp::now()),
        }])
    }
}
