//! Presence in memory.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::entries::Log;
use super::record::RecordChange;
use super::{MemoryBroker, OVERHEAD_BYTES, Purpose, State, Transaction, microseconds};
use crate::broker::{
    BrokerError, Generation, Member, MemberChange, MemberOutcome, MemberPage, MemberView, PresenceStore,
    PresenceSummary, PresenceUpdate,
};
use crate::names::{Data, Event, EventId, EventName, RoomName, SubscriberId, Topic};

/// Members that one entry of a log names.
const MOST_NAMED: usize = 100;

/// The members of a room.
#[derive(Default)]
pub(super) struct RoomMembers {
    pub(super) members: BTreeMap<SubscriberId, StoredMember>,
    /// Somebody has asked to see who comes and goes.
    pub(super) watched: bool,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredMember {
    pub(super) generation: Generation,
    pub(super) since: String,
    pub(super) owner: Box<str>,
    #[serde(default)]
    pub(super) address: Option<IpAddr>,
    pub(super) profile: Arc<str>,
    /// It was there before this process began, and has not come back yet.
    #[serde(skip)]
    pub(super) is_stale: bool,
}

impl StoredMember {
    fn cost(&self) -> usize {
        self.profile.len() + OVERHEAD_BYTES
    }

    fn shown(&self, subscriber: &SubscriberId, replica: &str) -> MemberView {
        MemberView {
            subscriber: subscriber.clone(),
            profile: self.profile.clone(),
            since: self.since.clone(),
            replica: replica.into(),
            is_here: !self.is_stale,
            generation: self.generation,
            address: self.address,
        }
    }
}

impl State {
    pub(super) fn put_member(&mut self, room: RoomName, subscriber: SubscriberId, present: StoredMember) {
        self.bytes += present.cost();
        self.members.entry(room).or_default().members.insert(subscriber, present);
    }

