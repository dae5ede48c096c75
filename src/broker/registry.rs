//! The contract for the registry of replicas: which replicas are alive, and how many subscribers each has.

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::BrokerError;
use crate::names::RoomName;

/// Numbers of subscribers by room, on one replica or on all.
pub type SubscriberCounts = BTreeMap<RoomName, u64>;

/// A replica, as it reported itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// The replica's name.
    pub replica: String,
    /// The version of Roomcast that it runs.
    pub version: String,
    /// How many streams are open on it.
    pub streams: u64,
    /// How many rooms have subscribers on it.
    pub rooms: u64,
    /// When it reported this, RFC 3339 in UTC.
    pub reported_at: String,
}

/// Keeps the list of replicas.
#[async_trait]
pub trait ReplicaRegistry: Send + Sync {
    /// Reports this replica's subscribers by room, and its number of streams. Has to be repeated several times within a
    /// replica's lease: a replica that has not reported for the length of a lease counts as dead, and its members are
    /// removed.
    async fn report(&self, subscribers: &SubscriberCounts, streams: u64) -> Result<(), BrokerError>;

    /// The rooms that have subscribers on any live replica.
    async fn subscriber_counts(&self) -> Result<SubscriberCounts, BrokerError>;

    /// How many subscribers one room has on all live replicas.
    async fn subscriber_count(&self, room: &RoomName) -> Result<u64, BrokerError>;

    /// The replicas that are alive.
    async fn replicas(&self) -> Result<Vec<Replica>, BrokerError>;
}
