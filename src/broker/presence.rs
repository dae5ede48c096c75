//! The contract for presence: which members a room has, on all replicas.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::BrokerError;
use crate::names::{EventId, RoomName, SubscriberId};

/// Tells one stay of a subscriber in a room from an earlier one: microseconds since 1970, or more where that was taken.
pub type Generation = u64;

/// Somebody who is in a room, and says who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name in the room.
    pub subscriber: SubscriberId,
    /// A digest of whose name that is, without spaces: nobody else can take it meanwhile.
    pub owner: Box<str>,
    /// Where it comes from, if that is all that is watermarks of whose it is.
    pub address: Option<IpAddr>,
    /// What others are shown of it: a JSON object's members without the braces.
    pub profile: Arc<str>,
}

/// A change of who is in a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// Somebody enters, or is still there.
    Join {
        /// Who.
        member: Arc<Member>,
        /// Of the stay that is to go on; a new one otherwise, which ends any earlier one of the same owner.
        generation: Option<Generation>,
    },
    /// Somebody leaves.
    Leave {
        /// Who.
        member: Arc<Member>,
        /// Which stay ends; a later one goes on. None: whichever this replica has, since it was never told the generation.
        generation: Option<Generation>,
    },
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberOutcome {
    /// It is in the room.
    Present(Generation),
    /// It is not, or that stay is not.
    Absent,
    /// The name is another owner's.
    NameTaken,
    /// A later stay has taken the place of this one.
    Superseded,
}

/// What became of a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PresenceUpdate {
    /// Of each change.
    pub outcomes: Vec<MemberOutcome>,
    /// Whether there are more members of replicas that are gone than one step has leave.
    pub has_stale: bool,
}

/// What a broker knows of a room's members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PresenceSummary {
    /// How many it counts for this replica.
    pub own: u64,
    /// Whether some are of replicas that are gone: the next step has them leave.
    pub has_stale: bool,
    /// Whether somebody has asked to see who comes and goes.
    pub watched: bool,
}

/// A member as others are shown it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberView {
    /// Its name in the room.
    pub subscriber: SubscriberId,
    /// A JSON object's members without the braces.
    pub profile: Arc<str>,
    /// When it entered, RFC 3339 in UTC.
    pub since: String,
    /// Where its stream is.
    pub replica: String,
    /// Whether that is this replica.
    pub is_here: bool,
    /// Which stay it is.
    pub generation: Generation,
    /// Where it comes from, if that is all that is watermarks of whose it is. Not for others.
    pub address: Option<IpAddr>,
}

/// What stands on a profile beside the subscriber's name.
#[derive(Debug, Default, Deserialize)]
pub struct Profile {
    /// The subject of its token.
    pub user: Option<String>,
    /// Any JSON.
    pub info: Option<Box<RawValue>>,
}

impl MemberView {
    /// What it says of itself; nothing, if that can't be read.
    pub fn profile(&self) -> Option<Profile> {
        serde_json::from_str(&format!("{{{}}}", self.profile)).ok()
    }
}

/// Some members of a room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberPage {
    /// Who they are.
    pub members: Vec<MemberView>,
    /// Where the next page starts.
    pub next: Option<String>,
}

/// Receives what a broker announces about presence. It must not block.
pub trait PresenceListener: Send + Sync {
    /// A later session of a subscriber in a room has begun, on another replica.
    fn superseded(&self, room: &RoomName, subscriber: &SubscriberId, generation: Generation);
}

/// Keeps the members of rooms.
#[async_trait]
pub trait PresenceStore: Send + Sync {
    /// Changes the members of a room, and removes members of dead replicas, in one step.
    ///
    /// If `watched`, or once it was, the step appends `presence.join` and `presence.leave` to the room's log for each member
    /// that came or left in effect.
    async fn update_presence(
        &self,
        room: &RoomName,
        watermarks: &[EventId],
        changes: &[MemberChange],
        watched: bool,
    ) -> Result<PresenceUpdate, BrokerError>;

    /// What the broker knows of some rooms' members; keeps it alive.
    async fn presence_summaries(&self, rooms: &[RoomName]) -> Result<Vec<PresenceSummary>, BrokerError>;

    /// About `limit` members from where an earlier page ended, without those of dead replicas. A member that is present all
    /// the while is on some page; while many come and go, it may be on two.
    async fn members(&self, room: &RoomName, from: Option<&str>, limit: usize) -> Result<MemberPage, BrokerError>;

    /// One member.
    async fn member(&self, room: &RoomName, subscriber: &SubscriberId) -> Result<Option<MemberView>, BrokerError>;
}
