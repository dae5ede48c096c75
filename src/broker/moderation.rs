//! The contract for removals, which end streams and ban their owners for a time.

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::BrokerError;
use crate::names::{RoomName, SubscriberId};

/// Ends streams, and bans their owners for a time. Applies to every stream that matches one of the names below.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Removal {
    /// Limits the removal to this room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room: Option<RoomName>,
    /// A subscriber id in that room.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subscriber: Option<SubscriberId>,
    /// The subject of tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The address of clients without a subject; for IPv6 the first address of the /64. An address is banned only: open
    /// streams from it go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The id of a token, which is revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The end of the ban, in milliseconds since 1970.
    pub until: u64,
}

/// A removal stays stored for at least this long, even if its ban ends earlier, so that a replica that was cut off
/// still finds it.
pub const REMOVAL_LIFETIME: Duration = Duration::from_mins(1);

/// Removals that are stored at one time; more are refused.
pub const MAX_REMOVALS: usize = 100_000;

/// A removal with its id, which orders the stored removals.
pub type StoredRemoval = (String, Removal);

/// Receives a broker's announcements about removals. It must not block.
pub trait ModerationListener: Send + Sync {
    /// There may be stored removals that this replica has not read.
    fn removals_changed(&self);
}

/// Keeps removals.
#[async_trait]
pub trait ModerationStore: Send + Sync {
    /// Stores a removal, and announces it to the listeners of all replicas.
    async fn store_removal(&self, removal: &Removal) -> Result<(), BrokerError>;

    /// The stored removals, oldest first: from the beginning, or those after the removal with the id `after`. A broker
    /// may return about a thousand at a time; an empty page is the end.
    async fn removals(&self, after: Option<&str>) -> Result<Vec<StoredRemoval>, BrokerError>;
}
