//! The registry of replicas on Redis: each process keeps a lease, and its subscriber counts by room. Both expire when
//! the process has died.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use async_trait::async_trait;
use redis::pipe;

use super::RedisBroker;
use super::error::read_error;
use crate::broker::{BrokerError, Replica, ReplicaRegistry, SubscriberCounts, read_with_deadline};
use crate::names::RoomName;
use crate::timestamp::{self, milliseconds};

/// What this process has reported to Redis, and what it knows of other processes.
#[derive(Default)]
pub(super) struct RegistryState(Mutex<Reported>);

#[derive(Default)]
struct Reported {
    /// The counts that Redis has: only changes are sent.
    subscribers: SubscriberCounts,
    /// Since when all reports have succeeded.
    since: Option<Instant>,
    /// Processes that have members and had no lease at the last comparison.
    dead: Vec<String>,
}

/// Rooms that one command reads or writes.
const BATCH_ROOMS: usize = 1000;
/// Said of a read whose commands took longer than a call may, though none took too long by itself.
const LATE_COUNTS: &str = "the replicas' counts could not be read in time";

impl RedisBroker {
    fn registry(&self) -> MutexGuard<'_, Reported> {
        self.registry.0.lock().expect("no holder of the lock panics")
    }

    /// The processes among these that have no lease now. None until reports have succeeded for the length of a lease:
    /// after an outage, living processes may not have been able to renew theirs yet.
    pub(super) async fn without_lease(&self, processes: Vec<String>) -> Result<Vec<String>, BrokerError> {
        let is_reliable = self.registry().since.is_some_and(|since| since.elapsed() >= self.lease);
        if processes.is_empty() || !is_reliable {
            return Ok(Vec::new());
        }
        let mut command = redis::cmd("MGET");
        command.arg(processes.iter().map(|process| self.keys.lease(process)).collect::<Vec<_>>());
        let mut conn = self.connections.for_read().await?;
        let result = command.query_async(conn.connection()).await;
        let leases: Vec<Option<String>> = conn.check(result, read_error)?;
        let found = processes.into_iter().zip(leases);
        Ok(found.filter_map(|(process, lease)| lease.is_none().then_some(process)).collect())
    }

    /// Processes that had no lease at the last comparison and have none now. One that has come back keeps its members.
    pub(super) async fn confirmed_dead(&self) -> Result<Vec<String>, BrokerError> {
        let dead = self.registry().dead.clone();
        self.without_lease(dead).await
    }

    pub(super) fn set_dead(&self, dead: Vec<String>) {
        self.registry().dead = dead;
    }

    /// Writes this process's lease unless it has reported already: a process needs one before it has members.
    pub(super) async fn ensure_lease(&self) -> Result<(), BrokerError> {
        if self.registry().since.is_some() {
            return Ok(());
        }
        self.write_lease(&self.own_report(0, 0)).await
    }

    async fn write_lease(&self, report: &str) -> Result<(), BrokerError> {
        let own = self.keys.process();
        let mut call = self.scripts.lease.key(self.keys.lease(own));
        call.key(self.keys.processes()).arg(own).arg(report).arg(milliseconds(self.lease));
        let mut conn = self.connections.for_read().await?;
        let result: redis::RedisResult<()> = call.invoke_async(conn.connection()).await;
        conn.check(result, read_error)
    }

    fn own_report(&self, streams: u64, rooms: u64) -> String {
        let report = Replica {
            replica: self.keys.replica().into(),
            version: env!("CARGO_PKG_VERSION").into(),
            streams,
            rooms,
            reported_at: timestamp::now(),
        };
        serde_json::to_string(&report).expect("names and numbers are JSON")
    }

    async fn write_counts(&self, now: &SubscriberCounts) -> Result<(), BrokerError> {
        let reported = self.registry().subscribers.clone();
        let counts_key = self.keys.subscriber_counts(self.keys.process());
        let changed: Vec<_> =
            now.iter().filter(|(room, count)| reported.get(room.as_str()) != Some(count)).collect();
        let emptied: Vec<_> = reported.keys().filter(|room| !now.contains_key(room.as_str())).collect();
        let mut pipeline = pipe();
        for batch in changed.chunks(BATCH_ROOMS) {
            let command = pipeline.cmd("HSET").arg(&counts_key);
            for (room, count) in batch {
                command.arg(room.as_str()).arg(count);
            }
            command.ignore();
        }
        for batch in emptied.chunks(BATCH_ROOMS) {
            let names: Vec<_> = batch.iter().map(|room| room.as_str()).collect();
            pipeline.cmd("HDEL").arg(&counts_key).arg(names).ignore();
        }
        pipeline.cmd("HLEN").arg(&counts_key);
        pipeline.cmd("PEXPIRE").arg(&counts_key).arg(milliseconds(self.lease)).ignore();
        let mut conn = self.connections.for_read().await?;
        let result: redis::RedisResult<(usize,)> = pipeline.query_async(conn.connection()).await;
        let (stored,) = conn.check(result, read_error)?;
        let reported = &mut self.registry().subscribers;
        if stored == now.len() {
            reported.clone_from(now);
        } else {
            // The counts had expired or were deleted: the next report sends all of them.
            reported.clear();
        }
        Ok(())
    }

    async fn read_subscriber_counts(&self) -> Result<SubscriberCounts, BrokerError> {
        let mut subscribers = SubscriberCounts::new();
        for (process, _) in self.read_leases().await? {
            let mut conn = self.connections.for_read().await?;
            let key = self.keys.subscriber_counts(&process);
            // In parts, so that no reply keeps other calls waiting.
            let (mut cursor, mut counts) = (0_u64, HashMap::new());
            loop {
                let mut command = redis::cmd("HSCAN");
                command.arg(&key).arg(cursor).arg("COUNT").arg(BATCH_ROOMS);
                let result = command.query_async(conn.connection()).await;
                let (next, part): (u64, Vec<(String, u64)>) = conn.check(result, read_error)?;
                // A part may repeat rooms of an earlier one.
                counts.extend(part);
                if next == 0 {
                    break;
                }
                cursor = next;
            }
            for (room, count) in counts {
                if let Ok(room) = RoomName::new(&room) {
                    *subscribers.entry(room).or_default() += count;
                }
            }
        }
        Ok(subscribers)
    }

    async fn read_subscriber_count(&self, room: &RoomName) -> Result<u64, BrokerError> {
        let processes = self.read_leases().await?;
        let mut pipeline = pipe();
        for (process, _) in &processes {
            pipeline.cmd("HGET").arg(self.keys.subscriber_counts(process)).arg(room.as_str());
        }
        if processes.is_empty() {
            return Ok(0);
        }
        let mut conn = self.connections.for_read().await?;
        let result = pipeline.query_async(conn.connection()).await;
        let counts: Vec<Option<u64>> = conn.check(result, read_error)?;
        Ok(counts.into_iter().flatten().sum())
    }

    /// The processes that have a lease, and their reports. Deletes the others from the set of processes.
    async fn read_leases(&self) -> Result<Vec<(String, String)>, BrokerError> {
        let mut conn = self.connections.for_read().await?;
        let result = redis::cmd("SMEMBERS").arg(self.keys.processes()).query_async(conn.connection()).await;
        let processes: Vec<String> = conn.check(result, read_error)?;
        if processes.is_empty() {
            return Ok(Vec::new());
        }
        let leases: Vec<_> = processes.iter().map(|process| self.keys.lease(process)).collect();
        let result = redis::cmd("MGET").arg(leases).query_async(conn.connection()).await;
        let leases: Vec<Option<String>> = conn.check(result, read_error)?;
        let (alive, dead): (Vec<_>, Vec<_>) =
            processes.into_iter().zip(leases).partition(|(_, lease)| lease.is_some());
        if !dead.is_empty() {
            let dead: Vec<_> = dead.into_iter().map(|(process, _)| process).collect();
            let mut command = redis::cmd("SREM");
            command.arg(self.keys.processes()).arg(dead);
            let result: redis::RedisResult<u64> = command.query_async(conn.connection()).await;
            // Not needed for the answer: a Redis that refuses writes can still be read.
            let _ = conn.check(result, read_error);
        }
        Ok(alive.into_iter().filter_map(|(process, report)| Some((process, report?))).collect())
    }
}

#[async_trait]
impl ReplicaRegistry for RedisBroker {
    async fn report(&self, subscribers: &SubscriberCounts, streams: u64) -> Result<(), BrokerError> {
        let written = self.write_lease(&self.own_report(streams, subscribers.len() as u64)).await;
        {
            let mut registry = self.registry();
            match &written {
                Ok(()) => drop(registry.since.get_or_insert_with(Instant::now)),
                Err(_) => registry.since = None,
            }
        }
        written?;
        self.write_counts(subscribers).await
    }

    async fn subscriber_counts(&self) -> Result<SubscriberCounts, BrokerError> {
        read_with_deadline(LATE_COUNTS, self.read_subscriber_counts()).await
    }

    async fn subscriber_count(&self, room: &RoomName) -> Result<u64, BrokerError> {
        read_with_deadline(LATE_COUNTS, self.read_subscriber_count(room)).await
    }

    async fn replicas(&self) -> Result<Vec<Replica>, BrokerError> {
        let reports = read_with_deadline(LATE_COUNTS, self.read_leases()).await?.into_iter();
        let reports = reports.filter_map(|(_, report)| serde_json::from_str::<Replica>(&report).ok());
        // If two processes have one replica name, the later report counts.
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
