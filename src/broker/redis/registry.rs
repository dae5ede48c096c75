//! Who has subscribers where: each replica keeps a lease and its counts by room; what a dead one left goes with it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use async_trait::async_trait;
use redis::pipe;

use super::error::read_error;
use super::{RedisBroker, milliseconds};
use crate::broker::{BrokerError, Replica, ReplicaRegistry, SubscriberCounts};
use crate::names::RoomName;

/// What Redis was told last, and what it said.
#[derive(Default)]
pub(super) struct RegistryState(Mutex<Reported>);

#[derive(Default)]
struct Reported {
    /// So that only changes are sent.
    subscribers: SubscriberCounts,
    /// Since when every report has been taken.
    since: Option<Instant>,
    /// Replicas that still have members, and no lease.
    gone: Vec<String>,
}

/// Rooms written or read in one command.
const BATCH_ROOMS: usize = 1000;

impl RedisBroker {
    fn registry(&self) -> MutexGuard<'_, Reported> {
        self.registry.0.lock().expect("no holder of the lock panics")
    }

    /// Which of these replicas have no lease now. None of them for the length of a lease after an outage: they may not have been able to
    /// renew it.
    pub(super) async fn without_lease(&self, replicas: Vec<String>) -> Result<Vec<String>, BrokerError> {
        let can_tell = self.registry().since.is_some_and(|since| since.elapsed() >= self.lease);
        if replicas.is_empty() || !can_tell {
            return Ok(Vec::new());
        }
        let mut command = redis::cmd("MGET");
        command.arg(replicas.iter().map(|replica| self.keys.lease(replica)).collect::<Vec<_>>());
        let mut conn = self.connections.for_read().await?;
        let result = command.query_async(conn.connection()).await;
        let leases: Vec<Option<String>> = conn.check(result, read_error)?;
        let found = replicas.into_iter().zip(leases);
        Ok(found.filter_map(|(replica, lease)| lease.is_none().then_some(replica)).collect())
    }

    /// Replicas that had no lease when it was looked at last, and have none now: one that has come back is not to lose its members again.
    pub(super) async fn gone(&self) -> Result<Vec<String>, BrokerError> {
        let gone = self.registry().gone.clone();
        self.without_lease(gone).await
    }

    pub(super) fn set_gone(&self, gone: Vec<String>) {
        self.registry().gone = gone;
    }

    /// Whoever has members has a lease before.
    pub(super) async fn take_lease(&self) -> Result<(), BrokerError> {
        if self.registry().since.is_some() {
            return Ok(());
        }
        let mut step = pipe();
        let own = self.keys.incarnation();
        let report = self.own_report(0, 0);
        step.cmd("SET").arg(self.keys.lease(own)).arg(report).arg("PX").arg(milliseconds(self.lease)).ignore();
        step.cmd("SADD").arg(self.keys.replicas()).arg(own).ignore();
        let mut conn = self.connections.for_read().await?;
        let result: redis::RedisResult<()> = step.query_async(conn.connection()).await;
        conn.check(result, read_error)
    }

    pub(super) async fn report_counts_and_lease(
        &self,
        now: &SubscriberCounts,
        streams: u64,
    ) -> Result<(), BrokerError> {
        let reported = self.report_counts(now, streams).await;
        let mut registry = self.registry();
        match &reported {
            Ok(()) => drop(registry.since.get_or_insert_with(Instant::now)),
            Err(_) => registry.since = None,
        }
        reported
    }

    fn own_report(&self, streams: u64, rooms: u64) -> String {
        let report = Replica {
            replica: self.keys.replica().into(),
            version: env!("CARGO_PKG_VERSION").into(),
            streams,
            rooms,
            reported_at: format!("{:.3}", jiff::Timestamp::now()),
        };
        serde_json::to_string(&report).expect("names and numbers are JSON")
    }

    async fn report_counts(&self, now: &SubscriberCounts, streams: u64) -> Result<(), BrokerError> {
        let told = self.registry().subscribers.clone();
        let report = self.own_report(streams, now.len() as u64);
        let own = self.keys.incarnation();
        let (lease, rooms) = (self.keys.lease(own), self.keys.rooms_of(own));
        let lifetime = milliseconds(self.lease);
        let changed: Vec<_> = now.iter().filter(|(room, count)| told.get(room.as_str()) != Some(count)).collect();
        let gone: Vec<_> = told.keys().filter(|room| !now.contains_key(room.as_str())).collect();
        let mut pipeline = pipe();
        pipeline.cmd("SET").arg(&lease).arg(report).arg("PX").arg(lifetime).ignore();
        pipeline.cmd("SADD").arg(self.keys.replicas()).arg(own).ignore();
        for batch in changed.chunks(BATCH_ROOMS) {
            let command = pipeline.cmd("HSET").arg(&rooms);
            for (room, count) in batch {
                command.arg(room.as_str()).arg(count);
            }
            command.ignore();
        }
        for batch in gone.chunks(BATCH_ROOMS) {
            let names: Vec<_> = batch.iter().map(|room| room.as_str()).collect();
            pipeline.cmd("HDEL").arg(&rooms).arg(names).ignore();
        }
        pipeline.cmd("HLEN").arg(&rooms);
        pipeline.cmd("PEXPIRE").arg(&rooms).arg(lifetime).ignore();
        let mut conn = self.connections.for_read().await?;
        let result: redis::RedisResult<(usize,)> = pipeline.query_async(conn.connection()).await;
        let (held,) = conn.check(result, read_error)?;
        // Fewer than there should be: the counts had expired or were deleted, and all are due again.
        let told = &mut self.registry().subscribers;
        if held == now.len() {
            told.clone_from(now);
        } else {
            told.clear();
        }
        Ok(())
    }

    pub(super) async fn read_subscriber_counts(&self) -> Result<SubscriberCounts, BrokerError> {
        let mut subscriber_counts = SubscriberCounts::new();
        for (replica, _) in self.read_leases().await? {
            let mut conn = self.connections.for_read().await?;
            let result =
                redis::cmd("HGETALL").arg(self.keys.rooms_of(&replica)).query_async(conn.connection()).await;
            let counts: Vec<(String, u64)> = conn.check(result, read_error)?;
            for (room, count) in counts {
                if let Ok(room) = RoomName::new(&room) {
                    *subscriber_counts.entry(room).or_default() += count;
                }
            }
        }
        Ok(subscriber_counts)
    }

    pub(super) async fn read_topic_subscribers(&self, room: &RoomName) -> Result<u64, BrokerError> {
        let replicas = self.read_leases().await?;
        let mut pipeline = pipe();
        for (replica, _) in &replicas {
            pipeline.cmd("HGET").arg(self.keys.rooms_of(replica)).arg(room.as_str());
        }
        if replicas.is_empty() {
            return Ok(0);
        }
        let mut conn = self.connections.for_read().await?;
        let result = pipeline.query_async(conn.connection()).await;
        let counts: Vec<Option<u64>> = conn.check(result, read_error)?;
        Ok(counts.into_iter().flatten().sum())
    }

    /// Replicas whose lease holds, and what they reported; those without one are struck from the list.
    pub(super) async fn read_leases(&self) -> Result<Vec<(String, String)>, BrokerError> {
        let mut conn = self.connections.for_read().await?;
        let result = redis::cmd("SMEMBERS").arg(self.keys.replicas()).query_async(conn.connection()).await;
        let replicas: Vec<String> = conn.check(result, read_error)?;
        if replicas.is_empty() {
            return Ok(Vec::new());
        }
        let leases: Vec<_> = replicas.iter().map(|replica| self.keys.lease(replica)).collect();
        let result = redis::cmd("MGET").arg(leases).query_async(conn.connection()).await;
        let leases: Vec<Option<String>> = conn.check(result, read_error)?;
        let (live, dead): (Vec<_>, Vec<_>) =
            replicas.into_iter().zip(leases).partition(|(_, lease)| lease.is_some());
        if !dead.is_empty() {
            let dead: Vec<_> = dead.into_iter().map(|(replica, _)| replica).collect();
            let mut command = redis::cmd("SREM");
            command.arg(self.keys.replicas()).arg(dead);
            let result: redis::RedisResult<u64> = command.query_async(conn.connection()).await;
            // Only tidiness: a Redis that refuses writes can say who is there.
            let _ = conn.check(result, read_error);
        }
        Ok(live.into_iter().filter_map(|(replica, report)| Some((replica, report?))).collect())
    }
}

#[async_trait]
impl ReplicaRegistry for RedisBroker {
    async fn report(&self, subscribers: &SubscriberCounts, streams: u64) -> Result<(), BrokerError> {
        self.report_counts_and_lease(subscribers, streams).await
    }

    async fn subscriber_counts(&self) -> Result<SubscriberCounts, BrokerError> {
        self.read_subscriber_counts().await
    }

    async fn subscriber_count(&self, room: &RoomName) -> Result<u64, BrokerError> {
        self.read_topic_subscribers(room).await
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
