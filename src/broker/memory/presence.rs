//! The contract for presence, in memory.

use std::ops::Bound;

use async_trait::async_trait;
use serde_json::value::RawValue;

use super::MemoryBroker;
use super::state::{LogStep, MembersRequest, MembersUpdate, Purpose, StoredMember};
use crate::broker::{
    BrokerError, MemberChange, MemberOutcome, MemberPage, MemberView, PresenceStore, PresenceSummary,
    PresenceUpdate,
};
use crate::names::{Data, Event, EventId, EventName, RoomName, SubscriberId, Topic};
use crate::timestamp;

/// The most members that one `presence.join` or `presence.leave` names.
const MAX_EVENT_MEMBERS: usize = 100;

impl StoredMember {
    fn view(&self, subscriber: &SubscriberId, replica: &str) -> MemberView {
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

impl MemoryBroker {
    /// Whether members that were loaded from the data folder have had the length of a lease to come back.
    fn lease_has_passed(&self) -> bool {
        self.started.elapsed() >= self.lease
    }

    /// Changes a room's members, and appends joins and leaves if the room is watched.
    fn update_members(
        &self,
        log: &mut LogStep<'_>,
        room: &RoomName,
        changes: &[MemberChange],
        watch: bool,
    ) -> Result<Vec<MemberOutcome>, BrokerError> {
        let time = timestamp::now();
        let request = MembersRequest { room, changes, watch, remove_stale: self.lease_has_passed(), time: &time };
        let MembersUpdate { outcomes, left, joined, is_watched, present } = log.update_members(&request)?;
        if is_watched {
            for (name, members) in [(EventName::LEAVE, left), (EventName::JOIN, joined)] {
                for members in members.chunks(MAX_EVENT_MEMBERS) {
                    log.append_presence(&presence_event(name, members, present, &time));
                }
            }
        }
        Ok(outcomes)
    }
}

/// A `presence.join` or `presence.leave` of these members.
fn presence_event(name: &str, members: &[StoredMember], present: usize, published_at: &str) -> Event {
    let members: Vec<_> =
        members.iter().map(|member| format!("{{{},\"since\":\"{}\"}}", member.profile, member.since)).collect();
    let data = format!("{{\"members\":[{}],\"present\":{present}}}", members.join(","));
    Event {
        name: EventName::from_log(name).ok(),
        data: Data::Json(RawValue::from_string(data).expect("profiles are fields of JSON objects")),
        published_at: published_at.into(),
        except: Vec::new(),
        publish_id: None,
        traceparent: None,
        is_final: false,
        last_message: None,
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
        let topic = Topic::from(room.clone());
        let (outcomes, durable_at) = self.step_on_log(&topic, |transaction| {
            let watched = watched || transaction.state().members(room).is_some_and(|room| room.is_watched);
            // Only a watched room's log gets new entries.
            let purpose = if watched { Purpose::AppendPresence } else { Purpose::Read(None) };
            let mut log = transaction.open_log(&topic, watermarks, purpose)?;
            self.update_members(&mut log, room, changes, watched)
        })?;
        self.wait_write(durable_at).await?;
        Ok(PresenceUpdate { outcomes, has_stale: false })
    }

    async fn presence_summaries(&self, rooms: &[RoomName]) -> Result<Vec<PresenceSummary>, BrokerError> {
        let state = self.state();
        let summarize = |room: &RoomName| {
            let Some(room) = state.members(room) else { return PresenceSummary::default() };
            let stale_count = room.members.values().filter(|member| member.is_stale).count();
            PresenceSummary {
                own: (room.members.len() - stale_count) as u64,
                has_stale: stale_count > 0 && self.lease_has_passed(),
                watched: room.is_watched,
            }
        };
        Ok(rooms.iter().map(summarize).collect())
    }

    async fn members(&self, room: &RoomName, from: Option<&str>, limit: usize) -> Result<MemberPage, BrokerError> {
        let state = self.state();
        let Some(room) = state.members(room) else { return Ok(MemberPage::default()) };
        let from = from.map_or(Bound::Unbounded, Bound::Excluded);
        let hides_stale = self.lease_has_passed();
        let rest = room.members.range::<str, _>((from, Bound::Unbounded));
        let mut rest = rest.filter(|(_, member)| !(member.is_stale && hides_stale));
        let members: Vec<_> =
            rest.by_ref().take(limit).map(|(subscriber, member)| member.view(subscriber, &self.replica)).collect();
        let next = rest.next().and(members.last()).map(|last| last.subscriber.to_string());
        Ok(MemberPage { members, next })
    }

    async fn owners(
        &self,
        rooms: &[RoomName],
        subscriber: &SubscriberId,
    ) -> Result<Vec<Option<Box<str>>>, BrokerError> {
        let state = self.state();
        let hides_stale = self.lease_has_passed();
        let owner = |room: &RoomName| {
            let member = state.members(room)?.members.get(subscriber)?;
            (!(member.is_stale && hides_stale)).then(|| member.owner.clone())
        };
        Ok(rooms.iter().map(owner).collect())
    }

    async fn member(&self, room: &RoomName, subscriber: &SubscriberId) -> Result<Option<MemberView>, BrokerError> {
        let state = self.state();
        let member = state.members(room).and_then(|room| room.members.get(subscriber));
        Ok(member.map(|member| member.view(subscriber, &self.replica)))
    }
}
