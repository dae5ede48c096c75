//! Presence on Redis: a hash of members for each room, changed by one script.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use redis::{RedisResult, Value, pipe};

use super::error::{read_error, write_error};
use super::{RedisBroker, head, id_texts, random};
use crate::broker::{
    BrokerError, MemberChange, MemberOutcome, MemberPage, MemberView, PresenceStore, PresenceSummary,
    PresenceUpdate,
};
use crate::names::{EventId, RoomName, SubscriberId, Topic};
use crate::timestamp::{self, milliseconds};

/// Rooms whose summaries are read in one command.
const BATCH_ROOMS: usize = 500;
/// The field of a room's presence key that says that a stream has asked for presence events.
const WATCHED: &str = "";

/// Member counts by process, with the field [`WATCHED`] among them.
type MemberCounts = BTreeMap<String, u64>;

/// Parses a stored member, `<generation> <since> <process> <owner> <address or -> <profile>`. Returns it and its
/// process.
fn parse_member(subscriber: &[u8], stored: &[u8], own_process: &str) -> Option<(MemberView, String)> {
    let subscriber = SubscriberId::new(std::str::from_utf8(subscriber).ok()?).ok()?;
    let mut parts = std::str::from_utf8(stored).ok()?.splitn(6, ' ');
    let (generation, since, process) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?);
    let (address, profile) = (parts.nth(1)?.parse().ok(), parts.next()?);
    let member = MemberView {
        subscriber,
        profile: profile.into(),
        since: since.into(),
        replica: process.split('/').next()?.to_owned(),
        is_here: process == own_process,
        generation,
        address,
    };
    Some((member, process.to_owned()))
}

/// The process and the owner of a stored member.
fn parse_holder(stored: &str) -> Option<(&str, &str)> {
    let mut parts = stored.splitn(6, ' ').skip(2);
    Some((parts.next()?, parts.next()?))
}

