//! The members of rooms in memory, and the step that changes them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::budget::{OVERHEAD_BYTES, member_bytes};
use super::log_step::LogStep;
use crate::broker::memory::record::RecordChange;
use crate::broker::{BrokerError, Generation, Member, MemberChange, MemberOutcome};
use crate::names::{RoomName, SubscriberId};

/// The members of a room.
#[derive(Default)]
pub struct RoomMembers {
    pub members: BTreeMap<SubscriberId, StoredMember>,
    /// Whether a stream has ever asked for the room's joins and leaves.
    pub is_watched: bool,
}

/// A member, in memory and in the data folder. Format 1 of the folder has other names for two fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredMember {
    #[serde(rename = "stamp")]
    pub generation: Generation,
    /// When the member entered, RFC 3339 in UTC.
    pub since: String,
    pub owner: Box<str>,
    #[serde(default)]
    pub address: Option<IpAddr>,
    #[serde(rename = "card")]
    pub profile: Arc<str>,
    /// Whether the member was loaded from the data folder and has not come back yet.
    #[serde(skip)]
    pub is_stale: bool,
}

impl StoredMember {
    pub(super) fn bytes(&self) -> usize {
        member_bytes(&self.profile)
    }
}

/// What a step is to change of a room's members.
pub struct MembersRequest<'a> {
    pub room: &'a RoomName,
    pub changes: &'a [MemberChange],
    /// Whether the room's joins and leaves are wanted from now on.
    pub watch: bool,
    /// Whether to remove the members that were loaded from the data folder and have not come back.
    pub remove_stale: bool,
    /// The time of the step, RFC 3339 in UTC.
    pub time: &'a str,
}

/// What a step has changed of a room's members.
pub struct MembersUpdate {
    /// The outcome of each change, in the order of the changes.
    pub outcomes: Vec<MemberOutcome>,
    /// The members that were present before the step and are not now.
    pub left: Vec<StoredMember>,
    /// The members that were not present before the step, or had another profile.
    pub joined: Vec<StoredMember>,
    pub is_watched: bool,
    /// How many members there are now.
    pub present: usize,
}

/// The members that a step may have changed, as they were before it.
type MembersBefore = BTreeMap<SubscriberId, Option<StoredMember>>;

impl LogStep<'_> {
    /// Changes the members of the log's room.
    pub fn update_members(&mut self, request: &MembersRequest<'_>) -> Result<MembersUpdate, BrokerError> {
        let joining = request.changes.iter().filter_map(|change| match change {
            MemberChange::Join { member, .. } => Some(member_bytes(&member.profile)),
            MemberChange::Leave { .. } => None,
        });
        let starts_watch = request.watch && self.members.get(request.room).is_none_or(|room| !room.is_watched);
        self.require(joining.sum::<usize>() + usize::from(starts_watch) * OVERHEAD_BYTES)?;
        let room = self.members.entry(request.room.clone()).or_default();
        if starts_watch {
            room.is_watched = true;
            self.ledger.added(OVERHEAD_BYTES, || RecordChange::watched(request.room, true));
        }
        let mut before = MembersBefore::new();
        if request.remove_stale {
            for (subscriber, member) in room.members.extract_if(.., |_, member| member.is_stale) {
                before.insert(subscriber, Some(member));
            }
        }
        let mut newest = self.now;
        let apply = |change| room.apply(change, &mut newest, request.time, &mut before);
        let outcomes = request.changes.iter().map(apply).collect();
        let (mut left, mut joined) = (Vec::new(), Vec::new());
        for (subscriber, old) in &before {
            let new = room.members.get(subscriber);
            if old.as_ref() != new {
                let (bytes_before, bytes) =
                    (old.as_ref().map_or(0, StoredMember::bytes), new.map_or(0, StoredMember::bytes));
                self.ledger.replaced(bytes_before, bytes, || RecordChange::member(request.room, subscriber, new));
            }
            match (old, new) {
                (Some(old), None) => left.push(old.clone()),
                (None, Some(new)) => joined.push(new.clone()),
                (Some(old), Some(new)) if old.profile != new.profile => joined.push(new.clone()),
                _ => {}
            }
        }
        Ok(MembersUpdate { outcomes, left, joined, is_watched: room.is_watched, present: room.members.len() })
    }
}

impl RoomMembers {
    /// Applies one change. `newest` is the newest generation that the step has given out, `before` collects the members
    /// as they were before the step.
    fn apply(
        &mut self,
        change: &MemberChange,
        newest: &mut Generation,
        time: &str,
        before: &mut MembersBefore,
    ) -> MemberOutcome {
        let subscriber = match change {
            MemberChange::Join { member, .. } | MemberChange::Leave { member, .. } => &member.subscriber,
        };
        let present = self.members.get(subscriber);
        before.entry(subscriber.clone()).or_insert_with(|| present.cloned());
        match change {
            MemberChange::Leave { member, generation } => {
                let is_meant = |present: &StoredMember| match generation {
                    Some(generation) => present.generation == *generation,
                    None => !present.is_stale && present.owner == member.owner,
                };
                if present.is_some_and(is_meant) {
                    self.members.remove(subscriber);
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
            MemberChange::Join { member, generation } => {
                let generation = generation.unwrap_or_else(|| {
                    *newest = (*newest + 1).max(present.map_or(0, |present| present.generation + 1));
                    *newest
                });
                let since = present.map_or(time, |present| &present.since).to_owned();
                let Member { owner, address, profile, .. } = &**member;
                let (owner, address, profile) = (owner.clone(), *address, profile.clone());
                let joined = StoredMember { generation, since, owner, address, profile, is_stale: false };
                self.members.insert(subscriber.clone(), joined);
                MemberOutcome::Present(generation)
            }
        }
    }
}
