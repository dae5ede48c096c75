//! The contract for removals: which streams end, and which may not be opened for a time.

use std::net::IpAddr;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::BrokerError;
use crate::names::{RoomName, SubscriberId};

/// Whose streams end, and may not be opened again for a time. It is about everyone whom one of the names is of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Removal {
    /// In this room alone, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room: Option<RoomName>,
    /// A subscriber of that room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscriber: Option<SubscriberId>,
    /// The subject of tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Where those without a subject come from; for IPv6 the first address of its /64. Its open streams go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The id of a token, which is not taken any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Until when, in milliseconds since 1970.
    pub until: u64,
}

/// Removals are watermarks for this long at least, so that a replica that was cut off finds those that it has missed.
pub const REMOVAL_LIFETIME: std::time::Duration = std::time::Duration::from_mins(1);

/// A removal, and where it stands among all.
pub type StoredRemoval = (String, Removal);

/// Receives what a broker announces about removals. It must not block.
pub trait ModerationListener: Send + Sync {
    /// There may be stored removals that this replica has not read.
    fn removals_changed(&self);
}

/// Keeps removals.
#[async_trait]
pub trait ModerationStore: Send + Sync {
    /// Stores a removal, and announces it to the listeners of all replicas.
    async fn remove(&self, removal: &Removal) -> Result<(), BrokerError>;

    /// Removals, oldest first: about a thousand of all that are stored, or of those after one.
    async fn removals(&self, after: Option<&str>) -> Result<Vec<StoredRemoval>, BrokerError>;
}
