//! The contract for the registry of replicas, in memory: this process is the only replica.

use async_trait::async_trait;

use super::MemoryBroker;
use crate::broker::{BrokerError, Replica, ReplicaRegistry, SubscriberCounts};
use crate::names::RoomName;
use crate::timestamp;

#[async_trait]
impl ReplicaRegistry for MemoryBroker {
    async fn report(&self, subscribers: &SubscriberCounts, streams: u64) -> Result<(), BrokerError> {
        let mut state = self.state();
        state.subscribers.clone_from(subscribers);
        state.streams = streams;
        Ok(())
    }

    async fn subscriber_counts(&self) -> Result<SubscriberCounts, BrokerError> {
        Ok(self.state().subscribers.clone())
    }

    async fn subscriber_count(&self, room: &RoomName) -> Result<u64, BrokerError> {
        Ok(self.state().subscribers.get(room).copied().unwrap_or(0))
    }

    async fn replicas(&self) -> Result<Vec<Replica>, BrokerError> {
        let state = self.state();
        Ok(vec![Replica {
            replica: self.replica.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            streams: state.streams,
            rooms: state.subscribers.len() as u64,
            reported_at: timestamp::now(),
        }])
    }
}
