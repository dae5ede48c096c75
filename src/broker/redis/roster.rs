//! Who is in which room: a hash of members a room, changed by one script; and the removals, which are a stream like any log.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use redis::{RedisResult, Value, pipe};

use super::fault::{read_error, write_error};
use super::{RedisBroker, milliseconds, random, texts};
use crate::broker::{
    Attendance, Attended, BrokerError, Change, MemberPage, REMOVAL_LIFETIME, Removal, Replica, Roster, Shown, Step,
    StoredRemoval,
};
use crate::room::{EventId, RoomName, SubscriberId};

/// Removals that are remembered at one time; beyond them new ones are refused.
const MAX_REMOVALS: usize = 100_000;
/// How long they are, after the last one.
const REMOVALS_LIFETIME: Duration = Duration::from_hours(31 * 24);
/// Rooms whose attendance is read in one command.
const BATCH_ROOMS: usize = 500;
/// Removals that are read at a time.
const PAGE_REMOVALS: usize = 1000;
/// The field of attendance that says that somebody has asked to see.
const WATCHED: &str = "";

/// A member as it is stored: "<stamp> <since> <replica> <owner> <address or -> <card>". Who it is, and of which process.
fn shown(subscriber: &[u8], stored: &[u8], own: &str) -> Option<(Shown, String)> {
    let subscriber = SubscriberId::new(std::str::from_utf8(subscriber).ok()?).ok()?;
    let mut parts = std::str::from_utf8(stored).ok()?.splitn(6, ' ');
    let (stamp, since, incarnation) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?);
    let (address, card) = (parts.nth(1)?.parse().ok(), parts.next()?);
    let replica = incarnation.split('/').next()?.to_owned();
    let is_here = incarnation == own;
    let shown = Shown { subscriber, card: card.into(), since: since.into(), replica, is_here, stamp, address };
    Some((shown, incarnation.to_owned()))
}

fn attended(answer: &str) -> Attended {
    match answer {
        "taken" => Attended::Taken,
        "superseded" => Attended::Superseded,
        stamp => stamp.parse().map_or(Attended::Gone, Attended::Stays),
    }
}

#[async_trait]
impl Roster for RedisBroker {
    async fn attend(
        &self,
        room: &RoomName,
        known: &[EventId],
        changes: &[Change],
        watched: bool,
    ) -> Result<Step, BrokerError> {
        let retention = self.retention.of(room);
        self.take_lease().await?;
        let gone = self.gone().await?;
        let mut link = self.links.for_write().await?;
        let mut call = self.scripts.attend.key(self.keys.members(room));
        call.key(self.keys.attendance(room)).key(self.keys.head(room)).key(self.keys.log(room));
        call.arg(self.keys.incarnation()).arg(self.head_lifetime(room)).arg(random());
        call.arg(room.as_str()).arg(self.keys.live(room)).arg(self.keys.control());
        call.arg(retention.events).arg(milliseconds(retention.age));
        call.arg(format!("{:.3}", jiff::Timestamp::now())).arg(u8::from(watched));
        call.arg(gone.len()).arg(gone);
        call.arg(changes.len());
        for change in changes {
            match change {
                Change::Enter { member, stamp } => {
                    call.arg("enter").arg(member.subscriber.as_str()).arg(stamp.unwrap_or(0)).arg(&*member.owner);
                    let address = member.address.map_or_else(|| "-".into(), |address| address.to_string());
                    call.arg(address).arg(&*member.card)
                }
                Change::Leave { member, stamp } => {
                    call.arg("leave").arg(member.subscriber.as_str()).arg(stamp.unwrap_or(0)).arg(&*member.owner);
                    call.arg("-").arg("")
                }
            };
        }
        call.arg(texts(known));
        let result: RedisResult<Vec<String>> = call.invoke_async(link.connection()).await;
        let mut answers = link.judge(result, write_error)?;
        let has_ghosts = answers.pop().is_some_and(|more| more == "1");
        Ok(Step { outcomes: answers.iter().map(|answer| attended(answer)).collect(), has_ghosts })
    }

