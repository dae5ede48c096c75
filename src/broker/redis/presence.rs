//! Presence on Redis: a hash of members a room, changed by one script.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use redis::{RedisResult, Value, pipe};

use super::error::{read_error, write_error};
use super::{RedisBroker, id_texts, milliseconds, random};
use crate::broker::{
    BrokerError, MemberChange, MemberOutcome, MemberPage, MemberView, PresenceStore, PresenceSummary,
    PresenceUpdate,
};
use crate::names::{EventId, RoomName, SubscriberId, Topic};

/// Rooms whose presence_summaries is read in one command.
const BATCH_ROOMS: usize = 500;
/// The field of presence_summaries that says that somebody has asked to see.
const WATCHED: &str = "";

/// A member as it is stored: "<generation> <since> <replica> <owner> <address or -> <profile>". Who it is, and of which process.
fn parse_member(subscriber: &[u8], stored: &[u8], own: &str) -> Option<(MemberView, String)> {
    let subscriber = SubscriberId::new(std::str::from_utf8(subscriber).ok()?).ok()?;
    let mut parts = std::str::from_utf8(stored).ok()?.splitn(6, ' ');
    let (generation, since, incarnation) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?);
    let (address, profile) = (parts.nth(1)?.parse().ok(), parts.next()?);
    let replica = incarnation.split('/').next()?.to_owned();
    let is_here = incarnation == own;
    let parse_member = MemberView {
        subscriber,
        profile: profile.into(),
        since: since.into(),
        replica,
        is_here,
        generation,
        address,
    };
    Some((parse_member, incarnation.to_owned()))
}

fn member_outcome(answer: &str) -> MemberOutcome {
    match answer {
        "taken" => MemberOutcome::NameTaken,
        "superseded" => MemberOutcome::Superseded,
        generation => generation.parse().map_or(MemberOutcome::Absent, MemberOutcome::Present),
    }
}

#[async_trait]
impl PresenceStore for RedisBroker {
    async fn update_presence(
        &self,
        room: &RoomName,
        watermarks: &[EventId],
        changes: &[MemberChange],
        watched: bool,
    ) -> Result<PresenceUpdate, BrokerError> {
        let topic = Topic::from(room.clone());
        let retention = self.retention.for_topic(&topic);
        self.take_lease().await?;
        let gone = self.gone().await?;
        let mut conn = self.connections.for_write().await?;
        let mut call = self.scripts.update_presence.key(self.keys.members(room));
        call.key(self.keys.presence(room)).key(self.keys.head(&topic)).key(self.keys.log(&topic));
        call.arg(self.keys.incarnation()).arg(self.head_lifetime(&room.clone().into())).arg(random());
        call.arg(room.as_str()).arg(self.keys.live(&topic)).arg(self.keys.control());
        call.arg(retention.events).arg(milliseconds(retention.age));
        call.arg(format!("{:.3}", jiff::Timestamp::now())).arg(u8::from(watched));
        call.arg(gone.len()).arg(gone);
        call.arg(changes.len());
        for change in changes {
            match change {
                MemberChange::Join { member, generation } => {
                    call.arg("enter")
                        .arg(member.subscriber.as_str())
                        .arg(generation.unwrap_or(0))
                        .arg(&*member.owner);
                    let address = member.address.map_or_else(|| "-".into(), |address| address.to_string());
                    call.arg(address).arg(&*member.profile)
                }
                MemberChange::Leave { member, generation } => {
                    call.arg("leave")
                        .arg(member.subscriber.as_str())
                        .arg(generation.unwrap_or(0))
                        .arg(&*member.owner);
                    call.arg("-").arg("")
                }
            };
        }
        call.arg(id_texts(watermarks));
        let result: RedisResult<Vec<String>> = call.invoke_async(conn.connection()).await;
        let mut answers = conn.check(result, write_error)?;
        let has_stale = answers.pop().is_some_and(|more| more == "1");
        Ok(PresenceUpdate { outcomes: answers.iter().map(|answer| member_outcome(answer)).collect(), has_stale })
    }

