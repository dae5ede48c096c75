//! The contract for the registry of replicas: which there are, and how many subscribers each has.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::BrokerError;
use crate::names::RoomName;

/// Subscribers by room, on one replica or on all.
pub type SubscriberCounts = BTreeMap<RoomName, u64>;

/// A replica as it reported itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// Its name.
    pub replica: String,
    /// Its version.
    pub version: String,
    /// Open streams.
    pub streams: u64,
    /// Rooms that have subscribers there.
    pub rooms: u64,
    /// When it said so, RFC 3339 in UTC.
    pub reported_at: String,
}

/// Keeps which replicas there are.
#[async_trait]
pub trait ReplicaRegistry: Send + Sync {
    /// Reports how many subscribers this replica has, by room, and how many streams. To be repeated a few times within a
    /// replica's lease: a replica that has not reported for that long counts as dead, and its members vanish with it.
    async fn report(&self, subscribers: &SubscriberCounts, streams: u64) -> Result<(), BrokerError>;

    /// Rooms that have subscribers, on all live replicas.
    async fn subscriber_counts(&self) -> Result<SubscriberCounts, BrokerError>;

    /// How many subscribers one room has, on all live replicas.
    async fn subscriber_count(&self, room: &RoomName) -> Result<u64, BrokerError>;

    /// The replicas that are alive.
    async fn replicas(&self) -> Result<Vec<Replica>, BrokerError>;
}