    async fn attendance(&self, rooms: &[RoomName]) -> Result<Vec<Attendance>, BrokerError> {
        let mut reply = Vec::with_capacity(rooms.len());
        for batch in rooms.chunks(BATCH_ROOMS) {
            let mut step = pipe();
            // A key of another type is that room's trouble alone.
            step.ignore_errors();
            for room in batch {
                step.cmd("HGETALL").arg(self.keys.attendance(room));
            }
            for room in batch {
                step.cmd("HLEN").arg(self.keys.members(room));
            }
            for room in batch {
                let lifetime = self.head_lifetime(room);
                step.cmd("PEXPIRE").arg(self.keys.attendance(room)).arg(lifetime);
                step.cmd("PEXPIRE").arg(self.keys.members(room)).arg(lifetime);
            }
            let mut link = self.links.for_read().await?;
            let result = step.query_async(link.connection()).await;
            let found: Vec<RedisResult<Value>> = link.judge(result, read_error)?;
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
        let gone = self.gone_of(others.into_iter().cloned().collect()).await?;
        self.note_gone(gone.clone());
        let attendance = |(counts, size): &(BTreeMap<String, u64>, u64)| {
            let counted: u64 =
                counts.iter().filter(|(replica, _)| *replica != WATCHED).map(|(_, count)| count).sum();
            Attendance {
                own: counts.get(own).copied().unwrap_or(0),
                // Wrong counts are mended by the same step.
                has_ghosts: counted != *size || gone.iter().any(|replica| counts.contains_key(replica)),
                watched: counts.contains_key(WATCHED),
            }
        };
        Ok(rosters.iter().map(attendance).collect())
    }

    async fn members(&self, room: &RoomName, from: Option<&str>, limit: usize) -> Result<MemberPage, BrokerError> {
        let (next, found) = self.scan(self.keys.members(room), from, limit).await?;
        let members = found.iter().filter_map(|(name, stored)| shown(name, stored, self.keys.incarnation()));
        let members: Vec<_> = members.collect();
        let others: BTreeSet<_> = members.iter().filter(|(shown, _)| !shown.is_here).map(|(_, of)| of).collect();
        let gone = self.gone_of(others.into_iter().cloned().collect()).await?;
        let there = members.into_iter().filter(|(_, of)| !gone.contains(of)).map(|(shown, _)| shown);
        Ok(MemberPage { members: there.collect(), next })
    }

    async fn member(&self, room: &RoomName, subscriber: &SubscriberId) -> Result<Option<Shown>, BrokerError> {
        let mut link = self.links.for_read().await?;
        let mut command = redis::cmd("HGET");
        command.arg(self.keys.members(room)).arg(subscriber.as_str());
        let result: RedisResult<Option<Vec<u8>>> = command.query_async(link.connection()).await;
        let stored = link.judge(result, read_error)?;
        let name = subscriber.as_str().as_bytes();
        Ok(stored.and_then(|stored| Some(shown(name, &stored, self.keys.incarnation())?.0)))
    }

    async fn remove(&self, removal: &Removal) -> Result<(), BrokerError> {
        let text = serde_json::to_string(removal).expect("names and numbers are JSON");
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut link = self.links.for_write().await?;
        let mut call = self.scripts.remove.key(self.keys.removals());
        call.arg(text).arg(self.keys.control()).arg(MAX_REMOVALS).arg(milliseconds(REMOVALS_LIFETIME));
        call.arg(milliseconds(now)).arg(milliseconds(REMOVAL_LIFETIME));
        let result: RedisResult<String> = call.invoke_async(link.connection()).await;
        link.judge(result, write_error).map(|_| ())
    }

    async fn removals(&self, after: Option<&str>) -> Result<Vec<StoredRemoval>, BrokerError> {
        type Reply = Vec<(String, Vec<(String, String)>)>;
        let mut command = redis::cmd("XRANGE");
        command.arg(self.keys.removals()).arg(after.map_or("-".into(), |after| format!("({after}")));
        command.arg("+").arg("COUNT").arg(PAGE_REMOVALS);
        let mut link = self.links.for_read().await?;
        let result: RedisResult<Reply> = command.query_async(link.connection()).await;
        let page = link.judge(result, read_error)?;
        // One that can't be read removes nobody, and yet what comes after it is not waited for.
        let removal = |fields: Vec<(String, String)>| serde_json::from_str(&fields.into_iter().next()?.1).ok();
        Ok(page.into_iter().map(|(id, fields)| (id, removal(fields).unwrap_or_default())).collect())
    }

    async fn replicas(&self) -> Result<Vec<Replica>, BrokerError> {
        let reports = self.read_leases().await?.into_iter();
        let reports = reports.filter_map(|(_, report)| serde_json::from_str::<Replica>(&report).ok());
        // Of two processes of one name, the later one.
        let mut latest: BTreeMap<String, Replica> = BTreeMap::new();
        for report in reports {
            let before = latest.get(&report.replica);
            if before.is_none_or(|before| before.reported_at < report.reported_at) {
                latest.insert(report.replica.clone(), report);
            }
        }
        Ok(latest.into_values().collect())
    }
}