fn parse_outcome(answer: &str) -> MemberOutcome {
    match answer {
        "name_taken" => MemberOutcome::NameTaken,
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
        self.ensure_lease().await?;
        let dead = self.confirmed_dead().await?;
        let mut conn = self.connections.for_write().await?;
        let quiet_lifetime = self.quiet_lifetime(&topic);
        let share = retention.for_presence();
        let mut call = self.scripts.update_presence.key(self.keys.members(room));
        call.key(self.keys.presence(room)).key(self.keys.head(&topic)).key(self.keys.log(&topic));
        call.key(self.keys.presence_log(&topic));
        call.arg(self.keys.process()).arg(self.head_lifetime(&topic)).arg(random());
        call.arg(room.as_str()).arg(self.keys.live(&topic)).arg(self.keys.control());
        call.arg(share.events).arg(share.bytes).arg(milliseconds(share.age));
        call.arg(timestamp::now()).arg(timestamp::ago(share.age)).arg(u8::from(watched)).arg(quiet_lifetime);
        call.arg(dead.len()).arg(dead);
        call.arg(changes.len());
        for change in changes {
            let (verb, member, generation, address, profile) = match change {
                MemberChange::Join { member, generation } => {
                    let address = member.address.map_or_else(|| "-".into(), |address| address.to_string());
                    ("join", member, generation, address, &*member.profile)
                }
                MemberChange::Leave { member, generation } => ("leave", member, generation, "-".into(), ""),
            };
            call.arg(verb).arg(member.subscriber.as_str()).arg(generation.unwrap_or(0)).arg(&*member.owner);
            call.arg(address).arg(profile);
        }
        call.arg(id_texts(watermarks));
        let result: RedisResult<Vec<String>> = call.invoke_async(conn.connection()).await;
        let mut answers = conn.check(result, write_error)?;
        let has_stale = answers.pop().is_some_and(|has_more| has_more == "1");
        Ok(PresenceUpdate { outcomes: answers.iter().map(|answer| parse_outcome(answer)).collect(), has_stale })
    }

    async fn presence_summaries(&self, rooms: &[RoomName]) -> Result<Vec<PresenceSummary>, BrokerError> {
        let mut found: Vec<(MemberCounts, u64)> = Vec::with_capacity(rooms.len());
        for batch in rooms.chunks(BATCH_ROOMS) {
            let mut pipeline = pipe();
            // A key of another type is an error of its own room alone.
            pipeline.ignore_errors();
            for room in batch {
                pipeline.cmd("HGETALL").arg(self.keys.presence(room));
            }
            for room in batch {
                pipeline.cmd("HLEN").arg(self.keys.members(room));
            }
            for room in batch {
                pipeline.cmd("GET").arg(self.keys.head(&room.clone().into()));
            }
            let mut conn = self.connections.for_read().await?;
            let result = pipeline.query_async(conn.connection()).await;
            let reply: Vec<RedisResult<Value>> = conn.check(result, read_error)?;
            let mut reply = reply.into_iter();
            let counts: Vec<_> = reply.by_ref().take(batch.len()).map(parse_or_default::<MemberCounts>).collect();
            found.extend(counts.into_iter().zip(reply.by_ref().take(batch.len()).map(parse_or_default::<u64>)));
            self.renew_members(batch.iter().zip(reply.map(parse_or_default::<Option<String>>))).await?;
        }
        let own_process = self.keys.process();
        let processes = found.iter().flat_map(|(counts, _)| counts.keys());
        let others: BTreeSet<_> =
            processes.filter(|process| *process != own_process && *process != WATCHED).collect();
        let dead = self.without_lease(others.into_iter().cloned().collect()).await?;
        self.set_dead(dead.clone());
        let summary = |(counts, members): &(MemberCounts, u64)| {
            let counted: u64 =
                counts.iter().filter(|(process, _)| *process != WATCHED).map(|(_, count)| count).sum();
            PresenceSummary {
                own: counts.get(own_process).copied().unwrap_or(0),
                // The step that removes members of dead processes also mends wrong counts.
                has_stale: counted != *members || dead.iter().any(|process| counts.contains_key(process)),
                watched: counts.contains_key(WATCHED),
            }
        };
        Ok(found.iter().map(summary).collect())
    }

    async fn members(&self, room: &RoomName, from: Option<&str>, limit: usize) -> Result<MemberPage, BrokerError> {
        let conn = self.connections.for_read().await?;
        let (next, found) = self.scan(conn, self.keys.members(room), from, limit).await?;
        let members = found.iter().filter_map(|(name, stored)| parse_member(name, stored, self.keys.process()));
        let members: Vec<_> = members.collect();
        let others: BTreeSet<_> =
            members.iter().filter(|(member, _)| !member.is_here).map(|(_, process)| process).collect();
        let dead = self.without_lease(others.into_iter().cloned().collect()).await?;
        let alive = members.into_iter().filter(|(_, process)| !dead.contains(process)).map(|(member, _)| member);
        Ok(MemberPage { members: alive.collect(), next })
    }

    async fn owners(
        &self,
        rooms: &[RoomName],
        subscriber: &SubscriberId,
    ) -> Result<Vec<Option<Box<str>>>, BrokerError> {
        let mut pipeline = pipe();
        // A key of another type is an error of its own room alone.
        pipeline.ignore_errors();
        for room in rooms {
            pipeline.cmd("HGET").arg(self.keys.members(room)).arg(subscriber.as_str());
        }
        let mut conn = self.connections.for_read().await?;
        let result = pipeline.query_async(conn.connection()).await;
        let reply: Vec<RedisResult<Value>> = conn.check(result, read_error)?;
        let stored: Vec<Option<String>> = reply.into_iter().map(parse_or_default).collect();
        let holders: Vec<_> = stored.iter().map(|stored| parse_holder(stored.as_deref()?)).collect();
        let processes: BTreeSet<_> = holders.iter().flatten().map(|(process, _)| *process).collect();
        let others = processes.into_iter().filter(|process| *process != self.keys.process());
        let dead = self.without_lease(others.map(str::to_owned).collect()).await?;
        let is_alive = |process: &str| dead.iter().all(|dead| dead != process);
        let owner = |(process, owner): &(&str, &str)| is_alive(process).then(|| (*owner).into());
        Ok(holders.iter().map(|holder| holder.as_ref().and_then(owner)).collect())
    }

    async fn member(&self, room: &RoomName, subscriber: &SubscriberId) -> Result<Option<MemberView>, BrokerError> {
        let mut conn = self.connections.for_read().await?;
        let mut command = redis::cmd("HGET");
        command.arg(self.keys.members(room)).arg(subscriber.as_str());
        let result: RedisResult<Option<Vec<u8>>> = command.query_async(conn.connection()).await;
        let stored = conn.check(result, read_error)?;
        let name = subscriber.as_str().as_bytes();
        Ok(stored.and_then(|stored| Some(parse_member(name, &stored, self.keys.process())?.0)))
    }
}

impl RedisBroker {
    /// Renews the lifetimes of rooms' members. Those of rooms without messages get no longer than they need until the next
    /// time, and so do the presence events there.
    async fn renew_members(
        &self,
        heads: impl Iterator<Item = (&RoomName, Option<String>)>,
    ) -> Result<(), BrokerError> {
        let mut pipeline = pipe();
        // A Redis that refuses writes can still be read.
        pipeline.ignore_errors();
        for (room, head) in heads {
            let has_messages = head.as_deref().and_then(head::parse).is_some_and(|head| head.has_messages());
            let topic = room.clone().into();
            let lifetime = if has_messages { self.head_lifetime(&topic) } else { self.quiet_lifetime(&topic) };
            if !has_messages {
                let lifetime = lifetime.min(milliseconds(self.retention.for_topic(&topic).age));
                pipeline.cmd("PEXPIRE").arg(self.keys.presence_log(&topic)).arg(lifetime).arg("GT");
            }
            pipeline.cmd("PEXPIRE").arg(self.keys.presence(room)).arg(lifetime);
            pipeline.cmd("PEXPIRE").arg(self.keys.members(room)).arg(lifetime);
        }
        let mut conn = self.connections.for_read().await?;
        let result: RedisResult<Vec<RedisResult<Value>>> = pipeline.query_async(conn.connection()).await;
        conn.check(result, read_error).map(|_| ())
    }
}

/// A reply of a pipeline; the default if the command has failed.
fn parse_or_default<T: redis::FromRedisValue + Default>(reply: RedisResult<Value>) -> T {
    reply.ok().and_then(|value| redis::from_redis_value(value).ok()).unwrap_or_default()
}
