//! Who is in which room: a hash of members a room, changed by one script; and the removals, which are a stream like any log.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use redis::{RedisResult, Value, pipe};

use super::fault::{read_error, write_error};
use super::{RedisBroker, milliseconds, random, texts};
use crate::broker::{
    Attendance, Attended, BrokerError, Change, MemberPage, REMOVAL_LIFETIME, Removal, Replica, Roster, Shown,
    StoredRemoval,
};
use crate::room::{EventId, RoomName, SubscriberId};

/// Removals that are remembered; beyond them the oldest are forgotten.
const MAX_REMOVALS: usize = 100_000;
/// How long they are, after the last one.
const REMOVALS_LIFETIME: Duration = Duration::from_hours(31 * 24);
/// Removals that are read at a time.
const PAGE_REMOVALS: usize = 1000;
/// The field of attendance that says that somebody has asked to see.
const WATCHED: &str = "";

/// A member as it is stored: "<stamp> <since> <replica> <owner> <card>".
fn shown(subscriber: &[u8], stored: &[u8], own: &str) -> Option<Shown> {
    let subscriber = SubscriberId::new(std::str::from_utf8(subscriber).ok()?).ok()?;
    let mut parts = std::str::from_utf8(stored).ok()?.splitn(5, ' ');
    let (stamp, since, replica) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?);
    let card = parts.nth(1)?;
    Some(Shown {
        subscriber,
        card: card.into(),
        since: since.into(),
        is_here: replica == own,
        replica: replica.into(),
        stamp,
    })
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
    ) -> Result<Vec<Attended>, BrokerError> {
        let retention = self.retention.of(room);
        let live = self.live();
        let mut link = self.links.for_write().await?;
        let mut call = self.scripts.attend.key(self.keys.members(room));
        call.key(self.keys.attendance(room)).key(self.keys.head(room)).key(self.keys.log(room));
        call.arg(self.keys.replica()).arg(self.head_lifetime(room)).arg(random());
        call.arg(room.as_str()).arg(self.keys.live(room)).arg(self.keys.control());
        call.arg(retention.events).arg(milliseconds(retention.age));
        call.arg(format!("{:.3}", jiff::Timestamp::now())).arg(u8::from(watched));
        match live {
            Some(live) => call.arg(live.len()).arg(&*live),
            None => call.arg(-1),
        };
        call.arg(changes.len());
        for change in changes {
            match change {
                Change::Enter { member, stamp } => call
                    .arg("enter")
                    .arg(member.subscriber.as_str())
                    .arg(stamp.unwrap_or(0))
                    .arg(&*member.owner)
                    .arg(&*member.card),
                Change::Leave { subscriber, stamp } => {
                    call.arg("leave").arg(subscriber.as_str()).arg(stamp).arg("").arg("")
                }
            };
        }
        call.arg(texts(known));
        let result: RedisResult<Vec<String>> = call.invoke_async(link.connection()).await;
        let answers = link.judge(result, write_error)?;
        Ok(answers.iter().map(|answer| attended(answer)).collect())
    }

    async fn attendance(&self, rooms: &[RoomName]) -> Result<Vec<Attendance>, BrokerError> {
        let mut step = pipe();
        // A key of another type is that room's trouble alone.
        step.ignore_errors();
        for room in rooms {
            step.cmd("HGETALL").arg(self.keys.attendance(room));
        }
        for room in rooms {
            let lifetime = self.head_lifetime(room);
            step.cmd("PEXPIRE").arg(self.keys.attendance(room)).arg(lifetime);
            step.cmd("PEXPIRE").arg(self.keys.members(room)).arg(lifetime);
        }
        let mut link = self.links.for_read().await?;
        let result = step.query_async(link.connection()).await;
        let reply: Vec<RedisResult<Value>> = link.judge(result, read_error)?;
        let live = self.live();
        let attendance = |counts: RedisResult<Value>| {
            let counts: Vec<(String, u64)> =
                counts.ok().and_then(|counts| redis::from_redis_value(counts).ok()).unwrap_or_default();
            let is_ghost = |replica: &str| {
                let is_gone = |live: &Arc<[String]>| !live.iter().any(|one| one == replica);
                replica != WATCHED && replica != self.keys.replica() && live.as_ref().is_some_and(is_gone)
            };
            Attendance {
                own: counts.iter().find(|(replica, _)| replica == self.keys.replica()).map_or(0, |(_, own)| *own),
                has_ghosts: counts.iter().any(|(replica, count)| *count > 0 && is_ghost(replica)),
            }
        };
        Ok(reply.into_iter().take(rooms.len()).map(attendance).collect())
    }

    async fn members(&self, room: &RoomName, from: Option<&str>, limit: usize) -> Result<MemberPage, BrokerError> {
        let (next, found) = self.scan(self.keys.members(room), from, limit).await?;
        let live = self.live();
        let is_there =
            |shown: &Shown| shown.is_here || live.as_ref().is_none_or(|live| live.contains(&shown.replica));
        let members = found.iter().filter_map(|(name, stored)| shown(name, stored, self.keys.replica()));
        Ok(MemberPage { members: members.filter(is_there).collect(), next })
    }

    async fn member(&self, room: &RoomName, subscriber: &SubscriberId) -> Result<Option<Shown>, BrokerError> {
        let mut link = self.links.for_read().await?;
        let mut command = redis::cmd("HGET");
        command.arg(self.keys.members(room)).arg(subscriber.as_str());
        let result: RedisResult<Option<Vec<u8>>> = command.query_async(link.connection()).await;
        let stored = link.judge(result, read_error)?;
        Ok(stored.and_then(|stored| shown(subscriber.as_str().as_bytes(), &stored, self.keys.replica())))
    }

    async fn remove(&self, removal: &Removal) -> Result<(), BrokerError> {
        let text = serde_json::to_string(removal).expect("names and numbers are JSON");
        let mut step = pipe();
        step.cmd("XADD").arg(self.keys.removals()).arg("MAXLEN").arg("~").arg(MAX_REMOVALS).arg("*");
        step.arg("r").arg(text).ignore();
        step.cmd("PEXPIRE").arg(self.keys.removals()).arg(milliseconds(REMOVALS_LIFETIME)).ignore();
        step.cmd("PUBLISH").arg(self.keys.control()).arg("removed").ignore();
        let mut link = self.links.for_write().await?;
        let result: RedisResult<()> = step.query_async(link.connection()).await;
        link.judge(result, write_error)
    }

    async fn removals(&self, after: Option<&str>) -> Result<Vec<StoredRemoval>, BrokerError> {
        type Reply = Vec<(String, Vec<(String, String)>)>;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        // Lives to be read again after a cut of the connection, and no longer.
        let recent = milliseconds(now.saturating_sub(REMOVAL_LIFETIME));
        let mut after = after.map(str::to_owned);
        loop {
            let mut command = redis::cmd("XRANGE");
            command.arg(self.keys.removals()).arg(after.as_ref().map_or("-".into(), |after| format!("({after}")));
            command.arg("+").arg("COUNT").arg(PAGE_REMOVALS);
            let mut link = self.links.for_read().await?;
            let result: RedisResult<Reply> = command.query_async(link.connection()).await;
            let page = link.judge(result, read_error)?;
            let Some((last, _)) = page.last() else { return Ok(Vec::new()) };
            after = Some(last.clone());
            let removals = page.into_iter().filter_map(|(id, fields)| {
                let (_, text) = fields.into_iter().next()?;
                let removal: Removal = serde_json::from_str(&text).ok()?;
                let stored_at: u64 = id.split('-').next()?.parse().ok()?;
                (removal.until.max(stored_at) >= recent).then_some((id, removal))
            });
            let removals: Vec<_> = removals.collect();
            if !removals.is_empty() {
                return Ok(removals);
            }
        }
    }

    async fn replicas(&self) -> Result<Vec<Replica>, BrokerError> {
        let reports = self.read_leases().await?;
        Ok(reports.into_iter().filter_map(|(_, report)| serde_json::from_str(&report).ok()).collect())
    }
}