    /// Drops what is left of rooms without members whose logs are forgotten.
    pub(super) fn sweep_presence(&mut self) {
        let Self { members, logs, notes, .. } = self;
        members.retain(|room, members_of_room| {
            let kept = !members_of_room.members.is_empty()
                || (members_of_room.watched && logs.contains_key(&Topic::from(room.clone())));
            if !kept && members_of_room.watched {
                notes.add(|| RecordChange::watched(room, false));
            }
            kept
        });
    }
}

/// What a step has changed of one member.
type Before = BTreeMap<SubscriberId, Option<StoredMember>>;

impl RoomMembers {
    fn change(
        &mut self,
        change: &MemberChange,
        generation: &mut Generation,
        since: &str,
        before: &mut Before,
    ) -> MemberOutcome {
        let name = match change {
            MemberChange::Join { member, .. } | MemberChange::Leave { member, .. } => &member.subscriber,
        };
        let present = self.members.get(name);
        before.entry(name.clone()).or_insert_with(|| present.cloned());
        match change {
            MemberChange::Leave { member, generation } => {
                let is_it = |present: &StoredMember| {
                    generation.map_or(!present.is_stale && present.owner == member.owner, |generation| {
                        present.generation == generation
                    })
                };
                if present.is_some_and(is_it) {
                    self.members.remove(name);
                }
                MemberOutcome::Absent
            }
            MemberChange::Join { member, .. } if present.is_some_and(|present| present.owner != member.owner) => {
                MemberOutcome::NameTaken
            }
            MemberChange::Join { generation: Some(given), .. }
                if present.is_some_and(|present| present.generation > *given) =>
            {
                MemberOutcome::Superseded
            }
            MemberChange::Join { member, generation: given } => {
                let given = given.unwrap_or_else(|| {
                    *generation = (*generation + 1).max(present.map_or(0, |present| present.generation + 1));
                    *generation
                });
                let since = present.map_or(since, |present| &present.since).to_owned();
                let Member { owner, address, profile, .. } = &**member;
                let (owner, address, profile) = (owner.clone(), *address, profile.clone());
                let present = StoredMember { generation: given, since, owner, address, profile, is_stale: false };
                self.members.insert(name.clone(), present);
                MemberOutcome::Present(given)
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
        tx: &mut Transaction<'_>,
        changes: &[MemberChange],
        watched: bool,
    ) -> Result<Vec<MemberOutcome>, BrokerError> {
        let more: usize = changes
            .iter()
            .map(|change| match change {
                MemberChange::Join { member, .. } => member.profile.len() + OVERHEAD_BYTES,
                MemberChange::Leave { .. } => 0,
            })
            .sum();
        self.check_room_for(*tx.bytes, more)?;
        let published_at = format!("{:.3}", jiff::Timestamp::now());
        let members_of_room = tx.members.entry(room.clone()).or_default();
        if watched && !members_of_room.watched {
            members_of_room.watched = true;
            tx.notes.add(|| RecordChange::watched(room, true));
        }
        let mut before = Before::new();
        if self.has_waited() {
            for (name, present) in members_of_room.members.extract_if(.., |_, present| present.is_stale) {
                before.insert(name, Some(present));
            }
        }
        let mut generation = microseconds();
        let outcomes = changes
            .iter()
            .map(|change| members_of_room.change(change, &mut generation, &published_at, &mut before))
            .collect();
        let (mut left, mut joined) = (Vec::new(), Vec::new());
        for (name, was) in &before {
            let is = members_of_room.members.get(name);
            *tx.bytes += is.map_or(0, StoredMember::cost);
            *tx.bytes -= was.as_ref().map_or(0, StoredMember::cost);
            if was.as_ref() != is {
                tx.notes.add(|| RecordChange::member(room, name, is));
            }
            match (was, is) {
                (Some(was), None) => left.push(was.clone()),
                (None, Some(is)) => joined.push(is.clone()),
                (Some(was), Some(is)) if was.profile != is.profile => joined.push(is.clone()),
                _ => {}
            }
        }
        if members_of_room.watched {
            let present = members_of_room.members.len();
            for (name, members) in [(EventName::LEAVE, left), (EventName::JOIN, joined)] {
                for named in members.chunks(MOST_NAMED) {
                    let event = presence(name, named, present, &published_at);
                    self.push(&room.clone().into(), log, tx, event.encode());
                }
            }
        }
        Ok(outcomes)
    }
}

/// An entry that says who came or has gone.
fn presence(name: &str, named: &[StoredMember], present: usize, published_at: &str) -> Event {
    let members: Vec<_> =
        named.iter().map(|member| format!("{{{},\"since\":\"{}\"}}", member.profile, member.since)).collect();
    let data = format!("{{\"members\":[{}],\"present\":{present}}}", members.join(","));
    Event {
        name: EventName::from_log(name).ok(),
        data: Data::Json(RawValue::from_string(data).expect("cards are members of JSON objects")),
        published_at: published_at.into(),
        except: Vec::new(),
        publish_id: None,
        traceparent: None,
    }
}

#[async_trait]
impl PresenceStore for MemoryBroker {
    async fn update_presence(
        &self,
        room: &RoomName,
        watermarks: &[EventId],
        changes: &[MemberChange],
        watched: bool,
    ) -> Result<PresenceUpdate, BrokerError> {
        let watched =
            watched || self.state().members.get(room).is_some_and(|members_of_room| members_of_room.watched);
        let purpose = if watched { Purpose::Append } else { Purpose::Read(None) };
        let (outcomes, durable_at) = self.with_log(&room.clone().into(), watermarks, purpose, |log, tx| {
            self.attend_in(room, log, tx, changes, watched)
        })?;
        self.wait_write(durable_at).await?;
        Ok(PresenceUpdate { outcomes, has_stale: false })
    }

    async fn presence_summaries(&self, rooms: &[RoomName]) -> Result<Vec<PresenceSummary>, BrokerError> {
        let state = self.state();
        let presence_summaries = |room: &RoomName| {
            let Some(members_of_room) = state.members.get(room) else { return PresenceSummary::default() };
            let ghosts = members_of_room.members.values().filter(|present| present.is_stale).count();
            PresenceSummary {
                own: (members_of_room.members.len() - ghosts) as u64,
                has_stale: ghosts > 0 && self.has_waited(),
                watched: members_of_room.watched,
            }
        };
        Ok(rooms.iter().map(presence_summaries).collect())
    }

    async fn members(&self, room: &RoomName, from: Option<&str>, limit: usize) -> Result<MemberPage, BrokerError> {
        let state = self.state();
        let Some(members_of_room) = state.members.get(room) else { return Ok(MemberPage::default()) };
        let from = from.map_or(Bound::Unbounded, Bound::Excluded);
        let has_waited = self.has_waited();
        let there = members_of_room.members.range::<str, _>((from, Bound::Unbounded));
        let mut there = there.filter(|(_, present)| !(present.is_stale && has_waited));
        let members: Vec<_> =
            there.by_ref().take(limit).map(|(name, present)| present.shown(name, &self.replica)).collect();
        let next = there.next().and(members.last()).map(|last| last.subscriber.to_string());
        Ok(MemberPage { members, next })
    }

    async fn member(&self, room: &RoomName, subscriber: &SubscriberId) -> Result<Option<MemberView>, BrokerError> {
        let state = self.state();
        let present = state.members.get(room).and_then(|members_of_room| members_of_room.members.get(subscriber));
        Ok(present.map(|present| present.shown(subscriber, &self.replica)))
    }
}