    async fn presence_summaries(&self, rooms: &[RoomName]) -> Result<Vec<PresenceSummary>, BrokerError> {
        let mut reply = Vec::with_capacity(rooms.len());
        for batch in rooms.chunks(BATCH_ROOMS) {
            let mut step = pipe();
            // A key of another type is that room's trouble alone.
            step.ignore_errors();
            for room in batch {
                step.cmd("HGETALL").arg(self.keys.presence(room));
            }
            for room in batch {
                step.cmd("HLEN").arg(self.keys.members(room));
            }
            for room in batch {
                let lifetime = self.head_lifetime(&room.clone().into());
                step.cmd("PEXPIRE").arg(self.keys.presence(room)).arg(lifetime);
                step.cmd("PEXPIRE").arg(self.keys.members(room)).arg(lifetime);
            }
            let mut conn = self.connections.for_read().await?;
            let result = step.query_async(conn.connection()).await;
            let found: Vec<RedisResult<Value>> = conn.check(result, read_error)?;
            let mut found = found.into_iter();
            let counts: Vec<_> = found.by_ref().take(batch.len()).collect();
            let sizes = found.map(|size| size.ok().and_then(|size| redis::from_redis_value::<u64>(size).ok()));
            reply.extend(counts.into_iter().zip(sizes));
        }
        let rosters = reply.into_iter().map(|(counts, size)| {
            let counts = counts.ok().and_then(|counts| redis::from_redis_value(counts).ok());
            (counts.unwrap_or_default(), size.unwrap_or(0))
        });
        let rosters: Vec<(BTreeMap<String, u64>, u64)> = rosters.collect();
        let own = self.keys.incarnation();
        let others: BTreeSet<_> = rosters
            .iter()
            .flat_map(|(counts, _)| counts.keys())
            .filter(|of| *of != own && *of != WATCHED)
            .collect();
        let gone = self.without_lease(others.into_iter().cloned().collect()).await?;
        self.set_gone(gone.clone());
        let presence_summaries = |(counts, size): &(BTreeMap<String, u64>, u64)| {
            let counted: u64 =
                counts.iter().filter(|(replica, _)| *replica != WATCHED).map(|(_, count)| count).sum();
            PresenceSummary {
                own: counts.get(own).copied().unwrap_or(0),
                // Wrong counts are mended by the same step.
                has_stale: counted != *size || gone.iter().any(|replica| counts.contains_key(replica)),
                watched: counts.contains_key(WATCHED),
            }
        };
        Ok(rosters.iter().map(presence_summaries).collect())
    }

    async fn members(&self, room: &RoomName, from: Option<&str>, limit: usize) -> Result<MemberPage, BrokerError> {
        let (next, found) = self.scan(self.keys.members(room), from, limit).await?;
        let members = found.iter().filter_map(|(name, stored)| parse_member(name, stored, self.keys.incarnation()));
        let members: Vec<_> = members.collect();
        let others: BTreeSet<_> =
            members.iter().filter(|(parse_member, _)| !parse_member.is_here).map(|(_, of)| of).collect();
        let gone = self.without_lease(others.into_iter().cloned().collect()).await?;
        let there = members.into_iter().filter(|(_, of)| !gone.contains(of)).map(|(parse_member, _)| parse_member);
        Ok(MemberPage { members: there.collect(), next })
    }

    async fn member(&self, room: &RoomName, subscriber: &SubscriberId) -> Result<Option<MemberView>, BrokerError> {
        let mut conn = self.connections.for_read().await?;
        let mut command = redis::cmd("HGET");
        command.arg(self.keys.members(room)).arg(subscriber.as_str());
        let result: RedisResult<Option<Vec<u8>>> = command.query_async(conn.connection()).await;
        let stored = conn.check(result, read_error)?;
        let name = subscriber.as_str().as_bytes();
        Ok(stored.and_then(|stored| Some(parse_member(name, &stored, self.keys.incarnation())?.0)))
    }
}
