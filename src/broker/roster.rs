//! The contract of a roster: who is in which room on all replicas, who may not come back, and which replicas there are.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::BrokerError;
use crate::room::{EventId, RoomName, SubscriberId};

/// Tells one stay of a subscriber in a room from an earlier one: microseconds since 1970, or more where that was taken.
pub type Stamp = u64;

/// Somebody who is in a room, and says who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name in the room.
    pub subscriber: SubscriberId,
    /// A digest of whose name that is, without spaces: nobody else can take it meanwhile.
    pub owner: Box<str>,
    /// Where it comes from, if that is all that is known of whose it is.
    pub address: Option<IpAddr>,
    /// What others are shown of it: a JSON object's members without the braces.
    pub card: Arc<str>,
}

/// A change of who is in a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Somebody enters, or is still there.
    Enter {
        /// Who.
        member: Arc<Member>,
        /// Of the stay that is to go on; a new one otherwise, which ends any earlier one of the same owner.
        stamp: Option<Stamp>,
    },
    /// Somebody leaves.
    Leave {
        /// Who.
        member: Arc<Member>,
        /// Which stay ends; a later one goes on. None: whichever this replica has, since it was never told the stamp.
        stamp: Option<Stamp>,
    },
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attended {
    /// It is in the room.
    Stays(Stamp),
    /// It is not, or that stay is not.
    Gone,
    /// The name is another owner's.
    Taken,
    /// A later stay has taken the place of this one.
    Superseded,
}

/// What became of a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Of each change.
    pub outcomes: Vec<Attended>,
    /// Whether there are more members of replicas that are gone than one step has leave.
    pub has_ghosts: bool,
}

/// What a broker knows of a room's members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attendance {
    /// How many it counts for this replica.
    pub own: u64,
    /// Whether some are of replicas that are gone: the next step has them leave.
    pub has_ghosts: bool,
    /// Whether somebody has asked to see who comes and goes.
    pub watched: bool,
}

/// A member as others are shown it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Its name in the room.
    pub subscriber: SubscriberId,
    /// A JSON object's members without the braces.
    pub card: Arc<str>,
    /// When it entered, RFC 3339 in UTC.
    pub since: String,
    /// Where its stream is.
    pub replica: String,
    /// Whether that is this replica.
    pub is_here: bool,
    /// Which stay it is.
    pub stamp: Stamp,
    /// Where it comes from, if that is all that is known of whose it is. Not for others.
    pub address: Option<IpAddr>,
}

/// What stands on a card beside the subscriber's name.
#[derive(Debug, Default, Deserialize)]
pub struct Card {
    /// The subject of its token.
    pub user: Option<String>,
    /// Any JSON.
    pub info: Option<Box<RawValue>>,
}

impl Shown {
    /// What it says of itself; nothing, if that can't be read.
    pub fn card(&self) -> Option<Card> {
        serde_json::from_str(&format!("{{{}}}", self.card)).ok()
    }
}

/// Some members of a room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberPage {
    /// Who they are.
    pub members: Vec<Shown>,
    /// Where the next page starts.
    pub next: Option<String>,
}

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

/// Removals are known for this long at least, so that a replica that was cut off finds those that it has missed.
pub const REMOVAL_LIFETIME: std::time::Duration = std::time::Duration::from_mins(1);

/// A removal, and where it stands among all.
pub type StoredRemoval = (String, Removal);

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

/// Keeps who is where.
#[async_trait]
pub trait Roster: Send + Sync {
    /// Changes who is in a room, and has members of replicas that are gone leave, in one step.
    ///
    /// If `watched`, or once it was, the step appends `presence.join` and `presence.leave` to the room's log for what it has
    /// changed in effect, and for nothing else.
    async fn attend(
        &self,
        room: &RoomName,
        known: &[EventId],
        changes: &[Change],
        watched: bool,
    ) -> Result<Step, BrokerError>;

    /// What the broker knows of some rooms' members; keeps it alive.
    async fn attendance(&self, rooms: &[RoomName]) -> Result<Vec<Attendance>, BrokerError>;

    /// About `limit` members from where an earlier page ended, without those of replicas that are gone. Who is there all the while
    /// is on some page; while many come and go, one may be on two.
    async fn members(&self, room: &RoomName, from: Option<&str>, limit: usize) -> Result<MemberPage, BrokerError>;

    /// One member.
    async fn member(&self, room: &RoomName, subscriber: &SubscriberId) -> Result<Option<Shown>, BrokerError>;

    /// Stores a removal, and has the listeners of all replicas told.
    async fn remove(&self, removal: &Removal) -> Result<(), BrokerError>;

    /// Removals, oldest first: some thousand of all that are stored, or of those after one.
    async fn removals(&self, after: Option<&str>) -> Result<Vec<StoredRemoval>, BrokerError>;

    /// The replicas that are there.
    async fn replicas(&self) -> Result<Vec<Replica>, BrokerError>;
}
