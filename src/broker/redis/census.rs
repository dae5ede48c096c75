//! Who has subscribers where: each replica keeps a lease and its counts by room; what a dead one left goes with it.

use std::sync::Mutex;

use redis::pipe;

use super::RedisBroker;
use super::fault::read_error;
use crate::broker::{BrokerError, CENSUS_LIFETIME, Occupancy};
use crate::room::RoomName;

/// What Redis was told last, so that only changes are sent.
#[derive(Default)]
pub(super) struct Told(Mutex<Occupancy>);

/// Rooms written or read in one command.
const BATCH_ROOMS: usize = 1000;

impl RedisBroker {
    pub(super) async fn report_census(&self, now: &Occupancy) -> Result<(), BrokerError> {
        let told = self.told.0.lock().expect("no holder of the lock panics").clone();
        let (lease, rooms) = (self.keys.lease(self.keys.replica()), self.keys.rooms_of(self.keys.replica()));
        let lifetime = CENSUS_LIFETIME.as_millis().to_string();
        let changed: Vec<_> = now.iter().filter(|(room, count)| told.get(room.as_str()) != Some(count)).collect();
        let gone: Vec<_> = told.keys().filter(|room| !now.contains_key(room.as_str())).collect();
        let mut pipeline = pipe();
        pipeline.cmd("SET").arg(&lease).arg(env!("CARGO_PKG_VERSION")).arg("PX").arg(&lifetime).ignore();
        pipeline.cmd("SADD").arg(self.keys.replicas()).arg(self.keys.replica()).ignore();
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
        pipeline.cmd("PEXPIRE").arg(&rooms).arg(&lifetime).ignore();
        let mut link = self.links.for_read().await?;
        let result: redis::RedisResult<(usize,)> = pipeline.query_async(link.connection()).await;
        let (held,) = link.judge(result, read_error)?;
        // Fewer than there should be: the counts had expired or were deleted, and all are due again.
        let mut told = self.told.0.lock().expect("no holder of the lock panics");
        if held == now.len() {
            told.clone_from(now);
        } else {
            told.clear();
        }
        Ok(())
    }

    pub(super) async fn read_census(&self) -> Result<Occupancy, BrokerError> {
        let mut occupancy = Occupancy::new();
        for replica in self.live_replicas().await? {
            let mut link = self.links.for_read().await?;
            let result =
                redis::cmd("HGETALL").arg(self.keys.rooms_of(&replica)).query_async(link.connection()).await;
            let counts: Vec<(String, u64)> = link.judge(result, read_error)?;
            for (room, count) in counts {
                if let Ok(room) = RoomName::new(&room) {
                    *occupancy.entry(room).or_default() += count;
                }
            }
        }
        Ok(occupancy)
    }

    pub(super) async fn read_census_of(&self, room: &RoomName) -> Result<u64, BrokerError> {
        let replicas = self.live_replicas().await?;
        let mut pipeline = pipe();
        for replica in &replicas {
            pipeline.cmd("HGET").arg(self.keys.rooms_of(replica)).arg(room.as_str());
        }
        if replicas.is_empty() {
            return Ok(0);
        }
        let mut link = self.links.for_read().await?;
        let result = pipeline.query_async(link.connection()).await;
        let counts: Vec<Option<u64>> = link.judge(result, read_error)?;
        Ok(counts.into_iter().flatten().sum())
    }

    /// Replicas whose lease holds; those without one are struck from the list.
    async fn live_replicas(&self) -> Result<Vec<String>, BrokerError> {
        let mut link = self.links.for_read().await?;
        let result = redis::cmd("SMEMBERS").arg(self.keys.replicas()).query_async(link.connection()).await;
        let replicas: Vec<String> = link.judge(result, read_error)?;
        if replicas.is_empty() {
            return Ok(replicas);
        }
        let leases: Vec<_> = replicas.iter().map(|replica| self.keys.lease(replica)).collect();
        let result = redis::cmd("MGET").arg(leases).query_async(link.connection()).await;
        let leases: Vec<Option<String>> = link.judge(result, read_error)?;
        let (live, dead): (Vec<_>, Vec<_>) =
            replicas.into_iter().zip(leases).partition(|(_, lease)| lease.is_some());
        if !dead.is_empty() {
            let dead: Vec<_> = dead.into_iter().map(|(replica, _)| replica).collect();
            let mut command = redis::cmd("SREM");
            command.arg(self.keys.replicas()).arg(dead);
            let result: redis::RedisResult<u64> = command.query_async(link.connection()).await;
            // Only tidiness: a Redis that refuses writes can say who is there.
            let _ = link.judge(result, read_error);
        }
        Ok(live.into_iter().map(|(replica, _)| replica).collect())
    }
}
